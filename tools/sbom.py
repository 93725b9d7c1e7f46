"""What the images contain, as CycloneDX documents: `make sbom`."""

import subprocess
from pathlib import Path

from tools.pins import LOCKS, ROOT, pins, tool

CYCLONEDX = "cyclonedx-bom==7.5.0"
OUT = ROOT / "build"


def write_sbom(image: str, out: Path) -> Path:
    """Write the packages of one image, with the hashes of its lock; torch has a version alone."""
    requirements = (LOCKS / f"{image}.txt").read_text()
    if image == "worker":
        requirements += f"torch=={pins()['torch']}\n"
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"sbom-{image}.cdx.json"
    options = ("requirements", "-", "--output-reproducible", "--output-file", str(path))
    subprocess.run([*tool(CYCLONEDX, "cyclonedx-py"), *options], input=requirements, text=True, check=True)
    return path


def main() -> None:
    """Write the documents of both images."""
    for image in ("service", "worker"):
        print(write_sbom(image, OUT).relative_to(ROOT))


if __name__ == "__main__":
    main()
