"""The worker's settings, read once from the environment."""

from typing import Literal

from pydantic import Field

from state.settings import StateSettings

DeviceChoice = Literal["auto", "cpu", "cuda"]


class Settings(StateSettings):
    """Settings of a worker process."""

    workers: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Number of processes in one worker service, each running one job.",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Number of threads per job; all processors if not given.",
    )
    device: DeviceChoice = Field(
        default="auto", description="Device for the numerics: `auto` is CUDA if available, else the CPU."
    )
