"""Whether the files of a form fit each other and what is stored, before any of them is published."""

from collections.abc import Mapping

from schemas.format.errors import CheckpointError
from schemas.format.header import Header
from schemas.format.index import INDEX_ENDING, ShardIndex, check_shards
from state.checkpoints import StoredCheckpoint

Content = Header | ShardIndex


def check_fit(sent: Mapping[str, Content], stored: StoredCheckpoint | None) -> None:
    """Refuse what the store would refuse once the first files are already published."""
    headers = {name: content for name, content in sent.items() if isinstance(content, Header)}
    index = next((content for content in sent.values() if isinstance(content, ShardIndex)), None)
    if stored is not None:
        check_one_index(sorted({*sent, *(file.name for file in stored.files)}))
        headers = {**stored.headers, **headers}
        index = index or stored.index
    if index is not None:
        _check_shards(index, headers)


def check_one_index(names: list[str]) -> None:
    """Refuse a second index."""
    found = [name for name in names if name.endswith(INDEX_ENDING)]
    if len(found) > 1:
        raise CheckpointError(
            "second-index", f"{found[0]} and {found[1]} are both indexes. Use one index per checkpoint."
        )


def _check_shards(index: ShardIndex, headers: Mapping[str, Header]) -> None:
    named = set(index.shards)
    if extra := sorted(headers.keys() - named):
        raise CheckpointError(
            "shard-extra",
            f"The index does not name the file {extra[0]}. Name it there, or use another checkpoint id.",
            "/weight_map",
        )
    if named == headers.keys():
        check_shards(index, headers)
