"""The manifest of a checkpoint: which files are published, with size and digest."""

from collections.abc import Iterable, Mapping

from pydantic import TypeAdapter

from schemas.report import FileReport
from state.blobs import disk_errors, make_directory, write_atomic
from state.layout import Layout

ENTRIES = TypeAdapter(dict[str, FileReport])


def read_manifest(layout: Layout, checkpoint_id: str) -> dict[str, FileReport]:
    """Return the published files by name, in order; a file that is not there any more is left out."""
    try:
        entries = ENTRIES.validate_json(layout.manifest(checkpoint_id).read_bytes())
    except FileNotFoundError:
        return {}
    folder = layout.checkpoint(checkpoint_id)
    return {name: entries[name] for name in sorted(entries) if (folder / name).is_file()}


def write_manifest(layout: Layout, checkpoint_id: str, files: Mapping[str, FileReport]) -> None:
    """Replace the manifest; the caller holds the checkpoint's lock."""
    with disk_errors():
        make_directory(layout.checkpoint(checkpoint_id))
        write_atomic(layout.manifest(checkpoint_id), ENTRIES.dump_json(dict(files), indent=1))


def holds(layout: Layout, checkpoint_id: str, files: Iterable[FileReport]) -> bool:
    """Say whether a checkpoint still has exactly these bytes under these names."""
    published = read_manifest(layout, checkpoint_id)
    return all(published.get(file.name) == file for file in files)
