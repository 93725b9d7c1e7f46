"""`python -m service`: the API in this process."""

import sys

from pydantic import ValidationError

from service.server import serve
from service.settings import Settings
from state.settings import setting_errors


def main() -> int:
    """Serve until SIGINT or SIGTERM; return the exit status."""
    try:
        settings = Settings()
    except ValidationError as error:
        sys.stderr.writelines(f"{line}\n" for line in setting_errors(error))
        return 1
    if settings.redis_url is None:
        sys.stderr.write("ECKART_REDIS_URL is not set: set it, or run `eckart serve`, which does\n")
        return 2
    serve(settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
