"""What the memory needs to know, from environment variables, read once."""

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "ECKART_"
REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+socket")


class StateSettings(BaseSettings):
    """Settings that the service and the worker share."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    data_dir: Path = Field(
        default=Path("data"),
        description="Where checkpoints, jobs and results lie; the service and every worker share it.",
    )
    redis_url: str | None = Field(
        default=None,
        description="The Redis-compatible server: `redis://`, `rediss://`, `unix://` or `redis+socket://`. "
        "Unset: standalone starts its own.",
    )
    lease_s: float = Field(
        default=60,
        gt=0,
        allow_inf_nan=False,
        description="Seconds without a heartbeat after which a job goes to another worker.",
    )
    heartbeat_s: float = Field(
        default=None,
        validate_default=True,
        gt=0,
        description="Seconds between two heartbeats; at most half of the lease. Unset: a quarter of it.",
    )
    reaper_s: float = Field(
        default=10, gt=0, description="Seconds between two looks for jobs whose worker or message was lost."
    )
    max_attempts: int = Field(
        default=3, ge=1, description="How often a job is started before it fails as `worker-lost`."
    )
    cache_bytes: int = Field(
        default=32 * 2**30,
        ge=0,
        description="The most bytes of decompositions kept for further jobs, and never more than the disk "
        "has free; 0: none are kept.",
    )

    @field_validator("redis_url")
    @classmethod
    def _redis_is_within_reach(cls, redis_url: str | None) -> str | None:
        if redis_url and not redis_url.startswith(tuple(f"{scheme}://" for scheme in REDIS_SCHEMES)):
            schemes = ", ".join(f"{scheme}://" for scheme in REDIS_SCHEMES)
            raise ValueError(
                f"no Redis-compatible server has such an address; begin it with one of {schemes}"
            )
        return redis_url or None

    @field_validator("heartbeat_s", mode="before")
    @classmethod
    def _heartbeat_follows_lease(cls, heartbeat_s: Any, info: ValidationInfo) -> Any:
        return info.data.get("lease_s", 60) / 4 if heartbeat_s is None else heartbeat_s

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


def setting_faults(error: ValidationError) -> list[str]:
    """Say each fault in one line that begins with the environment variable, and never shows its value."""
    return [_fault(".".join(map(str, fault["loc"])), fault["msg"]) for fault in error.errors()]


def _fault(place: str, message: str) -> str:
    return f"{PREFIX}{place.upper()}: {message.removeprefix('Value error, ')}"
