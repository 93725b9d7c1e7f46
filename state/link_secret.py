"""The secret that signs links to results: one for all processes that share a data directory."""

import secrets

from state.data_dir import DataDir
from state.files import AtomicFile, locked

SECRET_BYTES = 32


def link_secret(paths: DataDir) -> bytes:
    """Read the secret; the first who needs it makes it."""
    try:
        return paths.link_secret.read_bytes()
    except FileNotFoundError:
        with locked(paths.lock("link", "secret")):
            if not paths.link_secret.exists():
                with AtomicFile(paths.link_secret, mode=0o600) as file:
                    file.write(secrets.token_bytes(SECRET_BYTES))
                    file.publish()
        return paths.link_secret.read_bytes()
