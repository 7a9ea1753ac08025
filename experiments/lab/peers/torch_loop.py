"""The loop of nanoGPT and of PyTorch's tutorials: one matrix for queries, keys and values, a fused AdamW, and
`scaled_dot_product_attention`; eager, or by `torch.compile`. Initialization and weight decay are nanoGPT's."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from experiments.lab.peers import Model


class Attention(nn.Module):
    def __init__(self, model: Model, causal: bool) -> None:
        super().__init__()
        self.model, self.causal = model, causal
        self.query = nn.Linear(model.width, model.width, False)
        self.both = nn.Linear(model.width, 2 * model.width, False)
        self.out = nn.Linear(model.width, model.width, False)

    def forward(self, x: Any, memory: Any) -> Any:
        heads, width = self.model.heads, self.model.width
        parts = (self.query(x), *self.both(memory).chunk(2, dim=-1))
        q, k, v = (y.view(*y.shape[:2], heads, width // heads).transpose(1, 2) for y in parts)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).reshape(x.shape))


class SelfAttention(Attention):
    """Queries, keys and values by one product."""

    def __init__(self, model: Model, causal: bool) -> None:
        super().__init__(model, causal)
        del self.query, self.both
        self.all = nn.Linear(model.width, 3 * model.width, False)

    def forward(self, x: Any, memory: Any = None) -> Any:
        heads, width = self.model.heads, self.model.width
        q, k, v = (y.view(*y.shape[:2], heads, width // heads).transpose(1, 2) for y in self.all(x).chunk(3, dim=-1))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    def __init__(self, model: Model, causal: bool, cross: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(model.width) for _ in range(2 + cross))
        self.attention = SelfAttention(model, causal)
        self.cross = Attention(model, False) if cross else None
        self.inner = nn.Linear(model.width, model.inner, model.bias)
        self.outer = nn.Linear(model.inner, model.width, model.bias)
        self.drop = nn.Dropout(model.dropout)

    def forward(self, x: Any, memory: Any) -> Any:
        x = x + self.drop(self.attention(self.norms[0](x)))
        if self.cross is not None:
            x = x + self.drop(self.cross(self.norms[2](x), memory))
        return x + self.drop(self.outer(functional.gelu(self.inner(self.norms[1](x)))))


class Transformer(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model, self.table = model, nn.Embedding(model.vocabulary, model.width)
        self.places = nn.ModuleList(nn.Embedding(model.length, model.width) for _ in range(1 + model.encoder))
        self.encoder = nn.ModuleList(Block(model, False, False) for _ in range(model.layers * model.encoder))
        self.decoder = nn.ModuleList(Block(model, True, model.encoder) for _ in range(model.layers))
        self.norms = nn.ModuleList(nn.LayerNorm(model.width) for _ in range(1 + model.encoder))
        self.drop = nn.Dropout(model.dropout)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                residual = name.endswith(("out.weight", "outer.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * model.layers) ** 0.5 if residual else 0.02)

    def forward(self, source: Any, tokens: Any, targets: Any) -> Any:
        """The mean cross-entropy."""
        places, memory = torch.arange(tokens.shape[1]), None
        if self.model.encoder:
            memory = self.drop(self.table(source) + self.places[1](places))
            for block in self.encoder:
                memory = block(memory, None)
            memory = self.norms[1](memory)
        x = self.drop(self.table(tokens) + self.places[0](places))
        for block in self.decoder:
            x = block(x, memory)
        logits = functional.linear(self.norms[0](x), self.table.weight)
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=self.model.smoothing)


class Loop:
    """A model in training: gradients clipped at a norm of 1, AdamW, and weight decay of matrices and tables only."""

    def __init__(self, model: Model, compile_it: bool, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.network = Transformer(model).train()
        self.parameters = list(self.network.parameters())
        groups = [
            {"params": [x for x in self.parameters if x.dim() > 1], "weight_decay": 0.1},
            {"params": [x for x in self.parameters if x.dim() == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
        self.loss_of: Callable[..., Any] = torch.compile(self.network) if compile_it else self.network

    def step(self, source: Any, tokens: Any, targets: Any, rate: float = 1e-3) -> float:
        """The loss, before an update with this learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.loss_of(source, tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def loss(self, tokens: Any, targets: Any) -> float:
        """The mean loss of a decoder [rows, length], deterministic, over targets that are not below 0."""
        self.network.eval()
        with torch.no_grad():
            loss = self.network(None, tokens, targets.where(targets >= 0, -100))
        self.network.train()
        return float(loss)

    @property
    def size(self) -> int:
        """The number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters)


def tensor(ids: np.ndarray) -> Any:
    """Token ids as PyTorch's lookups and losses take them."""
    return torch.from_numpy(ids.astype(np.int64))


def run(model: Model, compile_it: bool) -> tuple[Callable[[], Any], int]:
    """A step that is timed, and the number of parameters."""
    tokens = np.random.default_rng(0).integers(0, model.vocabulary, (3, model.rows, model.length))
    batch = [tensor(x) for x in tokens]
    loop = Loop(model, compile_it)
    return lambda: loop.step(*batch), loop.size
