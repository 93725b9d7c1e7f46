"""worker/fingerprint.py, and the check of worker/report.py: finished layers belong to one piece of work."""

from dataclasses import replace

import pytest
from safetensors.torch import save_file

from schemas.checkpoint import FileInfo
from schemas.format.files import open_checkpoint
from schemas.planning.references import References
from schemas.spec import CompressionSpec
from worker import fingerprint
from worker.fingerprint import work_fingerprint
from worker.layer import kept_outcome
from worker.report import WrongLayers, check_outcomes
from worker.work_plan import plan_work

FILE = FileInfo(name="model.safetensors", size_bytes=1, sha256="0" * 64)
SPEC = CompressionSpec(rank=4)
NONE: References[tuple[FileInfo, ...]] = References()


@pytest.fixture
def checkpoint(tmp_path, gaussian):
    save_file({f"{name}.weight": gaussian(32, 32) for name in "abc"}, tmp_path / "model.safetensors")
    return open_checkpoint(tmp_path / "model.safetensors")


@pytest.fixture
def work(checkpoint):
    return plan_work(checkpoint, SPEC, NONE)


def test_equal_work_has_equal_names_wherever_its_files_are(work, checkpoint, tmp_path):
    (tmp_path / "moved").mkdir()
    (tmp_path / "model.safetensors").rename(tmp_path / "moved" / "model.safetensors")
    moved = plan_work(open_checkpoint(tmp_path / "moved" / "model.safetensors"), SPEC, NONE)
    assert work_fingerprint(work, SPEC, [FILE], NONE) == work_fingerprint(moved, SPEC, [FILE], NONE)


def test_whatever_a_layer_depends_on_gives_another_name(work, monkeypatch):
    other = FILE.model_copy(update={"sha256": "1" * 64})
    dense = replace(work.tasks[1], layer=replace(work.tasks[1].layer, rank=None, reason="tied"))
    names = [
        work_fingerprint(work, SPEC, [FILE], NONE),
        work_fingerprint(work, SPEC, [other], NONE),
        work_fingerprint(work, SPEC, [FILE], References(calibration=(FILE,))),
        work_fingerprint(work, SPEC, [FILE], References(base=(FILE,))),
        work_fingerprint(work, SPEC.model_copy(update={"seed": 1}), [FILE], NONE),
        work_fingerprint(replace(work, tasks=work.tasks[1:]), SPEC, [FILE], NONE),
        work_fingerprint(replace(work, tasks=(work.tasks[0], dense, work.tasks[2])), SPEC, [FILE], NONE),
    ]
    monkeypatch.setattr(fingerprint, "NUMERICS", -1)
    names.append(work_fingerprint(work, SPEC, [FILE], NONE))
    assert len(set(names)) == len(names)


def test_outcomes_that_are_not_those_of_the_plan_are_refused(work):
    outcomes = [kept_outcome(task, "tied") for task in work.tasks]
    check_outcomes(work, outcomes)
    for wrong in (outcomes[1:], outcomes[:-1], [*outcomes, outcomes[0]], outcomes[::-1], [outcomes[1]] * 3):
        with pytest.raises(WrongLayers, match="weight"):
            check_outcomes(work, wrong)
