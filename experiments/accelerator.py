"""What does one card do: are its kernels right, and how near does training come to its peak?

Hypothesis: every kernel gives what `dense` gives, up to rounding; a window of 128 costs the same at every length, and
less than cuDNN's, tokamax's and a blocked form in plain XLA; GPT-2 of 124 M parameters trains at half of the peak of an
H100 or more, as fast as PyTorch with flash attention and `torch.compile`; nanoGPT's recipe reaches its loss, 1.4697.

Sections are measured one after another, the most wanted first, each in a process of its own that ends with its share of
the time; all shares together are nine minutes. No network is needed, and no checkout: a copy of the tree will do. What
is missing here is said at the start, and what needs it is left out. A step's time is the median of groups of steps that
are dispatched together and waited for once, after steps that are not timed; kinds of attention take turns, in the other
order every other time. MFU is the model's FLOPs (nanoGPT's count) over the time and the data sheet's peak; the roofline
is the least time of the program as compiled, by its own FLOPs and bytes (`transformer.accelerators.roofline`). Both are
for devices whose data sheet is known here. Without an accelerator all sizes are those of a test of the program, and its
figures mean nothing.

Source: Dao 2023, "FlashAttention-2" (arXiv 2307.08691); karpathy/nanoGPT, README (1.4697, best of 5,000 steps).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.lab.card.packages import missing
from experiments.lab.render import Block, Paragraph, Table

__all__ = ["MOST_SECONDS", "cases", "findings", "measure_case", "missing"]

# Section -> the most seconds that it may take, start of its process included. In the order of their value.
MOST_SECONDS = {"kernels": 85.0, "gpt2": 115.0, "torch": 80.0, "window": 95.0, "nanogpt": 110.0, "decoding": 55.0}


def cases() -> dict[str, dict[str, Any]]:
    """A case for each section."""
    return {section: {"section": section} for section in MOST_SECONDS}


def measure_case(section: str, folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of a section, each as soon as it is measured."""
    from experiments.lab.card import device, kernels, lengths, recipe, steps

    rows = {
        "kernels": kernels.rows,
        "gpt2": steps.training,
        "torch": steps.torch_training,
        "window": lengths.rows,
        "nanogpt": lambda: recipe.rows(folder),
        "decoding": steps.decoding,
    }
    for row in rows[section]():
        yield {"section": section, "toy": device.is_toy()} | row


def findings(rows: list[dict[str, Any]], folder: Path) -> tuple[list[str], list[Block]]:
    """What each section says in a sentence, and its table."""
    del folder  # nothing is drawn
    parts = {"kernels": _kernels, "gpt2": _steps, "window": _window, "nanogpt": _recipe, "decoding": _decoding}
    answer: list[str] = []
    blocks: list[Block] = []
    if any(row["toy"] for row in rows):
        blocks.append(Paragraph("No accelerator: toy sizes on a processor, whose figures mean nothing.", "warning"))
        answer.append("No accelerator was used: these are toy sizes on a processor, and the figures mean nothing.")
    for section, part in parts.items():
        own = [row for row in rows if row["section"] in ((section, "torch") if section == "gpt2" else (section,))]
        measured = [row for row in own if "skipped" not in row]
        if measured:
            said, table = part(measured)
            answer += said
            blocks.append(table)
    skipped = [row for row in rows if "skipped" in row]
    if skipped:
        named = [[row["section"], _name(row), row["skipped"]] for row in skipped]
        blocks.append(Table(["section", "what", "why"], named, "Left out, with the reason.", text=True))
    return answer, blocks


def _name(row: dict[str, Any]) -> str:
    if "call" in row:
        return f"{row['backend']}: {row['call']}"
    return f"{row['kind']} at {row['length']:,}" if "kind" in row else row["what"]


def _kernels(rows: list[dict[str, Any]]) -> tuple[list[str], Table]:
    wrong = [row for row in rows if not row["fine"]]
    said = [
        f"{len(rows) - len(wrong)} of {len(rows)} kernels and forms give what `dense` gives: no error above twice that "
        "of `dense` in the same type, or one rounding.",
        *(f"WRONG: {_name(row)}: values {row['values']:.1e}, gradients {row['gradients']:.1e}." for row in wrong),
    ]
    body = [
        [
            row["call"],
            f"{row['backend']}{' (chosen)' if row['chosen'] else ''}",
            *(f"{row[key]:.1e}" for key in ("values", "dense_values", "gradients", "dense_gradients")),
            "yes" if row["fine"] else "NO",
        ]
        for row in rows
    ]
    header = ["call", "backend", "values", "of `dense`", "gradients", "of `dense`", "fine"]
    return said, Table(header, body, "Largest errors against `dense` in float32, relative to the largest number.")


def _steps(rows: list[dict[str, Any]]) -> tuple[list[str], Table]:
    said = [
        f"GPT-2 124M, {row['what']}: {row['milliseconds']:.1f} ms a step of {row['rows']} x {row['length']:,} tokens, "
        f"{row['tokens_per_second']:,.0f} tokens/s, {_shares(row)}."
        for row in rows
    ]
    ours = [row for row in rows if row["section"] == "gpt2"]
    theirs = [row for row in rows if row["section"] == "torch"]
    if ours and theirs:
        fast, other = (min(part, key=lambda row: row["milliseconds"]) for part in (ours, theirs))
        times = other["milliseconds"] / fast["milliseconds"]
        said.append(f"The fastest of ours is {times:.2f} times as fast as the fastest of PyTorch's.")
    body = [
        [
            row["what"],
            f"{row['milliseconds']:.2f}",
            f"{row['tokens_per_second']:,.0f}",
            _or(row["mfu"], "{:.1%}"),
            _or(row.get("bound_milliseconds"), "{:.2f}"),
            _or(row.get("times_bound"), "{:.2f}"),
            _or(row.get("compiled_bytes"), "{:.2f}", 1e-9),
            _or(row["peak_bytes"], "{:.2f}", 1e-9),
            f"{row['compile_seconds']:.1f}",
            f"{row['first_loss']:.3f} to {row['last_loss']:.3f}",
        ]
        for row in rows
    ]
    header = ["GPT-2 124M", "ms a step", "tokens/s", "MFU", "ms by the roofline", "measured / roofline",
              "GB by the compiler", "GB held at most", "s to compile", "loss on one batch"]  # fmt: skip
    return said, Table(header, body, "Training steps in bfloat16.")


def _shares(row: dict[str, Any]) -> str:
    """MFU and roofline of a step as a part of its sentence. PyTorch's program is not read, and has no roofline."""
    mfu = "no MFU" if row["mfu"] is None else f"MFU {row['mfu']:.1%}"
    if "times_bound" not in row:
        return f"{mfu} (no data sheet of this device)" if row["mfu"] is None else mfu
    if row["times_bound"] is None:
        return f"{mfu}, no roofline ({row['no_bound']})"
    return f"{mfu}, {row['times_bound']:.2f} times the {row['bound_milliseconds']:.1f} ms of its roofline"


def _or(value: float | None, form: str, scale: float = 1.0) -> str:
    return "–" if value is None else form.format(value * scale)


def _window(rows: list[dict[str, Any]]) -> tuple[list[str], Table]:
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    lengths = sorted({row["length"] for row in rows})
    at = {(row["kind"], row["length"]): row for row in rows}
    ours = {n: at["ours, window", n]["milliseconds"] for n in lengths if ("ours, window", n) in at}
    said = []
    for kind in kinds if ours else []:
        shares = [
            f"{at[kind, n]['milliseconds'] / ms:.2f} at {n:,}"
            for n, ms in ours.items()
            if kind != "ours, window" and (kind, n) in at
        ]
        if shares:
            said.append(f"`{kind}` takes so many times the time of our window: {', '.join(shares)}.")
    if len(ours) > 1:
        first, last = min(ours), max(ours)
        said.append(
            f"Our window takes {ours[first]:.2f} ms at {first:,} and {ours[last]:.2f} ms at {last:,}, for as many "
            "tokens."
        )
    body = [
        [
            f"{n:,}",
            *(
                f"{at[kind, n]['milliseconds']:.2f} ({at[kind, n]['bytes'] / 2**20:,.0f})" if (kind, n) in at else "–"
                for kind in kinds
            ),
        ]
        for n in lengths
    ]
    tokens = rows[0]["length"] * rows[0]["batch"]
    caption = f"Milliseconds of a forward and backward pass of {tokens:,} tokens, causal (MiB of work space)."
    return said, Table(["length", *kinds], body, caption)


def _recipe(rows: list[dict[str, Any]]) -> tuple[list[str], Table]:
    row = rows[-1]
    where = f"step {row['best_step']:,} of {row['last_step']:,}" + (
        "" if row["last_step"] == row["steps"] else f" (of {row['steps']:,} that were wanted)"
    )
    said = [f"nanoGPT's recipe: best validation loss {row['best_loss']:.4f} at {where}; published {row['published']}."]
    body = [
        [
            "nanoGPT's recipe",
            f"{row['best_loss']:.4f}",
            f"{row['best_step']:,}",
            f"{row['last_loss']:.4f}",
            f"{row['last_step']:,}",
            _or(row["milliseconds"], "{:.2f}"),
            f"{row['published']}",
        ]
    ]
    header = ["", "best loss", "at step", "last loss", "at step", "ms a step", "published best"]
    return said, Table(header, body, "Validation loss in nats a character, over the whole part.")


def _decoding(rows: list[dict[str, Any]]) -> tuple[list[str], Table]:
    rates = ", ".join(f"{row['tokens_per_second']:,.0f} with {row['rows']}" for row in rows)
    body = [
        [
            str(row["rows"]),
            f"{row['tokens_per_second']:,.0f}",
            f"{row['milliseconds'] / row['written']:.3f}",
            f"{row['bytes_per_second'] / 1e9:,.0f}",
            f"{row['compile_seconds']:.1f}",
        ]
        for row in rows
    ]
    header = ["texts at once", "tokens/s", "ms a token of each", "GB/s of parameters read", "s to compile"]
    return (
        [f"GPT-2 124M writes so many tokens/s, by the texts at once: {rates}."],
        Table(header, body, "Greedy decoding in bfloat16 with parameters in float32."),
    )
