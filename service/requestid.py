"""The id of the request that is being answered, for every line that is logged meanwhile."""

import logging
from contextvars import ContextVar

OUTSIDE = "-"

# A task, and the threads that work for it, see the id of their own request alone.
request_id: ContextVar[str] = ContextVar("request_id", default=OUTSIDE)


class WithRequestId(logging.Filter):
    """Gives each record the id of its request."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let everything through."""
        record.request_id = request_id.get()
        return True
