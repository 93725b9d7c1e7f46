"""What the memory needs to know, from environment variables, read once."""

from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class StateSettings(BaseSettings):
    """Settings that the service and the worker share."""

    model_config = SettingsConfigDict(env_prefix="ECKART_", frozen=True, extra="ignore")

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
        default=60, gt=0, description="Seconds without a heartbeat after which a job goes to another worker."
    )
    heartbeat_s: float = Field(
        default=15, gt=0, description="Seconds between two heartbeats; at most half of the lease."
    )
    reaper_s: float = Field(
        default=10, gt=0, description="Seconds between two looks for jobs whose worker or message was lost."
    )
    max_attempts: int = Field(
        default=3, ge=1, description="How often a job is started before it fails as `worker-lost`."
    )

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
