"""Gradients at layers of real models, against explicit sums over each token's gradient."""

from __future__ import annotations

import io
import sys
import warnings
import weakref

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.utils.checkpoint import checkpoint

from eckart import InputError, calibrate
from eckart.probes import Probes

LENGTHS = (6, 3, 1)
DECODER_LENGTHS = (2, 5, 4)
SIZES = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}


def bert():
    config = transformers.BertConfig(**SIZES, intermediate_size=24, num_labels=5)
    return transformers.BertForTokenClassification(config)


def bert_of_samples():
    config = transformers.BertConfig(**SIZES, intermediate_size=24, num_labels=5)
    return transformers.BertForSequenceClassification(config)


def llama():
    config = transformers.LlamaConfig(**SIZES, intermediate_size=24, num_key_value_heads=1)
    return transformers.LlamaForCausalLM(config)


def gpt2():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2)
    )


def t5():
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    config = transformers.T5Config(vocab_size=50, decoder_start_token_id=0, pad_token_id=0, **sizes)
    return transformers.T5ForConditionalGeneration(config)


MODELS = {"bert": bert, "bert of samples": bert_of_samples, "llama": llama, "gpt2": gpt2, "t5": t5}


def made(make):
    torch.manual_seed(0)
    return make().eval()


def padded(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 50, (len(lengths), max(lengths)), generator=generator)
    return ids, (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def batch_of(name, seed):
    ids, mask = padded(LENGTHS, seed)
    if name != "t5":
        return {"input_ids": ids, "attention_mask": mask}
    decoder_ids, decoder_mask = padded(DECODER_LENGTHS, seed + 10)
    encoder = {"input_ids": ids, "attention_mask": mask}
    return encoder | {"decoder_input_ids": decoder_ids, "decoder_attention_mask": decoder_mask}


def loss_of(kind, logits, mask, probes, generator):
    """Return a scalar whose gradient is that of one probe, by the usual functions and with its draws."""
    counted = None if mask is None else mask.bool()[..., None].expand(logits.shape)
    drawn = probes.draw(logits, counted, generator)
    if kind == "output":
        return (logits * drawn).sum()
    labels = drawn.argmin(-1)  # The only negative value of softmax - onehot.
    losses = nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    return losses.sum() if mask is None else losses[mask.flatten().bool()].sum()


def grad_grams(model, name, batches, probes):
    """Return Σggᵀ of each layer over the tokens that count, from the gradients that autograd retains."""
    is_linear = {
        n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) or "Conv1D" in str(type(m))
    }
    outputs, sums = {}, {}
    hooks = [
        module.register_forward_hook(lambda _m, _x, y, n=n: (y.retain_grad(), outputs.__setitem__(n, y))[1])
        for n, module in is_linear.items()
    ]
    generator = torch.Generator().manual_seed(probes.seed)
    for batch in batches:
        mask, decoder_mask = batch["attention_mask"], batch.get("decoder_attention_mask")
        of_logits = decoder_mask if name == "t5" else None if name == "bert of samples" else mask
        logits = model(**batch).logits
        for _ in range(probes.number):
            for y in outputs.values():
                y.grad = None
            loss_of(probes.kind, logits, of_logits, probes, generator).backward(retain_graph=True)
            for n, y in outputs.items():
                of_layer = decoder_mask if n.startswith(("decoder", "lm_head")) and name == "t5" else mask
                is_cross_key = "EncDecAttention.k" in n or "EncDecAttention.v" in n
                of_layer = mask if is_cross_key else of_layer
                g = y.grad.flatten(0, -2) if y.shape[:2] != of_layer.shape else y.grad[of_layer.bool()]
                sums[n] = sums.get(n, 0) + g.double().T @ g.double() / probes.number
    for hook in hooks:
        hook.remove()
    return sums


def found_in(path):
    return {
        name.removesuffix(".grad_gram"): gram
        for name, gram in load_file(path).items()
        if name.endswith(".grad_gram")
    }


def assert_near(found, expected, rtol=1e-4):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["output", "fisher"])
@pytest.mark.parametrize("name", MODELS)
def test_the_sums_are_those_of_each_tokens_gradient(name, kind, tmp_path):
    model = made(MODELS[name])
    batches = [batch_of(name, 1), batch_of(name, 2)]
    probes = Probes(kind=kind, number=3, seed=5)
    path = calibrate(
        model, batches, tmp_path / "s.safetensors", sensitivity=kind, probes=3, seed=5, dtype="float64"
    )

    found, expected = found_in(path), grad_grams(model, name, batches, probes)
    tied = {"lm_head"} if name in ("gpt2", "t5") else set()
    assert found.keys() == expected.keys() - tied
    for layer, gram in found.items():
        assert_near(gram, expected[layer])
    with safe_open(path, "pt") as file:
        assert file.metadata()["kind"] == kind


def jacobian_product(model, batches, layer, output):
    """Return Σ JᵀJ of an output by a layer's outputs, over all tokens, from one backward pass a component."""
    kept = []
    hook = model.get_submodule(layer).register_forward_hook(lambda _m, _x, y: kept.append(y))
    total = 0
    for batch in batches:
        y = output(model(**batch)).flatten()
        for component in y:
            (g,) = torch.autograd.grad(component, kept[-1], retain_graph=True)
            g = g.flatten(0, -2).double()
            total = total + g.T @ g
    hook.remove()
    return total


@pytest.mark.parametrize("name", ["bert", "bert of samples"])
def test_many_probes_of_a_padded_batch_approach_the_jacobians_of_its_samples_each_by_itself(name, tmp_path):
    model = made(MODELS[name])
    batch = batch_of(name, 1)
    alone = [{"input_ids": batch["input_ids"][i : i + 1, :n]} for i, n in enumerate(LENGTHS)]
    layer = "bert.encoder.layer.1.attention.self.value"
    path = calibrate(
        model, [batch], tmp_path / "s.safetensors", sensitivity="output", probes=150, include=[layer]
    )

    expected = jacobian_product(model, alone, layer, lambda returned: returned.logits)
    found = found_in(path)[layer].double()
    assert float((found - expected).norm() / expected.norm()) < 0.2
    assert float(found.trace() / expected.trace()) == pytest.approx(1, abs=0.1)


def test_labels_drawn_from_the_models_own_softmax_give_its_fisher_information(tmp_path):
    torch.manual_seed(0)
    model, x = nn.Linear(3, 4), torch.randn(20000, 3)
    path = calibrate(nn.Sequential(model), [x], tmp_path / "s.safetensors", sensitivity="fisher", probes=4)

    p = model(x).detach().softmax(-1).double()
    expected = p.sum(0).diag() - p.T @ p
    assert float((found_in(path)["0"].double() - expected).norm() / expected.norm()) < 0.02


def pooled(returned, batch):
    mask = batch["attention_mask"][..., None]
    return (returned.last_hidden_state * mask).sum(1) / mask.sum(1)


def test_an_output_of_ones_own_is_probed_such_as_sentence_vectors(tmp_path):
    model = made(lambda: transformers.BertModel(transformers.BertConfig(**SIZES, intermediate_size=24)))
    batch = batch_of("bert", 1)
    layer = "encoder.layer.1.output.dense"
    with pytest.warns(UserWarning, match=r"no gradient came to pooler\.dense, so there is no grad_gram"):
        path = calibrate(
            model, [batch], tmp_path / "s.safetensors", sensitivity="output", output=pooled, probes=1
        )

    kept = []
    hook = model.get_submodule(layer).register_forward_hook(lambda _m, _x, y: kept.append(y))
    vectors = pooled(model(**batch), batch)
    hook.remove()
    drawn = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((vectors * drawn).sum(), kept)
    rows = gradient[batch["attention_mask"].bool()].double()
    found = load_file(path)
    assert "pooler.dense.gram" in found
    assert "pooler.dense.grad_gram" not in found
    assert_near(found[f"{layer}.grad_gram"].double(), rows.T @ rows)


class InPlace(nn.Module):
    """Outputs changed in place, a layer called twice and one that no row comes to, a view, a frozen start."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.idle = (nn.Linear(6, 6) for _ in range(4))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        y = self.a(x)
        y.view(-1)[:] *= 2
        y.relu_()
        y = self.b(self.b(y).mul_(0.5)).add_(self.c(x))
        return self.head(y) + self.idle(y[:0]).sum()


def test_outputs_changed_in_place_layers_called_twice_and_experts_without_tokens(tmp_path):
    torch.manual_seed(0)
    model, x = InPlace(), torch.randn(7, 6)
    path = calibrate(model, [x], tmp_path / "s.safetensors", sensitivity="output", probes=1, seed=3)
    drawn = Probes(kind="output", seed=3).draw(torch.empty(7, 3), None, torch.Generator().manual_seed(3))

    a = model.a(x)
    first = model.b((2 * a).relu())
    second = model.b(0.5 * first)
    c = model.c(x)
    out = model.head(second + c)
    gradients = torch.autograd.grad((out * drawn).sum(), [a, first, second, c, out])
    a, first, second, c, out = (g.double().T @ g.double() for g in gradients)
    found = found_in(path)
    assert found.keys() == {"a", "b", "c", "head"}
    for name, expected in {"a": a, "b": first + second, "c": c, "head": out}.items():
        assert_near(found[name].double(), expected)


class Checkpointed(nn.Module):
    def __init__(self, *, use_reentrant):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3))
        self.use_reentrant = use_reentrant

    def forward(self, x, *, plain=False):
        for block in self.blocks:
            x = block(x) if plain else checkpoint(block, x, use_reentrant=self.use_reentrant)
        return x


def test_checkpointed_layers_count_once(tmp_path):
    torch.manual_seed(0)
    model, x = Checkpointed(use_reentrant=False), torch.randn(5, 4)
    options = {"sensitivity": "output", "probes": 2}
    found = load_file(calibrate(model, [x], tmp_path / "a.safetensors", **options))
    expected = load_file(calibrate(model, [{"x": x, "plain": True}], tmp_path / "b.safetensors", **options))

    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpoints_are_refused(tmp_path):
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        calibrate(
            nn.Sequential(nn.Linear(4, 4), Checkpointed(use_reentrant=True)),
            [torch.ones(2, 4)],
            tmp_path / "s.safetensors",
            sensitivity="output",
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", ["output", "fisher"])
def test_models_of_any_dtype_have_nearly_the_sums_of_float32(kind, dtype, tmp_path):
    model, batch = made(bert), batch_of("bert", 1)
    options = {"sensitivity": kind, "include": ["bert.encoder.layer.1.*"], "probes": 8}
    expected = found_in(calibrate(model, [batch], tmp_path / "a.safetensors", **options))
    found = found_in(calibrate(model.to(dtype), [batch], tmp_path / "b.safetensors", **options))

    assert found.keys() == expected.keys()
    for name, gram in found.items():
        assert float(gram.trace() / expected[name].trace()) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("spill", [False, True])
def test_the_model_is_as_it_was_even_after_a_failure(tmp_path, spill, fails):
    model = made(llama).train()
    model.model.layers[0].requires_grad_(False)
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    model.model.norm.eval()
    state = [(p, p.requires_grad, p.grad, p.detach().clone()) for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    batches = [batch_of("llama", 1), {"input_ids": torch.tensor([[99]])}]
    options = {"sensitivity": "fisher", "spill": spill, "probes": 1}
    if fails:
        with pytest.raises(IndexError):
            calibrate(model, batches, tmp_path / "s.safetensors", **options)
    else:
        with torch.no_grad():
            calibrate(model, batches[:1], tmp_path / "s.safetensors", **options)

    assert [module.training for module in model.modules()] == modes
    for p, requires_grad, grad, value in state:
        assert p.requires_grad == requires_grad
        assert p.grad is grad
        assert torch.equal(p, value)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert [file.name for file in tmp_path.iterdir()] == ([] if fails else ["s.safetensors"])


class Ungraded(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    @torch.no_grad()
    def forward(self, x):
        return self.layer(x)


class Counts(nn.Linear):
    def forward(self, x):
        return super().forward(x).argmax(-1)


class Named(nn.Linear):
    """A model with an output whose name nobody knows, or an image of logits."""

    def __init__(self, name, shape):
        super().__init__(4, 4)
        self.name, self.shape = name, shape

    def forward(self, x):
        return {self.name: super().forward(x).reshape(self.shape)}


ROW = torch.ones(2, 4)


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (nn.Linear(4, 4), {"sensitivity": "hessian"}, "must be 'output', 'fisher' or None, not 'hessian'"),
        (nn.Linear(4, 4), {"probes": 0}, "probes must be at least 1, not 0"),
        (nn.Linear(4, 4), {"sensitivity": None, "output": pooled}, "give sensitivity="),
        (nn.Linear(4, 1), {"sensitivity": "fisher"}, "one logit .* use sensitivity='output'"),
        (Ungraded(), {}, "turns gradients off"),
        (Counts(4, 4), {}, "returns no logits or last_hidden_state or .* give output="),
        (Named("energies", (2, 4)), {}, "give output="),
        (Named("last_hidden_state", (2, 4)), {"sensitivity": "fisher"}, "returns no logits; give output="),
        (
            Named("logits", (1, 2, 2, 2)),
            {"sensitivity": "fisher"},
            r"logits are \[1, 2, 2, 2\]; give output=",
        ),
        (nn.Linear(4, 4), {"output": lambda _y, _batch: None}, "output= must return a floating tensor"),
    ],
)
def test_what_has_no_gradients_is_said(model, options, words, tmp_path):
    with pytest.raises(InputError, match=words):
        calibrate(
            nn.Sequential(model), [ROW], tmp_path / "s.safetensors", **({"sensitivity": "output"} | options)
        )

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["output", "fisher"])
def test_gradients_that_are_not_finite_are_refused(kind, tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.LogSigmoid(), nn.Linear(4, 4))
    model[2].weight.data[0] = torch.inf
    with pytest.raises(InputError, match="hold NaN or infinity"):
        calibrate(model, [ROW], tmp_path / "s.safetensors", sensitivity=kind)


def test_a_model_loaded_in_inference_mode_is_refused(tmp_path):
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(InputError, match=r"outside of torch\.inference_mode"):
        calibrate(model, [ROW], tmp_path / "s.safetensors", sensitivity="output")


def test_it_works_where_the_caller_has_turned_gradients_off(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4))
    expected = calibrate(model, [ROW], tmp_path / "a.safetensors", sensitivity="output").read_bytes()
    with torch.inference_mode():
        found = calibrate(model, [ROW], tmp_path / "b.safetensors", sensitivity="output")
    assert found.read_bytes() == expected


class Saved(nn.Module):
    """Layers side by side, so that the graph keeps little of each."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(30))

    def forward(self, x):
        return sum(layer(x) for layer in self.layers)


def test_no_output_of_a_layer_is_kept_beyond_what_autograd_keeps(tmp_path):
    outputs, alive = [], []
    model = Saved()
    for layer in model.layers:
        layer.register_forward_hook(lambda _m, _x, y: outputs.append(weakref.ref(y)))
    model.layers[-1].register_forward_pre_hook(
        lambda _m, _x: alive.append(sum(reference() is not None for reference in outputs))
    )
    calibrate(model, [torch.ones(3, 8)], tmp_path / "s.safetensors", sensitivity="output", probes=1)

    assert len(outputs) == 30
    assert alive[0] <= 2
    assert all(reference() is None for reference in outputs)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("batches", "shown"), [([ROW] * 3, "100% calibrate 3 batches"), (iter([ROW]), "calibrate batch 1")]
)
def test_a_terminal_shows_how_far_it_is(batches, shown, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    calibrate(nn.Sequential(nn.Linear(4, 4)), batches, tmp_path / "s.safetensors")
    assert shown in sys.stderr.getvalue()
    assert sys.stderr.getvalue().endswith("\n")


def test_a_log_has_plain_lines(tmp_path, capsys):
    calibrate(nn.Sequential(nn.Linear(4, 4)), [ROW] * 3, tmp_path / "s.safetensors")
    # The next one comes after ten seconds.
    assert capsys.readouterr().err == "  0% calibrate batch 1\n"


def test_a_callback_is_told_all_and_nothing_is_printed(tmp_path, capsys):
    told = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = nn.Sequential(nn.Linear(4, 4))
        calibrate(model, [ROW] * 2, tmp_path / "s.safetensors", progress=lambda *given: told.append(given))

    assert capsys.readouterr() == ("", "")
    assert [given[:2] for given in told] == [(0, 2), (1, 2), (2, 2)]
