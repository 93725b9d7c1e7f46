"""schemas/planning/output_header.py: no result is planned whose header would not be read."""

from dataclasses import replace
from itertools import accumulate, pairwise

import pytest

from schemas.format.files import CheckpointFiles
from schemas.format.header import Header, build_header
from schemas.format.index import MAX_INDEX_BYTES, ShardIndex, build_index
from schemas.format.table import TensorTable
from schemas.format.tensor import TensorInfo
from schemas.planning.model_folder import output_names
from schemas.planning.output import output_metadata, plan_output
from schemas.planning.output_header import check_output_headers, check_output_index, header_bound
from schemas.planning.output_size import LONGEST_ERROR
from schemas.planning.planner import make_plan
from schemas.problem import SpecError
from schemas.spec import CompressionSpec


def checkpoint(layers=40, name="layer"):
    offsets = list(accumulate(range(layers + 1), lambda end, _: end + 64 * 64 * 4, initial=0))
    tensors = tuple(
        TensorInfo(f"{name}.{at}.weight", "F32", (64, 64), *ends)
        for at, ends in enumerate(pairwise(offsets[: layers + 1]))
    )
    return CheckpointFiles(
        {"model.safetensors": Header({}, TensorTable.of(tensors), 4_000, 4_000 + tensors[-1].end)}
    )


def written(files, plan):
    ranks = {number: layer.rank for number, layer in enumerate(plan.layers)}
    entries = plan_output(files.tensors, plan.layers, ranks)
    metadata = output_metadata({}, entries, plan.layers, ranks, dict.fromkeys(ranks, LONGEST_ERROR))
    return len(build_header([entry.new_tensor for entry in entries], metadata))


def test_a_header_is_refused_from_the_first_byte_on_that_would_not_be_read():
    files = checkpoint()
    plan = make_plan(files.tensors, CompressionSpec(rank=4))
    nbytes = written(files, plan)

    check_output_headers(plan, files, max_header_bytes=nbytes)
    with pytest.raises(SpecError, match=rf"40 layers.*{nbytes} bytes.*{nbytes - 1} are read. Select fewer"):
        check_output_headers(plan, files, max_header_bytes=nbytes - 1)


@pytest.mark.parametrize(
    "name", ["layer", 'of "quotes" and \\ more', "\u00e9\U0001f600"], ids=["plain", "quoted", "beyond"]
)
@pytest.mark.parametrize(
    "spec", [{"rank": 4}, {"rank": 4, "dtype": "float16"}, {"method": "int8"}, {"method": "cur", "rank": 3}]
)
def test_a_long_header_is_counted_before_it_could_be_too_long(name, spec):
    files = checkpoint(name=name)
    plan = make_plan(files.tensors, CompressionSpec.model_validate(spec))
    nbytes = written(files, plan)

    with pytest.raises(SpecError):
        check_output_headers(plan, files, max_header_bytes=nbytes - 1)
    assert nbytes <= header_bound(plan, files)


@pytest.mark.parametrize(
    "spec", [{"rank": {"energy": 0.9}}, {"rank": {"budget_bytes": 10**9}, "method": ["svd", "int8"]}]
)
def test_a_rank_that_is_not_known_yet_counts_with_its_largest_value(spec):
    files = checkpoint()
    least = written(files, make_plan(files.tensors, CompressionSpec(rank=4)))
    plan = make_plan(files.tensors, CompressionSpec.model_validate(spec))

    with pytest.raises(SpecError):
        check_output_headers(plan, files, max_header_bytes=least - 1)
    check_output_headers(plan, files, max_header_bytes=2 * least)


def test_an_adapter_has_a_header_of_its_own():
    files = checkpoint()
    spec = CompressionSpec.model_validate({"rank": 4, "layout": "adapter", "base": "base"})
    plan = make_plan(files.tensors, spec, base=files.tensors)

    check_output_headers(plan, files)
    with pytest.raises(SpecError, match="adapter's header"):
        check_output_headers(plan, files, max_header_bytes=4_100)


def test_an_index_is_refused_from_the_first_byte_on_that_would_not_be_read():
    single = checkpoint()
    files = replace(
        single,
        index=ShardIndex({tensor.name: "model.safetensors" for tensor in single.tensors}, {}),
        index_name="model.safetensors.index.json",
    )
    plan = make_plan(files.tensors, CompressionSpec(rank=4))
    ranks = {number: layer.rank for number, layer in enumerate(plan.layers)}
    entries = plan_output(files.tensors, plan.layers, ranks)
    name = output_names(files, plan.layers, ranks)["model.safetensors"]
    tensors = [entry.new_tensor for entry in entries]
    text = build_index(
        {tensor.name: name for tensor in tensors},
        source=files.index,
        total_size_bytes=sum(tensor.nbytes for tensor in tensors),
        total_parameters=0,
    )

    check_output_index(plan, files, max_index_bytes=len(text))
    with pytest.raises(SpecError, match=rf"40 layers.*{len(text)} bytes.*Select fewer"):
        check_output_index(plan, files, max_index_bytes=len(text) - 1)
    check_output_index(plan, single, max_index_bytes=1)
    assert len(text) < MAX_INDEX_BYTES
