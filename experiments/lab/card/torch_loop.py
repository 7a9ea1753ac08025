"""GPT-2 in PyTorch, as one trains it there: flash attention by `scaled_dot_product_attention`, bfloat16 by autocast, a
fused AdamW, and `torch.compile`. A process without JAX, which would want the same memory:

    python -m experiments.lab.card.torch_loop '{"vocabulary": 50257, "layers": 12, ...}'

prints a JSON object a line: first the loop as it is compiled, then without compiling.
"""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from experiments.lab.workers import die_with_parent, one_line


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_inner = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner, self.back = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Any) -> Any:
        B, L, D = x.shape
        q, k, v = (
            part.view(B, L, self.heads, D // self.heads).transpose(1, 2)
            for part in self.qkv(self.before_attention(x)).chunk(3, dim=-1)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(B, L, D))
        return x + self.back(functional.gelu(self.inner(self.before_inner(x)), approximate="tanh"))


class GPT(nn.Module):
    def __init__(self, vocabulary: int, layers: int, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.last = nn.LayerNorm(width)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Any, targets: Any) -> Any:
        """The mean cross-entropy of targets [B, L]; the output table is the embedding table."""
        x = self.table(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        logits = functional.linear(self.last(x), self.table.weight)
        return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def rows(
    vocabulary: int, layers: int, width: int, heads: int, rows: int, length: int, on_cpu: bool
) -> Iterator[dict[str, Any]]:
    """Milliseconds of a step, with and without compiling, the most bytes held, and the losses; or why it is skipped."""
    kinds = {"PyTorch, compiled": True, "PyTorch, not compiled": False}
    if not on_cpu and not torch.cuda.is_available():
        yield {"what": "PyTorch", "skipped": f"PyTorch {torch.__version__} finds no GPU"}
        return
    device = "cpu" if on_cpu else "cuda"
    torch.set_float32_matmul_precision("high")
    for name, compile_it in kinds.items():
        try:
            yield {"what": name, "torch": torch.__version__} | _measured(
                GPT(vocabulary, layers, width, heads, length).to(device), vocabulary, rows, length, device, compile_it
            )
        except Exception as error:  # its compiler can raise anything: the plain loop is timed all the same
            yield {"what": name, "torch": torch.__version__, "skipped": one_line(error)}


def _measured(model: Any, vocabulary: int, rows: int, length: int, device: str, compile_it: bool) -> dict[str, Any]:
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), fused=device == "cuda")
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, vocabulary, (rows, length + 1))).to(device)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    loss_of = torch.compile(model) if compile_it else model
    on_card, losses = device == "cuda", []

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = loss_of(inputs, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())

    def wait() -> None:
        if on_card:
            torch.cuda.synchronize()

    if on_card:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    step()
    wait()
    compiling = time.perf_counter() - began
    for _ in range(3):
        step()
    wait()
    times, each = [], 5 if on_card else 1
    for _ in range(10 if on_card else 2):
        began = time.perf_counter()
        for _ in range(each):
            step()
        wait()
        times.append(1000 * (time.perf_counter() - began) / each)
    return {
        "milliseconds": float(np.median(times)),
        "rounds": len(times),
        "times": " ".join(f"{ms:.3f}" for ms in times),
        "compile_seconds": compiling,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_card else None,
        "first_loss": float(losses[0]),
        "last_loss": float(losses[-1]),
    }


if __name__ == "__main__":
    die_with_parent()
    for row in rows(**json.loads(sys.argv[1])):
        print(json.dumps(row), flush=True)
