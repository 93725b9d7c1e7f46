"""schemas/planning/output_size.py and worker/output.py: the predicted size is that of the written files."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from schemas.format.files import CheckpointFiles, open_checkpoint
from schemas.format.header import NewTensor, aligned_order, build_header, parse_header
from schemas.format.index import ShardIndex, build_index
from schemas.format.metadata import FactoredLayer, with_factored
from schemas.planning.model_folder import output_names
from schemas.planning.output import ADAPTER_METADATA, output_metadata, plan_adapter, plan_output
from schemas.planning.output_size import LONGEST_ERROR, OutputSize
from schemas.planning.planner import make_plan
from schemas.spec import CompressionSpec
from tests.schemas.format.checkpoints import chosen_at
from worker.checkpoint.writer import CheckpointWriter

ERROR_CHARACTERS = 24
NAMES = ["a", "b.c", "é", 'quo"ted\\', "experts.10", "experts.9"]
SHAPES = [(40, 60), (33, 21), (64, 64), (3, 1000)]


def predicted(source, result, **spec):
    """Predict the bytes of a result from its input's headers and its ranks."""
    checkpoint = open_checkpoint(source)
    files = checkpoint
    plan = make_plan(checkpoint.tensors, CompressionSpec.model_validate({"rank": {"ratio": 0.5}} | spec))
    ranks = {i: layer.rank for i, layer in enumerate(result.report.layers) if layer.rank is not None}
    return OutputSize(files, plan.layers).at(chosen_at(plan.layers, ranks))


def assert_predicted(source, result, **spec):
    slack = predicted(source, result, **spec) - sum(file.size_bytes for file in result.report.output.files)
    assert (
        0
        <= slack
        <= ERROR_CHARACTERS * result.report.totals.layers_factored + 8 * len(result.report.output.files)
    )


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"method": "cur"},
        {"method": "cur", "cur": {"storage": "two"}, "dtype": "float16"},
        {"method": "cx", "dtype": "bfloat16", "layout": "dense"},
        {"rank": 3, "dtype": "float32"},
        {"exclude": ["*"]},
        {"rank": 2**20},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_size_of_a_file_is_known_from_its_ranks(save, gaussian, compress, spec, dtype):
    source = save(
        {
            "a.weight": gaussian(40, 60, dtype=dtype),
            "a.bias": gaussian(40, dtype=dtype),
            "odd": torch.zeros(3, dtype=torch.uint8),
            "é.weight": gaussian(33, 21),
            'quo"ted\\.weight': gaussian(33, 21),
            "steps": torch.tensor(7),
        },
        metadata={"format": "pt", "note": 'é "quoted" \\'},
    )

    assert_predicted(source, compress(source, **spec), **spec)


def test_the_size_of_shards_and_their_index_is_known_from_the_ranks(save_sharded, gaussian, compress):
    shards = [
        {f"layer.{i}.weight": gaussian(32, 48, dtype=torch.bfloat16), f"layer.{1 - i}.bias": gaussian(32)}
        for i in range(2)
    ]
    source = save_sharded(shards, total_parameters=3136, note="é")

    assert_predicted(source, compress(source))


def test_a_checkpoint_that_is_compressed_again_keeps_its_metadata(save, gaussian, compress):
    first = compress(save({"a.weight": gaussian(40, 60), "b.weight": gaussian(60, 40)}), exclude=["b"])
    source = first.directory / "model.safetensors"
    again = compress(source, rank=5)
    plain = make_plan(open_checkpoint(source).tensors, CompressionSpec(rank=5), factored={"a"})
    files = open_checkpoint(source)
    slack = OutputSize(files, plain.layers).at(chosen_at(plain.layers, {0: 5})) - again.report.output.bytes

    assert [layer.name for layer in again.report.layers] == ["b"]
    assert 0 <= slack <= ERROR_CHARACTERS + 8


class Number(BaseModel):
    value: float


@given(st.floats(0, allow_infinity=False))
@settings(max_examples=500)
def test_no_error_takes_more_characters_than_the_longest(error):
    assert len(Number(value=error).model_dump_json()) <= len(Number(value=LONGEST_ERROR).model_dump_json())


@dataclass(frozen=True)
class Case:
    """A checkpoint in memory, a spec, and the ranks of some layers by number."""

    files: CheckpointFiles
    spec: CompressionSpec
    ranks: dict[int, int]

    @property
    def layers(self):
        tensors = self.files.tensors
        return make_plan(tensors, self.spec, base=tensors if self.spec.layout == "adapter" else None).layers


def header_of(tensors, metadata):
    text = build_header(tensors, metadata)
    return parse_header(text, file_bytes=8 + len(text) + sum(tensor.nbytes for tensor in tensors))


@st.composite
def modules(draw, name):
    shape = draw(st.sampled_from(SHAPES))
    dtype = draw(st.sampled_from(["F32", "BF16", "F64"]))
    tensors = [NewTensor(f"{name}.weight", dtype, shape)]
    if draw(st.booleans()):
        tensors.append(NewTensor(f"{name}.bias", dtype, shape[:1]))
    if draw(st.booleans()):
        tensors.insert(draw(st.integers(0, len(tensors))), NewTensor(f"odd {name}", "U8", (3,)))
    return draw(st.permutations(tensors))


@st.composite
def metadata_of(draw, tensors):
    known = [tensor.name for tensor in tensors]
    found = draw(st.dictionaries(st.sampled_from(["note", "tied", "é", "sshs_model_hash"]), st.text('x"é')))
    found |= draw(st.dictionaries(st.sampled_from(["head.bias", *known]), st.sampled_from(known), max_size=2))
    if draw(st.booleans()):
        before = draw(st.lists(st.sampled_from(["old", 'old "one"', "a"]), unique=True))
        layer = FactoredLayer(method="svd", rank=3, shape=(9, 9), dtype="F32", relative_error=0.5)
        found = with_factored(found, dict.fromkeys(before, layer))
    return found


@st.composite
def cases(draw):
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True))
    shards = [[] for _ in range(draw(st.integers(1, 3)))]
    for name in names:
        for tensor in draw(modules(name)):
            draw(st.sampled_from(shards)).append(tensor)
    headers = {
        f"{draw(st.sampled_from(['model', 'part-1']))}-{number}.safetensors": header_of(
            aligned_order(tensors), draw(metadata_of(tensors))
        )
        for number, tensors in enumerate(filter(None, shards))
    }
    index = None
    if len(headers) > 1 or draw(st.booleans()):
        weight_map = {tensor.name: name for name, header in headers.items() for tensor in header.tensors}
        totals = draw(st.sampled_from([{}, {"total_size": 5}, {"total_parameters": 7, "note": "é"}]))
        index = ShardIndex(weight_map, totals, draw(st.sampled_from([{}, {"more": [1, {"é": None}]}])))
    files = CheckpointFiles(
        headers,
        index=index,
        index_name="model.safetensors.index.json" if index else None,
        companions=draw(st.sampled_from([(), ("config.json",)])),
    )
    layout = draw(st.sampled_from(["factored", "dense", "adapter"]))
    spec = CompressionSpec.model_validate(
        {
            "rank": 1,
            "exclude": [],
            "layout": layout,
            "method": "svd" if layout == "adapter" else draw(st.sampled_from(["svd", "cur", "cx"])),
            "dtype": draw(st.sampled_from(["keep", "float16", "float32"])),
            "transposed": draw(st.lists(st.sampled_from(NAMES), max_size=2)),
            "base": "before" if layout == "adapter" else None,
        }
    )
    case = Case(files, spec, {})
    numbers = draw(st.lists(st.integers(0, len(case.layers) - 1), unique=True)) if case.layers else []
    return Case(files, spec, {n: draw(st.integers(1, 15)) for n in numbers})


def written_bytes(case, layers, path):
    """Return the bytes of the files that the writer would write, with the longest errors."""
    if case.spec.layout == "adapter":
        entries = plan_adapter(layers, dict(sorted(case.ranks.items())))
        tensors = [entry.new_tensor for entry in entries]
        return CheckpointWriter(path, tensors, ADAPTER_METADATA).header.file_bytes
    total, tensors, weight_map = 0, [], {}
    names = output_names(case.files, layers, case.ranks)
    for name, header in case.files.headers.items():
        entries = plan_output(header.tensors, layers, case.ranks)
        errors = dict.fromkeys(case.ranks, LONGEST_ERROR)
        metadata = output_metadata(header.metadata, entries, layers, case.ranks, errors)
        written = CheckpointWriter(path, [entry.new_tensor for entry in entries], metadata).header
        total += written.file_bytes
        tensors += written.tensors
        weight_map |= {tensor.name: names[name] for tensor in written.tensors}
    if case.files.index is None:
        return total
    sizes = {
        "total_size_bytes": sum(tensor.nbytes for tensor in tensors),
        "total_parameters": sum(tensor.parameters for tensor in tensors),
    }
    return total + len(build_index(weight_map, source=case.files.index, **sizes))


@given(cases())
@settings(max_examples=120, deadline=None)
def test_the_predicted_size_equals_what_the_writer_writes_with_the_longest_errors(tmp_path_factory, case):
    path = tmp_path_factory.getbasetemp() / "never-written.safetensors"
    size = OutputSize(case.files, case.layers)

    # A call does not depend on those before. An adapter without a layer is not written.
    for several in (case, Case(case.files, case.spec, {}), case):
        if several.ranks or case.spec.layout != "adapter":
            assert size.at(chosen_at(case.layers, several.ranks)) == written_bytes(several, case.layers, path)
