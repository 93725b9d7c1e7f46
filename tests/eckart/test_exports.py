"""What `import eckart` brings, and what it must not bring."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import eckart

ROOT = Path(__file__).parents[2]


def test_the_public_names_are_these():
    assert eckart.__all__ == [
        "AnswerError",
        "AsyncClient",
        "Client",
        "DigestError",
        "EckartError",
        "InputError",
        "JobFailed",
        "LoadError",
        "ProblemError",
        "Progress",
        "ServiceError",
        "TransferError",
        "UnreachableError",
        "WaitTimeoutError",
        "calibrate",
        "merge_statistics",
    ]
    assert all(hasattr(eckart, name) for name in eckart.__all__)


@pytest.mark.parametrize("module", ["eckart", "eckart.cli"])
def test_the_client_needs_nothing_but_httpx_and_pydantic(module):
    heavy = (
        "'torch', 'safetensors', 'numpy', 'scipy', 'fastapi', 'starlette', 'uvicorn', 'celery', 'redis', "
        "'pydantic_settings', 'schemas', 'service', 'state', 'worker'"
    )
    script = f"import {module}, sys; print(sorted({{{heavy}}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


# fmt: off
NEEDED = {
    "httpx", "httpcore", "h11", "anyio", "certifi", "idna", "sniffio",
    "pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection",
    "eckart",
}
# fmt: on
BARE = """
import sys
class Bare:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Bare())
import httpx
from eckart import Client
from eckart.cli import main
with Client(transport=httpx.MockTransport(lambda request: httpx.Response(204))) as client:
    client.delete("J1")
print(main(["serve"]))
"""


def test_the_client_works_where_nothing_else_is_installed():
    """Blocks every installed package but httpx, pydantic and what those two need."""
    blocked = sorted(packages_distributions().keys() - NEEDED)
    script = f"BLOCKED = frozenset({blocked!r})\n{BARE}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert {"torch", "fastapi", "celery", "redis"} <= set(blocked)
    assert done.stdout.strip() == "1"
    assert "pip install 'eckart[server]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "script",
    [
        "import eckart.torch",
        "import eckart; eckart.calibrate(None, [], 'a.safetensors')",
        "import eckart; eckart.merge_statistics([], 'a.safetensors')",
    ],
)
def test_without_torch_the_message_names_the_extra_that_brings_it(script, tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert "No module named 'torch': pip install 'eckart[torch]'" in done.stderr.splitlines()[-1]
