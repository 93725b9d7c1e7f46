"""`python -m service`: the API in this process."""

import sys

from service.server import serve
from service.settings import Settings


def main() -> int:
    """Serve until told to stop."""
    settings = Settings()
    if settings.redis_url is None:
        sys.stderr.write("ECKART_REDIS_URL is not set; give it, or run `eckart serve`, which sets it\n")
        return 2
    serve(settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
