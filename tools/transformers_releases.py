"""Run the tests of `eckart.transformers` on several releases of transformers: `make test-transformers`.

Each release gets an environment under `.venv/transformers`, which takes from `.venv` what it does not need in
another version, such as torch. Give releases as arguments to try only those.
"""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

RELEASES = ("4.57.1", "4.57.6", "5.0.0", "5.6.2", "5.12.1", "5.18.0", "5.24.0")
ENVIRONMENTS = Path(sys.prefix) / "transformers"
# All but the classes, which not every release has.
TESTS = ("tests/eckart/transformers", "--ignore=tests/eckart/transformers/test_models.py")
READY = "ready"


def main(releases: list[str]) -> int:
    """Try the releases and print which passed."""
    passed = {release: _passes(_environment(release), release) for release in releases or RELEASES}
    for release, did in passed.items():
        print(f"transformers {release:8} {'passed' if did else 'FAILED'}")
    return 0 if all(passed.values()) else 1


def _environment(release: str) -> Path:
    """Return the Python of an environment with this release, and make it first."""
    folder = ENVIRONMENTS / release
    python = folder / "bin" / "python"
    if not (folder / READY).exists():
        venv.create(folder, clear=True)
        install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
        subprocess.run([*install, f"transformers=={release}"], check=True)
        packages = {"base": str(folder), "platbase": str(folder)}
        own = Path(sysconfig.get_path("purelib", "venv", vars=packages))
        # After its own packages, an environment looks for those of ours.
        (own / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
        (folder / READY).touch()
    return python


def _passes(python: Path, release: str) -> bool:
    print(f"transformers {release}", flush=True)
    pytest = [str(python), "-m", "pytest", "-q", "-p", "no:xdist", *TESTS]
    return subprocess.run(pytest, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
