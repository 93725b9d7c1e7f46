"""A small causal language model over bytes, in stock torch modules with the names of Llama's."""

import torch
from torch import Tensor, nn
from torch.nn import functional

BYTES = 256


class Attention(nn.Module):
    """Causal self-attention; rotations tell the positions (RoPE)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        query, key, value = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (batch, heads, bytes, width/heads)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(
            _turned(query, turns), _turned(key, turns), value, is_causal=True
        )
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    """The gated feed-forward network; its number of neurons is that of the weights it is built for."""

    def __init__(self, width: int, neurons: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, neurons, bias=False)
        self.up_proj = nn.Linear(width, neurons, bias=False)
        self.down_proj = nn.Linear(neurons, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
    """Attention and feed-forward network, each behind a norm and with a residual connection."""

    def __init__(self, width: int, heads: int, neurons: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(width)
        self.self_attn = Attention(width, heads)
        self.post_attention_layernorm = nn.RMSNorm(width)
        self.mlp = MLP(width, neurons)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), turns)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Language(nn.Module):
    """Scores every byte as the next one, at each place of a text."""

    def __init__(self, *, width: int = 192, heads: int = 4, neurons: int = 512, blocks: int = 4) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(BYTES, width)
        self.layers = nn.ModuleList(Block(width, heads, neurons) for _ in range(blocks))
        self.norm = nn.RMSNorm(width)
        self.lm_head = nn.Linear(width, BYTES, bias=False)
        self.turn = width // heads

    def start(self, seed: int) -> None:
        """Draw the initial weights."""
        torch.manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, 0, 0.02)

    def forward(self, text: Tensor) -> Tensor:
        x = self.embed_tokens(text)  # (batch, bytes, width)
        turns = _turns(text.shape[1], self.turn)
        for block in self.layers:
            x = block(x, turns)
        scores: Tensor = self.lm_head(self.norm(x))  # (batch, bytes, 256)
        return scores


def _turns(places: int, width: int) -> Tensor:
    slow = 10000 ** (-torch.arange(0, width, 2) / width)
    angles = torch.outer(torch.arange(places), slow)
    return torch.polar(torch.ones_like(angles), angles)  # (places, width/2)


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(-2)
