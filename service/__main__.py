"""`python -m service`: the API in this process."""

import sys

from pydantic import ValidationError

from service.server import serve
from service.settings import Settings
from state.settings import setting_errors


def main() -> int:
    """Serve until told to stop."""
    try:
        settings = Settings()
    except ValidationError as error:
        sys.stderr.writelines(f"{fault}\n" for fault in setting_errors(error))
        return 1
    if settings.redis_url is None:
        sys.stderr.write("ECKART_REDIS_URL is not set; give it, or run `eckart serve`, which sets it\n")
        return 2
    serve(settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
