"""A description of the machine that was measured."""

import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.options import Options

FORCED_KERNELS = "OPENBLAS_CORETYPE"


def free_kernels() -> str | None:
    """Let OpenBLAS choose its kernels by the processor, in children too; return the setting it had."""
    return os.environ.pop(FORCED_KERNELS, None)


def describe_machine(options: Options, forced_kernels: str | None) -> str:
    """List in a few lines what the figures depend on."""
    was = f", unset for measuring (was {forced_kernels})" if forced_kernels else ", not set"
    cores, memory_gib = len(os.sched_getaffinity(0)), _memory_bytes() / 2**30
    settings = f"scale {options.scale:g}, at most {options.rounds} rounds, {options.threads} threads"
    lines = {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, load average {os.getloadavg()[0]:.2f} at the start",
        "machine": f"{_processor()}, {cores} cores, {memory_gib:.0f} GiB, {platform.platform()}",
        "disk": _disk(options.place),
        "python": platform.python_version(),
        "torch": _torch(),
        "kernels": f"{FORCED_KERNELS}{was}",
        "settings": settings,
    }
    return "\n".join(f"{name:<9} {text}" for name, text in lines.items())


def _processor() -> str:
    info = Path("/proc/cpuinfo").read_text()
    fields = {name: re.search(rf"^{name}\s*: (.*)$", info, re.MULTILINE) for name in ("model name", "model")}
    name, model = (match[1].strip() if match else "unknown" for match in fields.values())
    return f"{name} (model {model})"


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _disk(place: Path) -> str:
    mounts = [line.split()[:3] for line in Path("/proc/mounts").read_text().splitlines()]
    within = [mount for mount in mounts if place.is_relative_to(mount[1])]
    device, where, kind = max(within, key=lambda mount: len(mount[1]))
    return f"{kind} on {device}, mounted at {where}"


def _torch() -> str:
    import torch

    settings = torch.__config__.show()
    facts = (r"CPU capability usage: (\S+)", r"BLAS_INFO=(\w+)", r"(Math Kernel Library Version \S+)")
    found = [match[1] for fact in facts if (match := re.search(fact, settings))]
    return f"{torch.__version__}: {', '.join(found)}"
