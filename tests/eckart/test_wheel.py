"""What a user installs: one importable name, and a server that runs next to packages of any name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree, ignore_patterns
from zipfile import ZipFile

import httpx
import pytest
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parents[2]
SUFFIXES = {".py", ".lua", ".json", ".typed", ".js", ".css", ".html", ".svg"}
SERVER = ("schemas", "state", "worker", "service")
BUILD = "import setuptools.build_meta as backend; backend.build_{kind}({target!r})"
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("ECKART_", "PYTHON"))}


def build(kind, source, target):
    """Build an sdist or a wheel as pip does."""
    target.mkdir()
    command = [sys.executable, "-c", BUILD.format(kind=kind, target=str(target))]
    subprocess.run(command, cwd=source, env=CLEAN, capture_output=True, check=True)
    (path,) = target.iterdir()
    return path


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Copy the source, since a build leaves files in it."""
    tree = tmp_path_factory.mktemp("source") / "tree"
    tree.mkdir()
    for name in ("eckart", *SERVER):
        copytree(ROOT / name, tree / name, ignore=ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (tree / name).write_bytes((ROOT / name).read_bytes())
    return tree


@pytest.fixture(scope="module")
def wheel(tree):
    return build("wheel", tree, tree.parent / "wheel")


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Install the wheel into an environment of its own, on top of the packages that the tests run with.

    A path file adds those packages, and runs no path files of theirs: an editable install does not count.
    """
    place = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    (site,) = (place / "lib").glob("python*/site-packages")
    (site / "outer.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    pip = [sys.executable, "-m", "pip", "--python", place, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, wheel], env=CLEAN, check=True)
    return place


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Make a user's project whose packages have the server's names, and a model."""
    project = tmp_path_factory.mktemp("project")
    for name in SERVER:
        (project / name).mkdir()
        (project / name / "__init__.py").write_text("import os\nassert os.environ['MINE'] == 'wanted'\n")
        (project / name / "spec.py").write_text("OWNER = 'the user'\n")
    generator = torch.Generator().manual_seed(0)
    save_file({"a.weight": torch.randn(64, 48, generator=generator)}, project / "model.safetensors")
    save_file({"a.gram": torch.eye(48)}, project / "grams.safetensors")
    return project


@pytest.fixture
def eckart(installed, project):
    """Run `eckart` in the project, whose folder is also on the path."""
    environment = CLEAN | {"PYTHONPATH": str(project), "MINE": "not wanted"}

    def run(*arguments, **more):
        return subprocess.Popen(
            [installed / "bin" / "eckart", *arguments],
            cwd=project,
            env=environment | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


def contents(wheel):
    with ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist()}


def output(process):
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out


@contextmanager
def served(eckart, data_dir):
    """Run `eckart serve`; give its address."""
    process = eckart("serve", ECKART_PORT="0", ECKART_DATA_DIR=str(data_dir))
    try:
        line = process.stdout.readline()
        assert line.startswith("Eckart listens on "), process.stderr.read()
        yield line.split()[3].rstrip(",")
    finally:
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


def test_it_adds_one_importable_name(wheel):
    names = ZipFile(wheel).namelist()

    assert {name.partition("/")[0] for name in names} == {"eckart", "eckart-0.1.0.dist-info"}
    ours = [name for name in names if name.startswith("eckart/") and not name.startswith("eckart/_server/")]
    assert {name.split("/")[1] for name in ours if name.count("/") > 1} == {
        "commands",
        "torch",
        "train",
        "transformers",
    }


def test_nothing_is_installed_next_to_it_but_the_command(installed):
    (record,) = installed.glob("lib/python*/site-packages/eckart-*.dist-info/RECORD")
    files = [line.partition(",")[0] for line in record.read_text().splitlines()]

    outside = [name for name in files if name.split("/")[0] not in {"eckart", record.parent.name}]
    assert [Path(name).parts[-2:] for name in outside] == [("bin", "eckart")]


def test_every_file_of_the_source_is_in_it(wheel, tree):
    """A folder that pyproject.toml does not list would be missing."""
    inside = {name for name in ZipFile(wheel).namelist() if not name.startswith("eckart-")}
    paths = (path.relative_to(tree) for name in ("eckart", *SERVER) for path in (tree / name).rglob("*.*"))
    files = {str(path) for path in paths if path.suffix in SUFFIXES}

    assert inside == {name if name.startswith("eckart/") else f"eckart/_server/{name}" for name in files}


def test_a_source_distribution_builds_the_same_wheel(wheel, tree):
    sdist = build("sdist", tree, tree.parent / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tree.parent / "unpacked", filter="data")
    (unpacked,) = (tree.parent / "unpacked").iterdir()
    again = build("wheel", unpacked, tree.parent / "again")

    first, second = (
        {name: file.read(name) for name in file.namelist()} for file in map(ZipFile, (wheel, again))
    )
    assert first == second


def test_an_installed_package_leaves_a_users_own_packages_alone(installed, project):
    script = (
        "import eckart, eckart.cli, eckart.torch, schemas.spec, sys;"
        "others = sorted({'state', 'service', 'worker'} & sys.modules.keys());"
        "print(eckart.__file__, schemas.spec.OWNER, *others, sep='|')"
    )
    command = [installed / "bin" / "python", "-c", script]
    done = subprocess.run(
        command,
        cwd=project,
        env=CLEAN | {"MINE": "wanted"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    file, owner = done.stdout.strip().split("|")
    assert Path(file).is_relative_to(installed)
    assert owner == "the user"


def test_the_whole_service_runs_next_to_packages_of_the_same_names(eckart, project, tmp_path):
    with served(eckart, tmp_path / "data") as url:
        deadline = time.monotonic() + 60
        while httpx.get(f"{url}/readyz", verify=False).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        here = ("--url", url, "--rank", "4", "--json")
        plan = json.loads(output(eckart("plan", "model.safetensors", *here)))
        report = json.loads(
            output(eckart("compress", "model.safetensors", *here, "--out", str(tmp_path / "out")))
        )
        assert httpx.get(f"{url}/v1/checkpoints/grams").status_code == 404

    assert plan["checkpoint"] == "model"
    assert [layer["rank"] for layer in plan["layers"]] == [layer["rank"] for layer in report["layers"]] == [4]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.safetensors", "report.json"]


def test_the_bundled_worker_plans_and_compresses_without_a_service(eckart, tmp_path):
    options = ("--local", "--rank", "4", "--json", "--calibration", "grams.safetensors")
    plan = json.loads(output(eckart("plan", "model.safetensors", *options)))
    report = json.loads(
        output(eckart("compress", "model.safetensors", *options, "--out", str(tmp_path / "out")))
    )

    for document in (plan, report):
        (layer,) = document["layers"]
        assert (layer["rank"], layer["calibrated"]) == (4, True)
    assert plan["totals"]["parameters_after"] == report["totals"]["parameters_after"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.safetensors", "report.json"]
