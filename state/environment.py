"""The environment variables of Eckart: which names there are, and which values count as unset."""

import re
from collections.abc import Iterable, Mapping

from pydantic_settings import EnvSettingsSource

from schemas.nearest import nearest

ENV_PREFIX = "ECKART_"
# Of all programs together, since one environment often serves all; a test compares them with the settings.
KNOWN_NAMES = frozenset(
    {
        # The client's.
        "ECKART_URL",
        "ECKART_API_KEY",
        # Those of `state`, `service` and `worker`.
        "ECKART_ALLOWED_HOSTS",
        "ECKART_API_KEYS",
        "ECKART_CACHE_BYTES",
        "ECKART_DATA_DIR",
        "ECKART_DEVICE",
        "ECKART_DISK_WAIT_S",
        "ECKART_FAILED_LAYERS_HOURS",
        "ECKART_HEARTBEAT_S",
        "ECKART_HOST",
        "ECKART_IDLE_TIMEOUT_S",
        "ECKART_LAYER_LIMIT_S",
        "ECKART_LEASE_S",
        "ECKART_MAX_ATTEMPTS",
        "ECKART_MAX_FILES",
        "ECKART_MAX_SPEC_BYTES",
        "ECKART_MAX_STREAMS",
        "ECKART_MAX_UPLOADS",
        "ECKART_MAX_UPLOAD_BYTES",
        "ECKART_MAX_WAIT_S",
        "ECKART_MIN_FREE_BYTES",
        "ECKART_MIN_UPLOAD_BYTES_PER_S",
        "ECKART_OWNER_BYTES",
        "ECKART_OWNER_JOBS",
        "ECKART_OWNER_UPLOADS",
        "ECKART_OWNER_WAITS",
        "ECKART_PORT",
        "ECKART_REAPER_S",
        "ECKART_RECONCILE_S",
        "ECKART_REDIS_PASSWORD_FILE",
        "ECKART_REDIS_URL",
        "ECKART_RETENTION_HOURS",
        "ECKART_RETRY_PAUSE_S",
        "ECKART_ROOT_PATH",
        "ECKART_SHUTDOWN_S",
        "ECKART_THREADS",
        "ECKART_UPLOAD_EXPIRY_HOURS",
        "ECKART_WEBHOOK_HOSTS",
        "ECKART_WEBHOOK_SECRET",
        "ECKART_WORKERS",
    }
)
# Kubernetes describes a Service named `eckart` or `eckart-…` to each container in variables like these.
SERVICE_LINK_NAME = re.compile(
    r"ECKART_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
SERVICE_LINK_VALUE = re.compile(r"(?:tcp|udp|sctp)://", re.IGNORECASE)


class OwnVariables(EnvSettingsSource):
    """The environment without what Kubernetes put there: its values count as unset."""

    def _load_env_vars(self) -> Mapping[str, str | None]:
        variables = super()._load_env_vars()
        return {name: value for name, value in variables.items() if not _is_service_link(name, value)}


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Name each variable that looks like a setting but is none, with the nearest that is one."""
    unknown = (
        name
        for name, value in environment.items()
        if name.startswith(ENV_PREFIX) and name not in KNOWN_NAMES and not _is_service_link(name, value)
    )
    return [f"{name}: there is no such setting{_hint(name, KNOWN_NAMES)}" for name in sorted(unknown)]


def _is_service_link(name: str, value: str | None) -> bool:
    return bool(
        SERVICE_LINK_VALUE.match(value or "") and name.upper() not in {"ECKART_URL", "ECKART_REDIS_URL"}
    ) or bool(SERVICE_LINK_NAME.fullmatch(name.upper()))


def _hint(name: str, known: Iterable[str]) -> str:
    found = nearest(name, known, likeness=0.0)
    return f"; did you mean {found}? Otherwise unset it" if found else ""
