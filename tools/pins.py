"""What constraints.txt has to pin, and the locks with hashes that the images install from.

`make locks` writes the locks; uv asks the package index for the hashes. tests/tools/test_pins.py compares
constraints.txt and the locks with what `closure` finds.
"""

import subprocess
import sys
import tomllib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "locks"
# A requirement counts if it applies to one of these.
PYTHONS = ("3.11.0", "3.11.7", "3.12.0", "3.13.0", "3.14.0")
# torch's own pins choose NVIDIA's libraries, and only the CUDA build has them.
FROM_TORCH = ("nvidia-", "cuda-", "triton")


@cache
def pins() -> dict[str, str]:
    """Return the version of each distribution in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def needed(*extras: str) -> set[str]:
    """Return the distributions that `eckart[extras]` needs, with all that they need, as installed here."""
    return closure(Requirement(f"eckart[{','.join(extras)}]"))


def build_requirements() -> set[str]:
    """Return what builds the package, and what tools/install_torch.py may need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return closure(*map(Requirement, project["build-system"]["requires"]), Requirement("uv"))


def tool(pin: str, command: str, *plugins: str) -> list[str]:
    """Return the command that runs a tool which is no dependency, in an environment of its own."""
    run = ("-m", "uv", "tool", "run", "--quiet")
    beside = [part for plugin in plugins for part in ("--with", plugin)]
    return [sys.executable, *run, "--from", pin, *beside, command]


def closure(*roots: Requirement) -> set[str]:
    """Return the names of these distributions and of all that they need on Linux, but for eckart itself."""
    waiting, seen = list(roots), set[tuple[str, str]]()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting += _requires(name, extra)
    return {name for name, _ in seen} - {"eckart"}


def _requires(name: str, extra: str) -> list[Requirement]:
    lines = _own_requirements(extra) if name == "eckart" else _installed_requirements(name)
    requirements = [Requirement(line) for line in lines]
    return [one for one in requirements if _applies(one, extra) and not one.name.startswith(FROM_TORCH)]


def _own_requirements(extra: str) -> Iterable[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return list(project["optional-dependencies"][extra] if extra else project["dependencies"])


def _installed_requirements(name: str) -> Iterable[str]:
    try:
        return distribution(name).requires or ()
    except PackageNotFoundError:  # Another Python than this one needs it.
        return ()


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or any(
        requirement.marker.evaluate(
            {
                "extra": extra,
                "python_full_version": python,
                "python_version": python.rpartition(".")[0],
                "sys_platform": "linux",
                "platform_system": "Linux",
            }
        )
        for python in PYTHONS
    )


def locked() -> dict[str, set[str]]:
    """Return what each lock holds; none holds torch, whose builds come from several places."""
    return {
        "build": build_requirements(),
        "service": needed("service"),
        "worker": needed("worker") - {"torch"},
    }


def main() -> None:
    """Write the locks."""
    for lock, names in locked().items():
        requirements = "\n".join(f"{name}=={pins()[name]}" for name in sorted(names))
        options = ("--quiet", "--no-deps", "--generate-hashes", "--no-header", "--no-annotate")
        command = [sys.executable, "-m", "uv", "pip", "compile", *options, "-"]
        hashed = subprocess.run(command, input=requirements, stdout=subprocess.PIPE, text=True, check=True)
        (LOCKS / f"{lock}.txt").write_text(f"# Made by `make locks` from constraints.txt.\n{hashed.stdout}")


if __name__ == "__main__":
    main()
