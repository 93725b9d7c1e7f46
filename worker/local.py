"""Compression without a service: a file, a directory or an index in, a directory out."""

import hashlib
import shutil
from collections.abc import Iterable
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
    """Compress into a new place, which appears when all of it is there.

    Parameters
    ----------
    source
        A safetensors file, an index, or a directory that holds one of them.
    target
        A directory that does not exist yet; or, for a single file, a name that ends in `.safetensors`, with
        the report beside it as `.report.json`. Finished layers wait beside it in `<target>.work` until the
        end, so that a broken run goes on where it was.
    calibration
        A safetensors file, an index or a directory with the Gram matrices of the layers' inputs.

    Raises
    ------
    CheckpointError
        If an input file or the index is malformed, or they do not fit together; CalibrationError, if that is
        so of the calibration.
    FileExistsError
        If the target exists.
    FileNotFoundError
        If the input does not.
    ValueError
        If a sharded checkpoint is to become a single file, or the spec names a calibration by an id.
    """
    if spec.calibration is not None:
        raise ValueError("the spec names a calibration that a service holds; give its file instead")
    if target.exists():
        raise FileExistsError(f"{target} exists; name a new place")
    checkpoint = open_checkpoint(source)
    if target.suffix == FILE_SUFFIX and checkpoint.index is not None:
        raise ValueError(f"{source} is sharded; name a directory for its files, not {target}")
    work = target.with_name(target.name + ".work")
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    files = tuple(_file_info(checkpoint.path(name)) for name in checkpoint.names)
    grams = None if calibration is None else open_calibration(calibration)
    gram_files = () if grams is None else tuple(_file_info(grams.path(name)) for name in grams.names)
    # Layers of another input or spec must not be taken for this one's.
    spool_dir = work / _fingerprint((*files, *gram_files), spec)
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
