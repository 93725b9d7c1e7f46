"""The API's settings: environment variables, read once, frozen."""

from pydantic import Field

from state.settings import StateSettings


class Settings(StateSettings):
    """What the API needs beyond what it shares with the worker."""

    host: str = Field(default="127.0.0.1", description="The address the API listens on.")
    port: int = Field(
        default=8000, ge=0, le=65535, description="The port the API listens on; 0: any free one."
    )
    max_upload_bytes: int = Field(
        default=100 * 2**30, ge=1, description="The most bytes that one request may upload."
    )
    max_spec_bytes: int = Field(
        default=2**20, ge=1, description="The most bytes of a JSON body, or of the spec of a multipart one."
    )
    max_files: int = Field(default=1000, ge=1, description="The most files in one multipart upload.")
    min_free_bytes: int = Field(
        default=2**30, ge=0, description="Uploads are refused that would leave less than this on the disk."
    )
    idle_timeout_s: float = Field(
        default=60, gt=0, description="An upload from which nothing arrives for this long is dropped."
    )
    shutdown_s: int = Field(
        default=10, ge=0, description="How long requests under way may take to end when the API is stopped."
    )
