"""Compress a checkpoint on this machine without a service."""

import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from schemas.checkpoint import FileInfo
from schemas.format.files import open_checkpoint
from schemas.planning.calibration import open_calibration
from schemas.report import REPORT_NAME, Report
from schemas.spec import CompressionSpec
from worker.pipeline import CompressionRequest, compress
from worker.progress import Observer

HASH_BYTES = 4 << 20
FILE_SUFFIX = ".safetensors"


def compress_local(
    source: Path,
    target: Path,
    spec: CompressionSpec,
    *,
    calibration: Path | None = None,
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
    calibration
        A safetensors file, an index or a directory with the Gram matrices of the layers' inputs.
    device
        Where the numerics run.
    observe
        Called with the progress before each layer and each tensor that is written.

    Raises
    ------
    CheckpointError
        If an input file or the index is malformed, or they do not agree.
    CalibrationError
        If the calibration is malformed or does not fit the checkpoint.
    FileExistsError
        If the target exists.
    FileNotFoundError
        If the input does not exist.
    ValueError
        If the input is sharded but the target is a file, or the spec names a calibration by its id.
    """
    if spec.calibration is not None:
        raise ValueError("the spec names a calibration by the id of a service; give its file instead")
    if target.exists():
        raise FileExistsError(f"{target} exists; give a new name")
    checkpoint = open_checkpoint(source)
    if target.suffix == FILE_SUFFIX and checkpoint.index is not None:
        raise ValueError(f"{source} is sharded; give a directory as output, not {target}")
    if target.suffix == FILE_SUFFIX:
        checkpoint = replace(checkpoint, companions=())
    work = target.with_name(target.name + ".work")
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    files = tuple(_file_info(checkpoint.path(name)) for name in checkpoint.names)
    grams = None if calibration is None else replace(open_calibration(calibration), companions=())
    gram_files = () if grams is None else tuple(_file_info(grams.path(name)) for name in grams.names)
    # An interrupted run with other weights or another spec must not be resumed.
    weights = (file for file in files if file.name not in checkpoint.companions)
    spool_dir = work / _fingerprint((*weights, *gram_files), spec)
    request = CompressionRequest(
        checkpoint,
        files,
        spec,
        spool_dir=spool_dir,
        result_dir=part,
        calibration=grams,
        calibration_files=gram_files,
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


def _fingerprint(files: Iterable[FileInfo], spec: CompressionSpec) -> str:
    text = "\n".join([spec.canonical(), *(file.sha256 for file in files)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
