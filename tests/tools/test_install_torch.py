"""Where torch comes from: tools/install_torch.py."""

import hashlib
import os
import subprocess
import venv
import zipfile
from base64 import urlsafe_b64encode
from pathlib import Path

import pip
import pytest

from tools.install_torch import Source, pinned_version, sources

SCRIPT = Path(__file__).parents[2] / "tools/install_torch.py"
LINKS, CPU, PIP = Source("links"), Source("backend", "cpu"), Source("pip")
# Port 9 answers nobody: a machine without any network.
OFFLINE = {
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_INDEX_URL": "http://127.0.0.1:9/",
    "PIP_RETRIES": "0",
    "PATH": "/usr/bin:/bin",
}


@pytest.mark.parametrize(
    ("torch_index", "wants_cpu_build", "expected"),
    [
        ("", True, [LINKS, CPU, PIP]),
        ("", False, [LINKS, PIP]),
        ("cpu", True, [LINKS, CPU]),
        ("cpu", False, [LINKS, CPU]),
        ("cu130", False, [Source("backend", "cu130")]),
        ("pip", True, [PIP]),
        ("file:///wheels", True, [Source("url", "file:///wheels")]),
    ],
)
def test_the_smallest_build_comes_first_and_an_index_that_is_named_comes_alone(
    torch_index, wants_cpu_build, expected
):
    assert sources(torch_index, wants_cpu_build=wants_cpu_build) == expected


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Make an environment with nothing but pip, which is that of the tests."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "pip").symlink_to(Path(pip.__file__).parent)
    return folder / "bin/python"


def run(python, **environment):
    return subprocess.run(
        [python, SCRIPT], env=OFFLINE | environment, capture_output=True, text=True, check=False
    )


def write_wheel(folder, version):
    """Write a wheel of a torch that holds one empty module."""
    info = f"torch-{version}.dist-info"
    files = {
        "torch/__init__.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {
        name: urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        for name, text in files.items()
    }
    record = "".join(f"{name},sha256={digest},{len(files[name])}\n" for name, digest in digests.items())
    with zipfile.ZipFile(folder / f"torch-{version}-py3-none-any.whl", "w") as wheel:
        for name, text in (files | {f"{info}/RECORD": record + f"{info}/RECORD,,\n"}).items():
            wheel.writestr(name, text)


def test_without_any_source_it_ends_and_says_what_to_do(python):
    done = run(python)

    assert done.returncode == 1
    assert "TORCH_INDEX=cpu" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wheel_of_the_machine_is_taken_without_a_network_and_only_once(python, tmp_path):
    write_wheel(tmp_path, f"{pinned_version()}+cpu")
    first = run(python, PIP_FIND_LINKS=str(tmp_path))
    second = run(python)

    assert (first.returncode, first.stderr) == (0, "")
    assert len(first.stdout.splitlines()) == 1
    assert "find-links" in first.stdout
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
