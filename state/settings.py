"""What the memory needs to know, from environment variables, read once."""

from pathlib import Path

from pydantic import Field
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
        default=15, gt=0, description="Seconds between two heartbeats; well below the lease."
    )
    reaper_s: float = Field(
        default=10, gt=0, description="Seconds between two looks for jobs whose worker or message was lost."
    )
    max_attempts: int = Field(
        default=3, ge=1, description="How often a job is started before it fails as `worker-lost`."
    )
