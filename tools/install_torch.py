"""Install the pinned torch from the smallest source that this machine can reach.

`make setup` and the Dockerfile run this with the Python that torch is for. It needs nothing but pip.
`TORCH_INDEX` decides where torch comes from: nothing (see `sources`), a backend whose index uv knows (`cpu`,
`cu130`, …), the URL of an index, or `pip` for what pip finds.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import unquote

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
PIP_INSTALL = (sys.executable, "-m", "pip", "install", "--constraint", str(CONSTRAINTS))
# A firewall may swallow packets instead of refusing them, so looking for an index has to end by itself.
PROBE_LIMIT_S = 30
PROBE_PATIENCE = {"UV_HTTP_TIMEOUT": "10", "UV_HTTP_RETRIES": "0"}
CUDA_SIZE = "on Linux and x86 that is the CUDA build, a download of about 2.7 GB"


@dataclass(frozen=True)
class Source:
    """A place that may offer torch: `links` (pip's find-links), `backend`, `url` or `pip`."""

    kind: str
    name: str = ""


def sources(torch_index: str, *, wants_cpu_build: bool) -> list[Source]:
    """Return where to look for torch, in this order."""
    links, cpu, pip = Source("links"), Source("backend", "cpu"), Source("pip")
    if not torch_index:
        return [links, cpu, pip] if wants_cpu_build else [links, pip]
    if torch_index == "pip":
        return [pip]
    if "://" in torch_index:
        return [Source("url", torch_index)]
    # A wheel that the machine itself offers may well be a CPU build, so no other backend looks there.
    return [links, cpu] if torch_index == "cpu" else [Source("backend", torch_index)]


def has_nvidia_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU with a driver."""
    if Path("/proc/driver/nvidia/version").exists():
        return True
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    done = subprocess.run([tool, "--list-gpus"], capture_output=True, check=False)
    return done.returncode == 0 and bool(done.stdout.strip())


def pinned_version() -> str:
    """Return the version of torch in constraints.txt."""
    lines = CONSTRAINTS.read_text().splitlines()
    return next(line.removeprefix("torch==") for line in lines if line.startswith("torch=="))


def is_installed(wanted: str) -> bool:
    """Whether that version is installed, whatever it was built for (`2.13.0+cpu` is a 2.13.0)."""
    try:
        return version("torch").partition("+")[0] == wanted
    except PackageNotFoundError:
        return False


def install(source: Source, requirement: str) -> bool:
    """Install torch from this source and print what is taken; False if the source does not offer it."""
    match source.kind:
        case "links":
            return _install_from_links(requirement)
        case "backend":
            return _install_from_backend(source.name, requirement)
        case "url":
            return _run(*PIP_INSTALL, "--no-deps", "--index-url", source.name, requirement, says=source.name)
        case _:
            return _run(*PIP_INSTALL, requirement, says=f"what pip finds; {CUDA_SIZE}")


def _install_from_links(requirement: str) -> bool:
    command = (*PIP_INSTALL, "--quiet", "--no-deps", "--no-index", requirement)
    dry_run = subprocess.run(
        [*command, "--dry-run", "--report", "-"], capture_output=True, text=True, check=False
    )
    if dry_run.returncode:
        return False
    url = json.loads(dry_run.stdout)["install"][0]["download_info"]["url"]
    wheel = Path(unquote(url.removeprefix("file://")))
    size = f", {wheel.stat().st_size / 1e6:.0f} MB" if wheel.is_file() else ""
    return _run(*command, says=f"{wheel.name}{size}, from pip's find-links")


def _install_from_backend(backend: str, requirement: str) -> bool:
    if subprocess.run([*PIP_INSTALL, "uv"], capture_output=True, check=False).returncode:
        return False
    options = ("--no-deps", "--torch-backend", backend, "--python", sys.executable)
    command = (sys.executable, "-m", "uv", "pip", "install", *options, requirement)
    try:
        dry_run = subprocess.run(
            [*command, "--dry-run"],
            env=os.environ | PROBE_PATIENCE,
            capture_output=True,
            check=False,
            timeout=PROBE_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return False
    if dry_run.returncode:
        return False
    size = "a download of about 200 MB" if backend == "cpu" else "a download of gigabytes"
    return _run(*command, says=f"the {backend} build, {size}")


def _run(*command: str, says: str) -> bool:
    print(f"{command[-1]}: taking {says}", flush=True)
    return subprocess.run(command, check=False).returncode == 0


def _attempts(torch_index: str, requirement: str) -> Iterator[bool]:
    wants_cpu_build = sys.platform == "linux" and not has_nvidia_gpu()
    for source in sources(torch_index, wants_cpu_build=wants_cpu_build):
        yield install(source, requirement)


def main() -> int:
    """Install torch where it is missing; 1 if no source has it."""
    wanted = pinned_version()
    torch_index = os.environ.get("TORCH_INDEX", "")
    if is_installed(wanted) or any(_attempts(torch_index, f"torch=={wanted}")):
        return 0
    print(
        f"torch {wanted} was not found"
        + (f" with TORCH_INDEX={torch_index}" if torch_index else "")
        + ". TORCH_INDEX=cpu (or cu130, …) takes a build from torch's own index, a URL another index,"
        f" and TORCH_INDEX=pip what pip finds ({CUDA_SIZE}).",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
