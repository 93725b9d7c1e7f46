"""A link to a result, for what sends no key."""

from pydantic import Field

from schemas.base import Output


class Link(Output):
    """An address that needs no key for a while."""

    href: str = Field(
        description="The address; it answers GET and HEAD, with ranges, to whoever has it.",
        examples=["/v1/jobs/J5b0/archive?link=1767326645.9f86d081…"],
    )
    expires_at: str | None = Field(
        description="When it stops to be taken, also if its key is removed or replaced before; null where "
        "the service has no keys, and `href` is the address itself.",
        examples=["2026-01-02T04:04:05Z"],
    )
