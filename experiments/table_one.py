"""What does a layer cost by its kind, and how far does it see? The paper's Table 1, measured.

Hypothesis: as the table says. Of length n and width d, self-attention takes time n² d, a recurrent layer n d², a
convolution of kernel k time k n d², and self-attention restricted to r neighbours r n d; a recurrent layer takes n
steps one after another, the others one; and the first place reaches the last through 1 layer of self-attention, n steps
of recurrence, n / k layers of convolution or n / r of windows.

One causal layer of each kind, forward and backward (the gradient of the sum of squares with respect to the input and
the weights), one sequence in float32: an LSTM, a convolution, and attention of one head with the input as queries, keys
and values, so without its four projections of 8 n d² together, which the table leaves out as well. The kinds take
turns, and each time is the median of its rounds, on one core in processor time; exponents are of least-squares fits on
logarithmic axes. Steps are the iterations of the longest chain of loops in the program of the forward pass. Layers are
counted by gradient: the smallest number of them with which the last place's output depends on the first place's input.

Source: Vaswani et al. 2017, Table 1 (arXiv 1706.03762).
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.lab.loops import loops
from experiments.lab.render import Block, Picture, Table
from experiments.lab.timing import clock, columns, exponent, take_turns
from transformer.analysis import plots

LENGTHS, WIDTHS = (256, 512, 1024, 2048), (64, 128, 256, 512)
WIDTH, LENGTH = 64, 256  # of the other, where one of them varies
REACH = 65  # places of the layers that are stacked
WINDOW, KERNEL = 16, 3
SECONDS = 2.0  # of rounds of each measurement of time


class Row(NamedTuple):
    """A line of the paper's table: the exponents of n and d in its time, its steps and its path."""

    of_length: int
    of_width: int
    steps: str
    path: str


PAPER = {
    "self-attention": Row(2, 1, "1", "1"),
    "recurrent": Row(1, 2, "n", "n"),
    "convolution": Row(1, 2, "1", "n / k"),
    "restricted": Row(1, 1, "1", "n / r"),
}


def cases() -> dict[str, dict[str, Any]]:
    """A case for each length and each width, and one for what reaches what."""
    return {
        **{f"length {n}": {"part": "length", "length": n, "width": WIDTH} for n in LENGTHS},
        **{f"width {d}": {"part": "width", "length": LENGTH, "width": d} for d in WIDTHS},
        "reach": {"part": "reach", "length": REACH, "width": 8},
    }


def measure_case(part: str, length: int, width: int) -> list[dict[str, Any]]:
    """Rows {"part", "kind", "length", "width"} with "steps" and those of `timing.columns`, or of the part "reach" with
    {"layers", "path"}."""
    rows = reach(length, width) if part == "reach" else cost(length, width)
    return [{"part": part, "length": length, "width": width} | row for row in rows]


def layer(kind: str, width: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """init(key, x) -> weights, and apply(weights, x) -> [1, L, D], of x [1, L, D]; attention has no weights."""
    import flax.linen as nn

    from transformer.model.attention import attend

    if kind in ("self-attention", "restricted"):
        backend, window = ("dense", None) if kind == "self-attention" else ("banded", WINDOW)

        def attention(weights: Any, x: Any) -> Any:
            heads = x[:, :, None]
            return attend(heads, heads, heads, causal=True, window=window, backend=backend)[:, :, 0]

        return lambda key, x: {}, attention
    module: Any = (
        nn.RNN(nn.OptimizedLSTMCell(width)) if kind == "recurrent" else nn.Conv(width, KERNEL, padding="CAUSAL")
    )
    return module.init, module.apply


def _input(length: int, width: int) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(np.random.default_rng(0).standard_normal((1, length, width)), jnp.float32)


def cost(length: int, width: int) -> list[dict[str, Any]]:
    """Time and steps of one layer of each kind."""
    import jax

    x, runs, steps = _input(length, width), dict[str, Callable[[], Any]](), {}
    for kind in PAPER:
        init, apply = layer(kind, width)
        weights = jax.jit(init)(jax.random.key(0), x)
        steps[kind] = max(1, loops(jax.make_jaxpr(apply)(weights, x).jaxpr))
        both = jax.jit(jax.grad(lambda weights, x, apply=apply: (apply(weights, x) ** 2).sum(), argnums=(0, 1)))
        runs[kind] = partial(lambda both, *args: jax.block_until_ready(both(*args)), both, weights, x)
    return [
        {"kind": kind, "steps": steps[kind], **columns(ms)} for kind, ms in take_turns(runs, SECONDS, clock()).items()
    ]


def reach(length: int, width: int) -> list[dict[str, Any]]:
    """How many layers of each kind the last place needs to see the first, and how many steps lie on that way."""
    import jax

    x = _input(length, width)
    rows = []
    for kind in PAPER:
        init, apply = layer(kind, width)
        layers = _layers_to_first(jax.jit(init), jax.jit(apply), x)
        inside = loops(jax.make_jaxpr(apply)(init(jax.random.key(0), x), x).jaxpr) if kind == "recurrent" else 1
        rows.append({"kind": kind, "layers": layers, "path": layers * inside})
    return rows


def _layers_to_first(init: Callable[..., Any], apply: Callable[..., Any], x: Any) -> int:
    """The smallest number of layers through which the last place's output has a gradient at the first place."""
    import jax
    import jax.numpy as jnp

    back = jax.jit(lambda weights, x, g: jax.vjp(partial(apply, weights), x)[1](g)[0])
    weights, inputs = [], [x]
    for count in range(1, x.shape[1]):
        weights.append(init(jax.random.key(count), x))
        gradient = jnp.zeros_like(x).at[0, -1].set(1)
        for each, seen in zip(reversed(weights), reversed(inputs), strict=True):
            gradient = back(each, seen, gradient)
        if np.any(np.asarray(gradient)[0, 0] != 0):
            return count
        inputs.append(apply(weights[-1], inputs[-1]))
    raise ValueError(f"{count} layers do not reach {x.shape[1]} places back")


def findings(rows: list[dict[str, Any]], folder: Path) -> tuple[list[str], list[Block]]:
    """The table beside what was measured, the exponents in sentences, and curves of time."""
    fits: dict[tuple[str, str], float] = {}
    blocks: list[Block] = []
    for part, label in (("length", "length n (places)"), ("width", "width d")):
        series, cells = {}, {}
        for kind in PAPER:
            own = [row for row in rows if row["part"] == part and row["kind"] == kind]
            if len(own) > 1:
                sizes, times = [row[part] for row in own], [row["milliseconds"] for row in own]
                fits[kind, part] = exponent(sizes[-3:], times[-3:])
                series[kind] = np.asarray(sizes, float), np.asarray(times, float)
                cells[kind] = dict(zip(sizes, times, strict=True))
        if not series:
            continue
        plots.save(plots.cost(series, label, "forward + backward (ms)"), folder / f"layer-{part}")
        other = f"width {WIDTH}" if part == "length" else f"length {LENGTH}"
        caption = f"Milliseconds of one layer, forward and backward, at {other}"
        blocks.append(Picture(f"layer-{part}", f"Time of each kind of layer against {part}", f"{caption}."))
        sizes = sorted({size for column in cells.values() for size in column})
        body = [[f"{size:,}", *(f"{cells[kind][size]:,.2f}" for kind in cells)] for size in sizes]
        blocks.append(Table([part, *cells], body, f"{caption}."))
    reached = {row["kind"]: row for row in rows if row["part"] == "reach"}
    longest = {row["kind"]: row for row in rows if row["part"] == "length"}  # the last row of each kind
    body = []
    for kind, paper in PAPER.items():
        ours = [
            f"{axis}^{fits[kind, part]:.2f}" for axis, part in (("n", "length"), ("d", "width")) if (kind, part) in fits
        ]
        steps = f"{longest[kind]['steps']:,} of n = {longest[kind]['length']:,}" if kind in longest else "–"
        path = "–"
        if kind in reached:
            layers = reached[kind]["layers"]
            path = f"{reached[kind]['path']} of n = {reached[kind]['length']} ({layers} layer{'s' * (layers > 1)})"
        body.append(
            [
                kind,
                f"n^{paper.of_length} d^{paper.of_width}",
                " ".join(ours) or "–",
                paper.steps,
                steps,
                paper.path,
                path,
            ]
        )
    header = [
        "layer",
        "time, table",
        "time, measured",
        "steps, table",
        "steps, measured",
        "path, table",
        "path, measured",
    ]
    caption = (
        f"Table 1 of the paper beside what was measured, k = {KERNEL} and r = {WINDOW}. Exponents are fitted to the "
        "three largest sizes. A causal convolution sees k - 1 places back; the window goes through its tiles one by "
        "one to save memory, which its mask alone would not."
    )
    answer = [f"`{line[0]}`: time {line[1]} in the table, {line[2]} measured." for line in body if line[2] != "–"]
    answer += [
        f"From the first of {row['length']} places to the last: `{kind}` takes {row['layers']} "
        f"layer{'s' * (row['layers'] > 1)}, a path of {row['path']}."
        for kind, row in reached.items()
    ]
    return answer, [Table(header, body, caption, text=True), *blocks]
