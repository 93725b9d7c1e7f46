"""`python -m service`: the API in this process, or one reconciliation."""

import argparse
import sys
import tempfile
from pathlib import Path

from pydantic import ValidationError

from service.app import open_services
from service.maintenance.reconciliation import reconcile
from service.server import serve
from service.settings import Settings
from service.standalone.redis_server import running_server
from state.data_dir import DataDir
from state.errors import RedisUnavailable
from state.settings import setting_errors


def main() -> int:
    """Serve until SIGINT or SIGTERM, or reconcile once; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m service", description=main.__doc__)
    parser.add_argument("command", nargs="?", choices=["reconcile"], help="default: serve the API")
    arguments = parser.parse_args()
    try:
        settings = Settings()
    except ValidationError as error:
        sys.stderr.writelines(f"{line}\n" for line in setting_errors(error))
        return 1
    if arguments.command == "reconcile":
        return _reconcile(settings)
    if settings.redis_url is None:
        sys.stderr.write("ECKART_REDIS_URL is not set: set it, or run `eckart serve`, which does\n")
        return 2
    serve(settings)
    return 0


def _reconcile(settings: Settings) -> int:
    data_dir = settings.data_dir.absolute()
    redis_url = settings.redis_url or running_server(
        DataDir(data_dir).run, temp_dir=Path(tempfile.gettempdir())
    )
    if redis_url is None:
        sys.stderr.write(
            f"no `eckart serve` of this user runs on {data_dir}: start it, or set ECKART_DATA_DIR to the "
            "folder of the one that runs, or set ECKART_REDIS_URL\n"
        )
        return 2
    services = open_services(settings.model_copy(update={"redis_url": redis_url, "data_dir": data_dir}))
    try:
        done = reconcile(services)
    except RedisUnavailable as error:
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        services.close()
    found = [f"put in order: {count} {what}\n" for what, count in sorted((+done).items())]
    sys.stdout.writelines(found or ["all was in order\n"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
