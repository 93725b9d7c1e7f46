"""The worker's settings, read once from the environment."""

from typing import Literal

from pydantic import Field

from state.settings import StateSettings


class Settings(StateSettings):
    """What a worker process needs to know besides where the state is."""

    workers: int = Field(default=1, ge=1, le=1024, description="Jobs that one worker works on at a time.")
    threads: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Threads of the numerics, per job; all processors if not given.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where the numerics run: `auto` is CUDA where there is one."
    )
