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
        description="Number of threads per job. Unset: the processors that the affinity and the control "
        "group allow, divided by `ECKART_WORKERS`.",
    )
    layer_limit_s: float = Field(
        default=1800,
        gt=0,
        allow_inf_nan=False,
        description="Seconds after which a layer counts as hung and its process ends; a large layer has "
        "longer.",
    )
    retry_pause_s: float = Field(
        default=10,
        ge=0,
        le=60,
        allow_inf_nan=False,
        description="Seconds before a job is tried again after an error; 6 times as long if memory or disk "
        "space is short, 60 times if the storage fails.",
    )
    disk_wait_s: float = Field(
        default=86_400,
        ge=0,
        allow_inf_nan=False,
        description="How long a job waits for space on a full disk before it fails.",
    )
    device: DeviceChoice = Field(
        default="auto", description="Device for the numerics: `auto` is CUDA if available, else the CPU."
    )
