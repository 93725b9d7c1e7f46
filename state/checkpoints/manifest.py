"""The manifest of a checkpoint: the size and digest of each file that counts as stored."""

from collections.abc import Iterable, Mapping

from pydantic import TypeAdapter

from schemas.checkpoint import FileInfo
from state.data_dir import DataDir
from state.files import write_atomic

MANIFEST = TypeAdapter(dict[str, FileInfo])


def read_manifest(paths: DataDir, checkpoint_id: str) -> dict[str, FileInfo]:
    """Return the stored files by name, in order, without those that were removed since."""
    try:
        entries = MANIFEST.validate_json(paths.manifest(checkpoint_id).read_bytes())
    except FileNotFoundError:
        return {}
    folder = paths.checkpoint(checkpoint_id)
    return {name: entries[name] for name in sorted(entries) if (folder / name).is_file()}


def has_files(paths: DataDir, checkpoint_id: str, files: Iterable[FileInfo]) -> bool:
    """Whether a checkpoint still has exactly these bytes under these names."""
    stored = read_manifest(paths, checkpoint_id)
    return all(stored.get(file.name) == file for file in files)


def write_manifest(paths: DataDir, checkpoint_id: str, files: Mapping[str, FileInfo]) -> None:
    """Replace the manifest; the caller holds the checkpoint's lock."""
    write_atomic(paths.manifest(checkpoint_id), MANIFEST.dump_json(dict(files), indent=1))
