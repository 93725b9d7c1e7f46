"""`python -m service.redis_password FOLDER`: make a password for Redis once, for the containers to read."""

import os
import secrets
import sys
from pathlib import Path

PASSWORD_NAME, CONFIG_NAME = "redis.password", "redis.conf"
# Redis runs as another user, in the group of this one.
READABLE_BY_GROUP = 0o440


def make_password(folder: Path) -> None:
    """Write a password and a configuration that asks for it, unless they are there already."""
    password = folder / PASSWORD_NAME
    if not password.exists():
        _publish(password, secrets.token_hex(32))
    _publish(folder / CONFIG_NAME, f"requirepass {password.read_text()}\n")


def _publish(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, READABLE_BY_GROUP)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


if __name__ == "__main__":
    make_password(Path(sys.argv[1]))
