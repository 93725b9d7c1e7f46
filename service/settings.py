"""The API's settings: environment variables, read once."""

import ipaddress
import re
from typing import Self

from pydantic import Field, SecretStr, field_validator, model_validator

from service.access.keys import KeyRing
from service.webhooks.hosts import WebhookHosts
from service.webhooks.secrets import WebhookSecrets
from state.settings import StateSettings

# A path that cannot leave the host it is appended to, nor break out of a header, a script or an attribute.
ROOT_PATH = re.compile(r"(?!.{256})(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)+")
HOST_NAME = re.compile(r"(?!.{254})[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")


class Settings(StateSettings):
    """The API's settings, and those that it shares with the worker."""

    host: str = Field(default="127.0.0.1", description="The address the API listens on.")
    port: int = Field(
        default=8000, ge=0, le=65535, description="The port the API listens on; 0: any free one."
    )
    allowed_hosts: str = Field(
        default="",
        description="Further hosts that requests may name in `Host`, separated by commas, such as "
        "`models.example`; `*`: any. Always allowed: `ECKART_HOST`, `localhost`, `127.0.0.1` and `[::1]`, "
        "and where `ECKART_HOST` is `0.0.0.0` or `::`, any IP address.",
    )
    api_keys: SecretStr | None = Field(
        default=None,
        description="The keys that clients need: `name:secret`, separated by commas, or `@` and the path of "
        "a file with one a line; `sha256:<hex>` may stand for a secret. Unset: no keys are needed.",
    )
    owner_bytes: int | None = Field(
        default=None,
        ge=1,
        description="The most bytes of checkpoints and results that the owner of a key may store. Unset: as "
        "many as the disk holds.",
    )
    owner_jobs: int = Field(
        default=1000, ge=1, description="The most jobs that the owner of a key may have waiting."
    )
    owner_uploads: int = Field(
        default=32, ge=1, description="The most uploads that the owner of a key may have under way."
    )
    root_path: str = Field(
        default="",
        description="The path under which a proxy serves the API, such as `/eckart`. Unset: what the "
        "`X-Forwarded-Prefix` of a request says, if anything.",
    )
    max_upload_bytes: int = Field(
        default=100 * 2**30, ge=1, description="The largest upload in one request, in bytes."
    )
    max_spec_bytes: int = Field(
        default=2**20, ge=1, description="The largest JSON body, or spec of a multipart body, in bytes."
    )
    max_files: int = Field(
        default=1000, ge=1, description="The largest number of files in one multipart request."
    )
    min_free_bytes: int = Field(
        default=2**30,
        ge=0,
        description="Uploads are refused if they would leave fewer free bytes than this on the disk.",
    )
    retention_hours: float = Field(
        default=168,
        ge=0,
        le=1_000_000,
        allow_inf_nan=False,
        description="How long a job is kept after its end, with its files. 0: until it is deleted.",
    )
    reconcile_s: float = Field(
        default=3600,
        gt=0,
        allow_inf_nan=False,
        description="Seconds between two comparisons of the disk with what is known; the first is at start.",
    )
    failed_layers_hours: float = Field(
        default=72,
        ge=0,
        allow_inf_nan=False,
        description="How long a failed job keeps its finished layers, so that it can be resumed without "
        "computing them again.",
    )
    idle_timeout_s: float = Field(
        default=60, gt=0, description="An upload is dropped if no data arrives for this long."
    )
    min_upload_bytes_per_s: int = Field(
        default=10_000,
        ge=0,
        description="An upload is dropped if it is slower than this on average, after its first minute.",
    )
    max_uploads: int = Field(
        default=64, ge=1, description="How many uploads may be under way at a time; more get 429."
    )
    upload_expiry_hours: float = Field(
        default=24,
        gt=0,
        allow_inf_nan=False,
        description="How long a resumable upload is kept after its last byte arrived.",
    )
    max_wait_s: float = Field(
        default=50,
        gt=0,
        allow_inf_nan=False,
        description="How long `?wait=` holds an answer at most. Proxies often give up after 60 seconds.",
    )
    max_streams: int = Field(
        default=256,
        ge=1,
        description="How many event streams may be open at a time; more get 429. "
        "With keys, the owner of one has at most half of them.",
    )
    owner_waits: int = Field(
        default=128,
        ge=1,
        description="The most event streams, and requests that `?wait=` holds, that the owner of a key may "
        "have open; more get 429.",
    )
    webhook_hosts: str = Field(
        default="",
        description="Hosts that webhooks may go to, separated by commas: `hooks.example.com`, "
        "`*.example.com`, `host:8443`, `http://host:8080`. Public addresses only, unless an "
        "entry names the address or its network, as `10.1.0.0/16` does. Unset: no webhooks.",
    )
    webhook_secret: SecretStr | None = Field(
        default=None,
        description="What signs webhooks: `whsec_` and the base64 of 24 random bytes or more; several, "
        "separated by spaces, while one replaces another. `name:whsec_…` is for the key of that name alone. "
        "Entries are separated by commas, or `@` and the path of a file has one a line.",
    )
    shutdown_s: int = Field(
        default=10, ge=0, description="How long running requests may take to end when the API is stopped."
    )

    @property
    def owner_streams(self) -> int:
        """How many event streams one owner may have open: with keys, others find places too."""
        return self.max_streams if self.api_keys is None else -(-self.max_streams // 2)

    @property
    def retention_s(self) -> float | None:
        """Seconds for which an ended job is kept; None: for ever."""
        return self.retention_hours * 3600 or None

    @property
    def named_hosts(self) -> tuple[str, ...]:
        """The hosts of `allowed_hosts`, as they are compared."""
        return tuple(
            host.strip().lower().strip("[]") for host in self.allowed_hosts.split(",") if host.strip()
        )

    @field_validator("api_keys")
    @classmethod
    def _are_keys(cls, api_keys: SecretStr | None) -> SecretStr | None:
        if api_keys is not None:
            KeyRing(api_keys.get_secret_value())
        return api_keys

    @property
    def key_ring(self) -> KeyRing | None:
        """The keys; None: none are needed."""
        return None if self.api_keys is None else KeyRing(self.api_keys.get_secret_value())

    @field_validator("webhook_hosts")
    @classmethod
    def _webhooks_have_hosts(cls, webhook_hosts: str) -> str:
        WebhookHosts(webhook_hosts)
        return webhook_hosts

    @field_validator("webhook_secret")
    @classmethod
    def _is_a_secret(cls, webhook_secret: SecretStr | None) -> SecretStr | None:
        if webhook_secret is not None:
            WebhookSecrets(webhook_secret.get_secret_value())
        return webhook_secret

    @model_validator(mode="after")
    def _webhooks_are_signed(self) -> Self:
        if self.webhook_hosts and self.webhook_secret is None:
            raise ValueError(
                "ECKART_WEBHOOK_HOSTS is set, so ECKART_WEBHOOK_SECRET must be too: receivers know a message "
                "by its signature"
            )
        return self

    @property
    def webhook_secrets(self) -> WebhookSecrets | None:
        """What signs webhooks; None: there are none to sign."""
        return WebhookSecrets(self.webhook_secret.get_secret_value()) if self.webhook_secret else None

    @field_validator("allowed_hosts")
    @classmethod
    def _are_hosts(cls, allowed_hosts: str) -> str:
        for host in filter(None, map(str.strip, allowed_hosts.split(","))):
            if host != "*" and HOST_NAME.fullmatch(host) is None and not is_address(host.strip("[]")):
                raise ValueError(
                    "give host names or addresses without scheme, port and path, separated by commas, "
                    "such as models.example,192.168.1.5; or * for any"
                )
        return allowed_hosts

    @field_validator("root_path")
    @classmethod
    def _is_a_path(cls, root_path: str) -> str:
        path = root_path.rstrip("/")
        if path and ROOT_PATH.fullmatch(path) is None:
            raise ValueError(
                "this is not a path such as /eckart, of letters, digits and . _ ~ - between slashes"
            )
        return path


def is_address(host: str) -> bool:
    """Whether a host is an IP address, without brackets."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
