"""Settings of `state`, from environment variables, read once."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from schemas.problem import own_words
from state.environment import ENV_PREFIX, OwnVariables, unknown_variables

REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+socket")


class StateSettings(BaseSettings):
    """Settings that the service and the worker share."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="ignore")

    data_dir: Path = Field(
        default=Path("data"),
        description="The directory of checkpoints, jobs and results; the service and all workers share it.",
    )
    redis_password_file: Path | None = Field(
        default=None,
        description="A file with the password of the server in `ECKART_REDIS_URL`, which then holds none.",
    )
    redis_url: str | None = Field(
        default=None,
        repr=False,
        description="The Redis-compatible server: `redis://`, `rediss://`, `unix://` or `redis+socket://`. "
        "Unset: `eckart serve` starts its own.",
    )
    lease_s: float = Field(
        default=60,
        gt=0,
        allow_inf_nan=False,
        description="Seconds without a heartbeat after which a lease expires and the job is queued again.",
    )
    heartbeat_s: float = Field(
        default=None,
        validate_default=True,
        gt=0,
        description="Seconds between two heartbeats, by which a worker notices a cancel; at most half of the "
        "lease. Unset: a quarter of it, at most 2.",
    )
    reaper_s: float = Field(
        default=10,
        gt=0,
        description="Seconds between two sweeps for jobs whose lease expired or whose message was lost.",
    )
    max_attempts: int = Field(
        default=3, ge=1, description="How often a job is tried without getting further before it fails."
    )
    cache_bytes: int = Field(
        default=32 * 2**30,
        ge=0,
        description="The most bytes of decompositions cached for later jobs, and never more than the disk "
        "has free. 0 turns the cache off.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments first, then the environment, and nothing else."""
        del env_settings, dotenv_settings, file_secret_settings
        return init_settings, OwnVariables(settings_cls)

    @model_validator(mode="before")
    @classmethod
    def _all_variables_are_known(cls, values: Any) -> Any:
        if unknown := unknown_variables(os.environ):
            raise ValueError("\n".join(unknown))
        return values

    @field_validator("redis_url")
    @classmethod
    def _address_is_of_redis(cls, redis_url: str | None) -> str | None:
        if redis_url and not redis_url.startswith(tuple(f"{scheme}://" for scheme in REDIS_SCHEMES)):
            schemes = ", ".join(f"{scheme}://" for scheme in REDIS_SCHEMES)
            raise ValueError(
                f"this is not the address of a Redis-compatible server; begin it with one of {schemes}"
            )
        return redis_url or None

    @field_validator("redis_url")
    @classmethod
    def _password_is_in_address(cls, redis_url: str | None, info: ValidationInfo) -> str | None:
        file = info.data.get("redis_password_file")
        if redis_url is None or file is None:
            return redis_url
        try:
            return with_password(redis_url, file.read_text().strip())
        except OSError as error:
            raise ValueError(
                f"the file in ECKART_REDIS_PASSWORD_FILE cannot be read: {error.strerror}"
            ) from None

    @field_validator("heartbeat_s", mode="before")
    @classmethod
    def _heartbeat_follows_lease(cls, heartbeat_s: Any, info: ValidationInfo) -> Any:
        return min(info.data.get("lease_s", 60) / 4, 2.0) if heartbeat_s is None else heartbeat_s

    @field_validator("heartbeat_s")
    @classmethod
    def _heartbeat_fits_lease(cls, heartbeat_s: float, info: ValidationInfo) -> float:
        lease_s = info.data.get("lease_s", heartbeat_s * 2)
        if heartbeat_s > lease_s / 2:
            raise ValueError(
                f"{heartbeat_s:g} s are too long: at most half of ECKART_LEASE_S ({lease_s:g} s) is safe, "
                f"since a heartbeat may be lost; set it to {lease_s / 2:g} or less, or lengthen the lease"
            )
        return heartbeat_s


def with_password(redis_url: str, password: str) -> str:
    """Put a password into the address of a server."""
    scheme, _, rest = redis_url.partition("://")
    if scheme not in {"redis", "rediss"} or "@" in rest or not password:
        raise ValueError(
            "with ECKART_REDIS_PASSWORD_FILE it must be a redis:// or rediss:// address without a password, "
            "and the file must not be empty"
        )
    return f"{scheme}://:{quote(password, safe='')}@{rest}"


def setting_errors(error: ValidationError) -> list[str]:
    """Describe each invalid setting in one line, with its environment variable and without its value."""
    return [line for each in error.errors() for line in _describe(each["loc"], each["msg"])]


def _describe(place: tuple[int | str, ...], message: str) -> list[str]:
    message = own_words(message)
    name = ENV_PREFIX + ".".join(map(str, place)).upper()
    return [f"{name}: {message}"] if place else message.splitlines()
