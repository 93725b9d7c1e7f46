"""The bundled server: its packages run as child processes, and this process never imports them.

A wheel holds `schemas`, `state`, `worker` and `service` under `eckart/_server/`; in a source checkout they
are in its root. That folder comes first on a child's path, ahead of any other package of the same name.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from eckart.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import FrameType

PACKAGE = Path(__file__).parent


class LocalRunError(Exception):
    """The bundled worker failed; it wrote the reason to stderr."""


def serve(settings: Mapping[str, str]) -> None:
    """Become the whole service on this machine, with these variables for it; this does not return.

    The process id stays, so that Ctrl-C and SIGTERM reach the service itself.
    """
    _check_installed("service", "worker")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, _command("service.standalone"), {**_environment(), **settings})  # noqa: S606 - a fixed list


def run_worker_command(
    verb: str,
    *paths: Path,
    spec: str,
    references: Mapping[str, Path],
    tell: Callable[[str], None] | None = None,
) -> str:
    """Run one command of the bundled worker and return its output.

    `tell` gets each line of what it says meanwhile, which otherwise goes to our stderr.
    """
    _check_installed("worker")
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        file.write(spec)  # a spec may be longer than an argument of a command can be
        file.flush()
        arguments = [verb, *map(str, paths), "--spec", file.name]
        for option, path in references.items():
            arguments += [f"--{option}", str(path)]
        command = [*_command("worker"), *arguments]
        said = None if tell is None else subprocess.PIPE
        # Not a pipe, which nobody empties while what is said is read.
        with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
            with (
                subprocess.Popen(
                    command, env=_environment(), stdout=output, stderr=said, text=True, errors="replace"
                ) as child,
                _ends_with_us(child),
            ):
                if tell is not None and child.stderr is not None:
                    for line in child.stderr:
                        tell(line.rstrip("\n"))
                child.wait()
            if child.returncode:
                raise LocalRunError
            output.seek(0)
            return output.read()


def _command(module: str) -> list[str]:
    # -P: the current directory is not on the path.
    return [sys.executable, "-P", "-m", module]


def _environment() -> Mapping[str, str]:
    path = [str(_server_folder()), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def _server_folder() -> Path:
    bundled = PACKAGE / "_server"
    return bundled if bundled.is_dir() else PACKAGE.parent


@contextmanager
def _ends_with_us(child: subprocess.Popen[str]) -> Iterator[None]:
    """End the child when SIGTERM or Ctrl-C ends this process."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except BaseException:
        child.terminate()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_installed(*extras: str) -> None:
    """Raise an InputError if a package that these extras need is missing."""
    missing = [name for name in dict.fromkeys(_needed(extras)) if not _is_installed(name)]
    if missing:
        raise InputError(
            f"the server is not installed here ({', '.join(missing)} missing): pip install 'eckart[server]'"
        )


def _needed(extras: Sequence[str]) -> Iterator[str]:
    for requirement in importlib.metadata.requires("eckart") or ():
        if re.search(rf"extra == .({'|'.join(extras)}).$", requirement):
            name = re.match(r"[\w-]+", requirement)
            assert name is not None
            yield name[0].replace("-", "_")


def _is_installed(module: str) -> bool:
    try:
        return sys.modules.get(module) is not None or find_spec(module) is not None
    except ImportError:
        return False
