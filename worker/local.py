"""Compression without a service: a file, a directory or an index in, a directory out."""

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch

from schemas.format.errors import CheckpointError
from schemas.format.header_stream import read_header
from schemas.format.index import INDEX_ENDING, check_shards, parse_index
from schemas.planning.calibration import CalibrationError
from schemas.report import REPORT_NAME, FileReport, Report
from schemas.spec import CompressionSpec
from worker.pipeline import CompressionRequest, compress
from worker.progress import Observer
from worker.work_plan import InputCheckpoint, InputFile

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
    files = tuple(_file_report(path) for path in _paths(checkpoint))
    grams = None if calibration is None else _open_calibration(calibration)
    gram_files = () if grams is None else tuple(_file_report(path) for path in _paths(grams))
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


def open_checkpoint(path: Path) -> InputCheckpoint:
    """Read the headers of a whole checkpoint and check that they fit together."""
    index_path = path if path.name.endswith(INDEX_ENDING) else None
    if path.is_dir():
        found = sorted(path.glob("*" + INDEX_ENDING)) or sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            raise FileNotFoundError(f"{path} holds {len(found)} checkpoints; name the file or the index")
        return open_checkpoint(found[0])
    if index_path is None:
        return InputCheckpoint((InputFile(path, read_header(path)),), None, None)
    index = parse_index(index_path.read_bytes())
    missing = [name for name in index.shards if not path.with_name(name).is_file()]
    if missing:
        raise FileNotFoundError(f"{path.name} names files that are not there: {', '.join(missing)}")
    headers = {name: read_header(path.with_name(name)) for name in index.shards}
    check_shards(index, headers)
    sources = tuple(InputFile(path.with_name(name), header) for name, header in headers.items())
    return InputCheckpoint(sources, index_path, index)


def _open_calibration(path: Path) -> InputCheckpoint:
    try:
        return open_checkpoint(path)
    except CheckpointError as error:
        raise CalibrationError(error.code, error.detail, error.pointer) from error


def _paths(checkpoint: InputCheckpoint) -> Iterable[Path]:
    yield from (source.path for source in checkpoint.sources)
    if checkpoint.index_path is not None:
        yield checkpoint.index_path


def _file_report(path: Path) -> FileReport:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BYTES):
            digest.update(block)
    return FileReport(name=path.name, size_bytes=path.stat().st_size, sha256=digest.hexdigest())


def _fingerprint(files: Iterable[FileReport], spec: CompressionSpec) -> str:
    text = "\n".join([spec.canonical(), *(file.sha256 for file in files)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
