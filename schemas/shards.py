"""The agreement of an index with the shards it names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from schemas.fault import CheckpointError, listed, pointer, quoted, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from schemas.header import Header
    from schemas.index import ShardIndex


def check_shards(index: ShardIndex, headers: Mapping[str, Header]) -> None:
    """Check that the shards hold exactly the tensors that the index says they hold."""
    _check_files(index, headers)
    found: dict[str, str] = {}
    for shard in index.shards:
        for info in headers[shard].tensors:
            if info.name in found:
                raise CheckpointError(
                    "tensor-in-two-shards",
                    f"Tensor {quoted(info.name)} is in both {found[info.name]} and {shard}. Remove one.",
                    pointer("weight_map", info.name),
                )
            found[info.name] = shard
    _check_places(index, found)
    _check_total(index, sum(info.nbytes for header in headers.values() for info in header.tensors))


def _check_files(index: ShardIndex, headers: Mapping[str, Header]) -> None:
    named = set(index.shards)
    if missing := sorted(named - headers.keys()):
        raise CheckpointError(
            "shard-missing",
            f"The index names files that are not there: {listed(missing)}. Send them too.",
            "/weight_map",
        )
    if extra := sorted(headers.keys() - named):
        raise CheckpointError(
            "shard-extra",
            f"The index does not name these files: {listed(extra)}. Leave them out.",
            "/weight_map",
        )


def _check_places(index: ShardIndex, found: Mapping[str, str]) -> None:
    for name, shard in index.weight_map.items():
        if found.get(name) != shard:
            where = f"is in {found[name]}" if name in found else "is in none of the files"
            raise CheckpointError(
                "tensor-in-other-shard" if name in found else "tensor-missing",
                f"The index says that tensor {quoted(name)} is in {shard}, but it {where}.",
                pointer("weight_map", name),
            )
    if extra := [name for name in found if name not in index.weight_map]:
        raise CheckpointError(
            "tensor-extra",
            f"{found[extra[0]]} holds tensor {quoted(extra[0])}, which weight_map does not name. Add it.",
            pointer("weight_map", extra[0]),
        )


def _check_total(index: ShardIndex, found_bytes: int) -> None:
    said = index.metadata.get("total_size")
    # Some writers count in floating point; a whole number is a whole number.
    if said is None or (type(said) in {int, float} and said == found_bytes):
        return
    raise CheckpointError(
        "total-size",
        f"total_size is {shown(str(said))}, but the tensors take {found_bytes} bytes. Correct it.",
        "/metadata/total_size",
    )
