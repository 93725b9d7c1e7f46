"""What schemathesis does not know by itself of this API; it imports this file, and the project not."""

from typing import Any

import schemathesis

schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")


@schemathesis.hook  # type: ignore[untyped-decorator]  # not installed beside the project
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """Ask for whole reports: a part of one has the type of JSON by RFC 9110, and schemathesis parses it."""
    if case.path.endswith("/report"):
        case.headers.pop("Range", None)
