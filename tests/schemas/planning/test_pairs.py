"""schemas/planning/pairs.py: which MLPs are cut, to how many neurons, and every pair that does not fit."""

import pytest
from pydantic import ValidationError

from schemas.format.tensor import TensorInfo
from schemas.planning.calibration import Calibration, LayerSources, Source
from schemas.planning.documents import plan_document
from schemas.planning.pairs import captured, filled, kept_neurons, known_mlps
from schemas.planning.planner import make_plan
from schemas.problem import SpecError
from schemas.spec import CompressionSpec
from tests.schemas.planning.named import Named

LLAMA = [
    Named("layers.0.mlp.gate_proj.weight", (48, 16)),
    Named("layers.0.mlp.up_proj.weight", (48, 16)),
    Named("layers.0.mlp.down_proj.weight", (16, 48)),
    Named("layers.0.self_attn.q_proj.weight", (16, 16)),
]
BERT = [
    Named("layer.0.attention.output.dense.weight", (16, 16)),
    Named("layer.0.intermediate.dense.weight", (40, 16)),
    Named("layer.0.intermediate.dense.bias", (40,)),
    Named("layer.0.output.dense.weight", (16, 40)),
    Named("layer.0.output.dense.bias", (16,)),
]
GPT2 = [
    Named("h.0.mlp.c_fc.weight", (16, 64)),
    Named("h.0.mlp.c_fc.bias", (64,)),
    Named("h.0.mlp.c_proj.weight", (64, 16)),
    Named("h.0.mlp.c_proj.bias", (16,)),
    Named("h.0.attn.c_proj.weight", (16, 16)),
]


def grams(tensors):
    """Return a calibration with a Gram matrix for either side of each weight that may be the inputs."""
    layers = {}
    for tensor in tensors:
        if tensor.name.endswith(".weight") and len(tensor.shape) == 2:
            module = tensor.name.removesuffix(".weight")
            bias = next((t.shape[0] for t in tensors if t.name == module + ".bias"), None)
            n = tensor.shape[0] if bias == tensor.shape[1] != tensor.shape[0] else tensor.shape[1]
            info = TensorInfo(module + ".gram", "F32", (n, n), 0, 4 * n * n)
            layers[module] = LayerSources(gram=Source("grams.safetensors", info))
    return Calibration(layers)


def planned(tensors, calibration=None, aliases=None, **spec):
    spec = CompressionSpec.model_validate({"rank": {"ratio": 0.75}, "include": [], "pairs": "neurons"} | spec)
    return make_plan(tensors, spec, calibration=calibration or grams(tensors), aliases=aliases or {})


def cut(plan):
    return {layer.name: layer.rank for layer in plan.layers if layer.pair is not None}


@pytest.mark.parametrize(
    ("tensors", "kept", "shapes"),
    [
        (LLAMA, 36, [(36, 16), (36, 16), (16, 36)]),
        (BERT, 30, [(30, 16), (16, 30)]),
        (GPT2, 48, [(16, 48), (48, 16)]),
    ],
    ids=["llama", "bert", "gpt2"],
)
def test_a_plan_shows_the_members_and_the_exact_sums(tensors, kept, shapes):
    document = plan_document(None, planned(tensors))

    assert [layer.shape_after for layer in document.layers] == shapes
    assert {(layer.method, layer.rank, layer.outcome) for layer in document.layers} == {
        ("neurons", kept, "factored")
    }
    assert {layer.pair for layer in document.layers} == {
        next(
            t.name
            for t in tensors
            if "down" in t.name or "output.dense.w" in t.name or "mlp.c_proj.w" in t.name
        )
        .replace("layer.0.attention.output", "layer.0.output")
        .removesuffix(".weight")
    }
    lost = sum(
        t.parameters
        for t in tensors
        if "mlp" in t.name or ".0.intermediate" in t.name or ".0.output" in t.name
    )
    fixed = sum(t.parameters for t in tensors if t.name.endswith(("c_proj.bias", "0.output.dense.bias")))
    assert document.totals.exact
    saved = document.totals.parameters_before - document.totals.parameters_after
    assert saved == (lost - fixed) // 4
    assert document.totals.bytes_before - document.totals.bytes_after == 4 * saved


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["up_proj", "gate_proj", "down_proj"], ("up_proj", "gate_proj", "down_proj")),
        (["up_proj", "down_proj"], ("up_proj", None, "down_proj")),
        (["w1", "w2", "w3"], ("w3", "w1", "w2")),
        (["wi", "wo"], ("wi", None, "wo")),
        (["wi_0", "wi_1", "wo"], ("wi_0", "wi_1", "wo")),
        (["fc1", "fc2"], ("fc1", None, "fc2")),
        (["linear1", "linear2"], ("linear1", None, "linear2")),
        (["wi_0", "wo"], None),
        (["fc1", "afc2"], None),
        (["attention.output.dense", "intermediate.dense"], None),
        (["c_proj"], None),
    ],
)
@pytest.mark.parametrize("prefix", ["", "model.layers.3.mlp."])
def test_mlps_are_known_by_their_names(names, expected, prefix):
    found = [(mlp.up, mlp.gate, mlp.down) for mlp in known_mlps(prefix + name for name in names)]

    assert found == ([] if expected is None else [tuple(name and prefix + name for name in expected)])


@pytest.mark.parametrize(
    ("neurons", "share", "align", "kept"),
    [
        (1000, 0.1, 1, 100),
        (10, 0.7, 1, 7),
        (48, 0.5, 16, 16),
        (48, 0.1, 16, 16),
        (3, 0.1, 1, 1),
        (5, 1.0, 1, 5),
    ],
)
def test_the_share_is_a_decimal_and_rounded_down_to_a_multiple_of_at_least_one(neurons, share, align, kept):
    assert kept_neurons(neurons, share, align) == kept


@pytest.mark.parametrize(
    ("pattern", "name", "texts"),
    [
        ("a.*.b", "a.0.b", ("0",)),
        ("a.*.b", "a.0.x.b", ("0.x",)),
        ("*.up", "m.l.0.up", ("m.l.0",)),
        ("a.*.b.*", "a.1.b.2", ("1", "2")),
        ("a", "a", ()),
        ("a", "ab", None),
        ("a.*.b", "a.b", None),
        ("aba*aba", "aba", None),
        ("*" * 8 + "x", "y" * 1000, None),
    ],
)
def test_a_wildcard_stands_for_the_same_text_in_all_names(pattern, name, texts):
    assert captured(pattern, name) == texts
    if texts is not None:
        assert filled(pattern, texts) == name


def test_named_pairs_have_shares_of_their_own_and_the_rest_follows_the_rank():
    others = [
        Named("layers.1.mlp." + name, shape)
        for name, shape in (("a.weight", (20, 16)), ("b.weight", (16, 20)))
    ]
    pairs = [
        {
            "up": "layers.*.mlp.up_proj",
            "gate": "layers.*.mlp.gate_proj",
            "down": "layers.*.mlp.down_proj",
            "share": 0.5,
        },
        {"up": "*.a", "down": "*.b", "share": 0.25},
    ]
    plan = planned([*LLAMA, *others], pairs=pairs, rank=4, include=["*"])

    assert cut(plan) == {
        "layers.0.mlp.gate_proj": 24,
        "layers.0.mlp.up_proj": 24,
        "layers.0.mlp.down_proj": 24,
        "layers.1.mlp.a": 5,
        "layers.1.mlp.b": 5,
    }
    assert [(x.name, x.rank, x.form.name) for x in plan.layers if x.pair is None] == [
        ("layers.0.self_attn.q_proj", 4, "svd")
    ]


def test_overrides_and_ranks_of_members_have_no_effect_and_say_so():
    plan = planned(LLAMA, overrides=[{"match": "*.up_proj", "rank": 3}], include=["*"])

    assert set(cut(plan).values()) == {36}
    assert "overrides: the pattern '*.up_proj' matches no layer" in plan.warnings


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"pairs": "neurons", "rank": 8}, "give rank as"),
        ({"pairs": "neurons", "rank": {"budget": 0.5}}, "a share for each pair"),
        ({"pairs": [{"up": "a", "down": "b"}], "rank": 8}, "a share for each pair"),
        ({"pairs": [{"up": "*.a", "down": "b", "share": 0.5}], "rank": 8}, "equally many"),
        ({"pairs": [{"up": "*" * 9, "down": "*" * 9, "share": 0.5}], "rank": 8}, "at most 8"),
        ({"pairs": [], "rank": 8}, "at least 1 item"),
        ({"pairs": "neuron", "rank": {"ratio": 0.5}}, "neurons"),
        ({"pairs": [{"up": "a", "down": "b", "share": 0}], "rank": 8}, "greater than 0"),
        ({"pairs": "neurons", "rank": {"ratio": 0.5}, "layout": "adapter"}, "leave out pairs"),
        ({"pairs": "neurons", "rank": {"ratio": 0.5}, "layout": "dense", "base": "b"}, "leave out pairs"),
    ],
)
def test_a_spec_with_pairs_that_do_not_fit_the_rest_is_refused_by_field(spec, words):
    with pytest.raises(ValidationError) as caught:
        CompressionSpec.model_validate(spec)

    assert caught.value.errors()[0]["loc"][0] == "pairs"
    assert words in str(caught.value)


PAIR = {"up": "layers.0.mlp.up_proj", "gate": "layers.0.mlp.gate_proj", "down": "layers.0.mlp.down_proj"}


@pytest.mark.parametrize(
    ("tensors", "pairs", "pointer", "words"),
    [
        ([Named("q.weight", (8, 8))], "neurons", "/pairs", "No MLP was found"),
        ([*LLAMA[1:2], Named("layers.0.mlp.down_proj.weight", (16, 47))], "neurons", "/pairs", "[16, 47]"),
        (LLAMA, [PAIR | {"gate": "layers.0.mlp.gate"}], "/pairs/0", '"layers.0.mlp.gate"'),
        (LLAMA, [PAIR | {"down": "layers.0.self_attn.q_proj"}], "/pairs/0", "do not fit"),
        (LLAMA, [PAIR, PAIR], "/pairs/1", "two pairs"),
        (LLAMA, [PAIR | {"gate": PAIR["up"]}], "/pairs/0", "two pairs"),
        (LLAMA, [PAIR | {"up": "nothing"}], "/pairs/0/up", '"nothing"'),
        ([*LLAMA[:2], Named(LLAMA[2].name, (16, 48), "I8")], [PAIR], "/pairs/0", "I8 [16, 48]"),
        ([*LLAMA, Named("layers.0.mlp.up_proj.scale", (48,))], [PAIR], "/pairs/0", "more_than_a_linear"),
        ([*LLAMA, Named("layers.0.mlp.up_proj.bias", (47,))], [PAIR], "/pairs/0", "[47]"),
        ([*LLAMA, Named("layers.0.mlp.norm.weight", (48,))], [PAIR], "/pairs/0", "layers.0.mlp.norm"),
        (
            [Named("o.dense.weight", (16, 16)), Named("o.norm.weight", (16,)), Named("i.weight", (48, 16))],
            [{"up": "o.dense", "down": "i"}],
            "/pairs/0",
            '"o.norm"',
        ),
    ],
)
def test_pairs_that_cannot_be_cut_are_refused_with_the_layer_and_the_remedy(tensors, pairs, pointer, words):
    with pytest.raises(SpecError) as caught:
        planned(tensors, pairs=pairs)

    assert caught.value.pointer == pointer
    assert words in caught.value.detail


def test_a_tied_member_is_refused():
    with pytest.raises(SpecError, match=r"layers\.0\.mlp\.up_proj.*tied"):
        planned(LLAMA, pairs=[PAIR], aliases={"head.weight": "layers.0.mlp.up_proj.weight"})


@pytest.mark.parametrize("calibration", [None, "others"])
def test_pairs_without_a_gram_matrix_of_the_neurons_are_refused(calibration):
    given = None if calibration is None else grams([LLAMA[0], LLAMA[3]])
    spec = CompressionSpec.model_validate({"rank": {"ratio": 0.75}, "pairs": "neurons"})

    with pytest.raises(SpecError, match=r"layers\.0\.mlp\.down_proj.*eckart\.calibrate") as caught:
        make_plan(LLAMA, spec, calibration=given)
    assert caught.value.pointer == "/pairs"


def test_a_known_mlp_that_cannot_be_cut_is_left_out_with_a_warning():
    odd = [Named("x.fc1.weight", (24, 8)), Named("x.fc2.weight", (8, 23))]
    plan = planned([*LLAMA, *odd])

    assert set(cut(plan)) == {tensor.name.removesuffix(".weight") for tensor in LLAMA[:3]}
    assert any("pairs: left out" in warning and "x.fc2" in warning for warning in plan.warnings)


def test_a_share_of_one_keeps_the_mlp_as_it_is():
    plan = planned(LLAMA, rank={"ratio": 1.0})

    assert {layer.reason for layer in plan.layers} == {"no_saving"}
