"""Times as they are kept: whole microseconds since 1970, and their text."""

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def rfc3339(microseconds: int) -> str:
    """Format microseconds since 1970, always with six digits, so that times sort as text."""
    time = EPOCH + timedelta(microseconds=microseconds)
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")


def microseconds(time: str) -> int:
    """Parse what `rfc3339` formatted."""
    return (datetime.fromisoformat(time) - EPOCH) // timedelta(microseconds=1)
