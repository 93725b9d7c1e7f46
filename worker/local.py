"""Compress a checkpoint on this machine without a service."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from schemas.checkpoint import FileInfo
from schemas.format.files import open_checkpoint
from schemas.planning.references import NO_REFERENCES, References, open_references
from schemas.report import REPORT_NAME, Report
from schemas.spec import CompressionSpec
from worker.pipeline import CompressionRequest, compress
from worker.progress import Observer
from worker.work_plan import refuse_ids

HASH_BYTES = 4 << 20
FILE_SUFFIX = ".safetensors"


def compress_local(
    source: Path,
    target: Path,
    spec: CompressionSpec,
    *,
    references: References[Path] = NO_REFERENCES,
    device: torch.device,
    observe: Observer,
) -> Report:
    """Compress a checkpoint into a new file or directory, which appears only once it is complete.

    Parameters
    ----------
    source
        A safetensors file, an index, or a directory that holds one of them, perhaps with its companions.
    target
        A new directory; or, for a single file, a new name that ends in `.safetensors`, and the report is
        written next to it as `.report.json`. Finished layers are kept in `<target>.work` until the end, so
        that an interrupted run can resume.
    references
        The Gram matrices of the layers' inputs, and the base of the difference to factor; each a safetensors
        file, an index or a directory.
    device
        Where the numerics run.
    observe
        Called with the progress before each layer and each tensor that is written.

    Raises
    ------
    CheckpointError
        If an input file or the index is malformed, or they do not agree.
    MisfitError
        If the calibration or the base is malformed or does not fit the checkpoint.
    FileExistsError
        If the target exists.
    FileNotFoundError
        If the input does not exist.
    ValueError
        If the target is a file, but the input is sharded or the result an adapter; or if the spec names a
        checkpoint by its id.
    """
    refuse_ids(spec)
    if target.exists():
        raise FileExistsError(f"{target} exists; give a new name")
    checkpoint = open_checkpoint(source)
    if target.suffix == FILE_SUFFIX and checkpoint.index is not None:
        raise ValueError(f"{source} is sharded; give a directory as output, not {target}")
    if target.suffix == FILE_SUFFIX and spec.layout == "adapter" and references.base is not None:
        raise ValueError(f"an adapter has two files; give a directory as output, not {target}")
    if target.suffix == FILE_SUFFIX:
        checkpoint = replace(checkpoint, companions=())
    work = target.with_name(target.name + ".work")
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    files = tuple(_file_info(checkpoint.path(name)) for name in checkpoint.names)
    opened = open_references(references)
    reference_files = {
        field: tuple(_file_info(found.path(name)) for name in found.names) for field, found in opened.given()
    }
    request = CompressionRequest(
        checkpoint,
        files,
        spec,
        spool_dir=work,
        result_dir=part,
        references=opened,
        reference_files=References(**reference_files),
        just_hashed=True,
    )
    report = compress(request, device=device, observe=observe)
    _publish(part, target)
    shutil.rmtree(work, ignore_errors=True)
    return report


def _publish(part: Path, target: Path) -> None:
    if target.suffix != FILE_SUFFIX:
        part.replace(target)
        return
    (part / REPORT_NAME).replace(target.with_suffix(".report.json"))
    (file,) = part.iterdir()
    file.replace(target)
    part.rmdir()


def _file_info(path: Path) -> FileInfo:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BYTES):
            digest.update(block)
    return FileInfo(name=path.name, size_bytes=path.stat().st_size, sha256=digest.hexdigest())
