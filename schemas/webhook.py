"""Webhooks: what a job's request says of them, and what the job's document shows."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.base import Input, Output

WebhookEvent = Literal["job.ended"]

URL_EXAMPLE = "https://hooks.example.com/eckart"


class WebhookRequest(Input):
    """Where to send a message when something happens to the job (standardwebhooks.com)."""

    url: Annotated[str, Field(max_length=2048)] = Field(
        description="Address that gets a POST; its host must be one that the operator allows.",
        examples=[URL_EXAMPLE],
    )
    events: Annotated[tuple[WebhookEvent, ...], Field(min_length=1, max_length=8)] = Field(
        default=("job.ended",), description="What to tell.", examples=[["job.ended"]]
    )


class Delivery(Output):
    """One attempt to deliver the message."""

    message: str = Field(
        description="The `webhook-id` of the message, the same at each attempt.", examples=["msg_J5b0_3"]
    )
    attempt: int = Field(description="Number of the attempt.", examples=[1])
    at: str = Field(description="Time of the attempt.", examples=["2026-01-02T03:04:07Z"])
    status: int | None = Field(description="HTTP status of the answer; null without one.", examples=[204])
    error: str | None = Field(description="What went wrong; null if delivered.", examples=[None])
    next_at: str | None = Field(
        description="Time of the next attempt; null if there will be none.", examples=[None]
    )


class Webhook(Output):
    """The webhook of a job."""

    url: str = Field(description="The address, without its query.", examples=[URL_EXAMPLE])
    events: tuple[str, ...] = Field(description="What it tells.", examples=[["job.ended"]])
    deliveries: tuple[Delivery, ...] = Field(description="The attempts to deliver, oldest first.")
