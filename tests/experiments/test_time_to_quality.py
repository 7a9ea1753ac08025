"""Time to a loss, in small and with known losses."""

import dataclasses
import importlib.util
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments import time_to_quality
from experiments.lab.card import recipe
from experiments.lab.peers import Model
from experiments.time_to_quality import FAST, OURS, PEER, Kind, Point, in_turns, summary
from transformer.config import load_file, override
from transformer.describe import shapes
from transformer.errors import UserError

ROOT = Path(__file__).parents[2]
TORCH = importlib.util.find_spec("torch") is not None
SMALL = {
    "steps": 5, "data.max_len": 8, "data.buckets": (8,), "data.batch_tokens": 32, "data.row_multiple": 4,
    "model.max_positions": 8, "model.num_layers": 2, "model.d_model": 8, "model.d_ff": 12, "model.num_heads": 2,
    "optimizer.warmup_steps": 2,
}  # fmt: skip
PHRASE = "It goes on, and on it goes. "


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text(PHRASE * 40, encoding="utf-8")
    monkeypatch.setenv(recipe.VARIABLE, str(tmp_path / "input.txt"))
    kinds = {kind: (name, changes | SMALL) for kind, (name, changes) in time_to_quality.KINDS.items()}
    monkeypatch.setattr(time_to_quality, "KINDS", kinds)
    monkeypatch.setattr(time_to_quality, "EVERY", 64)


@pytest.mark.usefixtures("_small")
def test_all_kinds_in_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe's kinds train as many parameters, two layers of matrices and norms with biases, a place each and the
    characters; none is timed before it is compiled; and what is learned is told by a loss that falls."""
    monkeypatch.setattr(time_to_quality, "TARGET", 0.1)
    rows = {row["kind"]: row for row in time_to_quality.measure_case(3)}
    assert list(rows) == [OURS, PEER, FAST] if TORCH else [OURS, FAST]
    layers = 2 * (4 * 8 * 8 + 2 * 8 * 12) + (2 * 2 + 1) * 2 * 8
    assert rows[OURS]["parameters"] == layers + 8 * 8 + 8 * len(set(PHRASE))
    assert rows[OURS]["compile_seconds"] > 0
    for kind, row in rows.items():
        tokens, losses = zip(*(map(float, point.split(":")) for point in row["curve"].split()), strict=True)
        assert list(tokens) == [64, 128, 160]
        assert losses[-1] < losses[0] < 7, kind
        assert (row["tokens"], row["seconds"], row["seed"]) == (None, None, 3)
        assert row["all_seconds"] > 0
    if TORCH:
        assert rows[PEER]["parameters"] == rows[OURS]["parameters"]


@pytest.mark.skipif(not TORCH, reason="PyTorch is not installed: pip install '.[bench]'")
@pytest.mark.usefixtures("_small")
def test_the_peer_trains_as_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """With our weights and our whole vocabulary its losses are ours, before training and along it: the same model,
    batches, schedule, clipping and weight decay."""
    from experiments.lab.peers import torch_loop

    loops: list[Any] = []

    class Caught(torch_loop.Loop):
        def __init__(self, *arguments: Any, **others: Any) -> None:
            super().__init__(*arguments, **others)
            loops.append(self)

    monkeypatch.setattr(torch_loop, "Loop", Caught)
    name, changes = time_to_quality.KINDS[PEER]
    text = time_to_quality.read(name, changes | {"steps": 20, "optimizer.learning_rate": 1e-2}, 0)
    inputs, targets = time_to_quality.peer(text).batch(1)
    np.testing.assert_array_equal(text.known[inputs.numpy()], text.training.batch(1)["target_inputs"])
    np.testing.assert_array_equal(text.known[targets.numpy()], text.training.batch(1)["targets"])

    whole = dataclasses.replace(text, known=np.arange(text.task.model_config.vocab_size))
    mine, theirs = time_to_quality.ours(whole), time_to_quality.peer(whole)
    assert (mine.steps, mine.tokens, mine.parameters) == (theirs.steps, theirs.tokens, theirs.parameters)
    params = text.task.init(jax.random.key(0, impl="threefry2x32"))["params"]
    _give(loops[-1].network, params["decoder"], params["embedder"]["table"])
    assert theirs.loss() == pytest.approx(mine.loss(), rel=1e-6)
    for i in range(mine.steps):
        mine.step(i, mine.batch(i))
        theirs.step(i, theirs.batch(i))
        assert theirs.loss() == pytest.approx(mine.loss(), rel=1e-5)


def _give(network: Any, decoder: Any, table: Any) -> None:
    """Sets a peer's parameters to ours."""

    def norm(into: Any, ours: Any) -> None:
        copy(into.weight, ours["scale"])
        copy(into.bias, ours["bias"])

    def copy(into: Any, ours: Any) -> None:
        into.data.copy_(into.new_tensor(np.asarray(ours)))

    copy(network.table.weight, table)
    copy(network.places[0].weight, decoder["input"]["positions"]["table"])
    norm(network.norms[0], decoder["final_norm"])
    for i, block in enumerate(network.decoder):
        layer = decoder[f"layer_{i}"]
        attention, forward = layer["self_attention"], layer["feed_forward"]
        norm(block.norms[0], layer["self_attention_residual"]["norm"])
        norm(block.norms[1], layer["feed_forward_residual"]["norm"])
        products = [attention[part]["kernel"].T for part in ("query", "key", "value")]
        copy(block.attention.all.weight, np.concatenate(products))
        copy(block.attention.out.weight, attention["out"]["kernel"].T)
        copy(block.inner.weight, forward["inner"]["kernel"].T)
        copy(block.outer.weight, forward["outer"]["kernel"].T)


@pytest.mark.skipif(not TORCH, reason="PyTorch is not installed: pip install '.[bench]'")
def test_the_peer_begins_as_nanogpt() -> None:
    """Normal of 0.02, divided by the root of the residual additions, two a layer, for what is added there."""
    from experiments.lab.peers.torch_loop import Loop

    network = Loop(Model(8, 64, 256, 4, 16, 4, 65, 0.0, 0.0, encoder=False, bias=False), False).network
    for block in network.decoder:
        for matrix in (block.attention.all, block.inner):
            assert float(matrix.weight.std()) == pytest.approx(0.02, rel=0.05)
        for matrix in (block.attention.out, block.outer):
            assert float(matrix.weight.std()) == pytest.approx(0.005, rel=0.05)


def test_the_fast_config_is_no_larger_and_takes_a_sixth_of_the_tokens() -> None:
    recipe_of, fast = (
        override(load_file(ROOT / "configs" / f"{name}.py"), {"model.vocab_size": 65} | changes)
        for name, changes in (time_to_quality.KINDS[kind] for kind in (OURS, FAST))
    )
    sizes = [sum(map(math.prod, shapes(config).values())) for config in (recipe_of, fast)]
    assert sizes == [805_248, 801_152]
    tokens = [config.steps * config.data.batch_tokens for config in (recipe_of, fast)]
    assert tokens == [1_536_000, 256_000]
    assert recipe_of.data.max_len == fast.data.max_len


def test_the_first_loss_at_the_target_counts() -> None:
    losses = [2.5, 1.881, 1.88, 1.9, 1.7]
    row = summary([Point(768 * (i + 1), 2.0 * (i + 1), loss) for i, loss in enumerate(losses)], 768)
    assert (row["tokens"], row["seconds"]) == (3 * 768, 6.0)
    assert (row["best"], row["best_tokens"], row["last"]) == (1.7, 5 * 768, 1.7)
    assert (row["all_tokens"], row["all_seconds"], row["step_tokens"]) == (5 * 768, 10.0, 768)


def test_a_target_that_is_never_reached_is_none() -> None:
    row = summary([Point(10, 1.0, 1.95), Point(20, 2.0, 1.8801), Point(30, 3.0, 1.9)], 10)
    assert (row["tokens"], row["seconds"], row["best"], row["best_tokens"]) == (None, None, 1.8801, 20)


def test_kinds_take_turns_and_losses_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps take 1 s and losses, batches and compiling 100; "short" has fewer steps, of more tokens."""
    monkeypatch.setattr(time_to_quality, "EVERY", 8)
    monkeypatch.setattr(time_to_quality, "REST", 0.0)
    at, order = [0.0], []

    def passing(seconds: float, what: str = "", result: float = 0.0) -> float:
        at[0] += seconds
        order.extend([what] if what else [])
        return result

    def kind(name: str, steps: int, tokens: int) -> Kind:
        def step(i: int, batch: Any) -> float:
            assert i == batch
            return passing(1.0)

        return Kind(steps, tokens, 1, 0.0, lambda i: int(passing(100.0, result=i)), step,
                    lambda: passing(100.0, name, 2.0))  # fmt: skip

    curves = in_turns({"long": kind("long", 5, 4), "short": kind("short", 1, 16)}, lambda: at[0])
    assert order == ["long", "short", "long", "long"]
    assert curves == {"long": [Point(8, 2.0, 2.0), Point(16, 4.0, 2.0), Point(20, 5.0, 2.0)],
                      "short": [Point(16, 1.0, 2.0)]}  # fmt: skip


def _row(kind: str, seed: int, tokens: int | None, seconds: float | None) -> dict[str, Any]:
    size = 1_000 if kind == FAST else 3_000
    return {
        "kind": kind, "seed": seed, "parameters": 7, "compile_seconds": 1.0, "tokens": tokens, "seconds": seconds,
        "best": 1.8 + 0.1 * (tokens is None), "best_tokens": size, "last": 1.9, "all_tokens": size,
        "all_seconds": size / (50 if kind == PEER else 100), "step_tokens": 10, "curve": f"{size}:1.9",
    }  # fmt: skip


def test_findings_of_known_figures(tmp_path: Path) -> None:
    rows = [
        *(_row(OURS, seed, 2_000, 20.0) for seed in (0, 1)), _row(OURS, 2, None, None),
        *(_row(PEER, seed, None, None) for seed in (0, 1, 2)),
        *(_row(FAST, seed, 500, 4.0) for seed in (0, 1, 2)),
    ]  # fmt: skip
    answer, blocks = time_to_quality.findings(rows, tmp_path)
    assert answer == [
        "`ours` reaches 1.88 with 2 of 3 seeds, after 2,000 tokens and 20.0 s of training (medians of these); without "
        "it the best in 3,000 tokens: seed 2 1.9000.",
        "`PyTorch` reaches 1.88 with 0 of 3 seeds; the best in 3,000 tokens: seed 0 1.9000, seed 1 1.9000, seed 2 "
        "1.9000.",
        "`ours, gpt_fast` reaches 1.88 with 3 of 3 seeds, after 500 tokens and 4.0 s of training (medians of these).",
        "For as many tokens, `PyTorch` takes 2.00 times the seconds of `ours`; no seed takes both to 1.88.",
        "For as many tokens, `ours` takes 1.00 times the seconds of `ours, gpt_fast`; to 1.88 it takes 4.00 times the "
        "tokens and 5.00 times the seconds (medians of 2 of 3 seeds).",
        "For as many tokens, `PyTorch` takes 2.00 times the seconds of `ours, gpt_fast`; no seed takes both to 1.88.",
    ]
    table, curves = blocks
    assert table.rows[3][2:5] == ["not reached", "–", "1.9000 at 3,000"]  # type: ignore[union-attr]
    assert curves.rows == [["1,000", "–", "–", "1.9000"], ["3,000", "1.9000", "1.9000", "–"]]  # type: ignore[union-attr]


def test_no_text_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(recipe.VARIABLE, str(tmp_path / "none.txt"))
    with pytest.raises(UserError, match=r"^Tiny Shakespeare is not here: put it at .*, or set TINYSHAKESPEARE to .*$"):
        time_to_quality.measure_case(0)
