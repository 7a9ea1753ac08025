"""What a step costs: counted by XLA, by the formula, and held to a peak."""

import time
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from tests.training.tiny import DECODER, Made, ragged, tiny
from transformer.accelerators.program import read
from transformer.accelerators.sheets import SHEETS, known_flops
from transformer.config import override
from transformer.training import profiling
from transformer.training.profiling import Program, peak_flops
from transformer.training.sharding import make_layout

UNROLLED = DECODER | {"model.d_model": 64, "model.d_ff": 256, "mesh.data": 1}


class Jitted:
    """In the place of a jitted step: programs cost as many FLOPs as a batch has numbers."""

    def __init__(self) -> None:
        self.compiled: list[tuple[int, ...]] = []

    def lower(self, state: Any, batch: Any, seed: Any) -> Any:
        return SimpleNamespace(compile=lambda: self.compile(batch["inputs"]))

    def compile(self, x: np.ndarray) -> Any:
        self.compiled.append(x.shape)
        memory = {"argument_size_in_bytes": 100, "output_size_in_bytes": 30, "temp_size_in_bytes": 7}

        class Compiled:
            cost_analysis = staticmethod(lambda: {"flops": float(x.size)})
            memory_analysis = staticmethod(lambda: SimpleNamespace(**memory, alias_size_in_bytes=20))
            __call__ = staticmethod(lambda state, batch, seed: ("ran", x.shape))

        return Compiled()


def test_a_program_is_compiled_once_for_each_shape() -> None:
    jitted, small, large = Jitted(), {"inputs": np.zeros((2, 3))}, {"inputs": np.zeros((4, 5))}
    program = Program(jitted, 8, lambda batch: 2.0 if batch["inputs"].shape[0] == 2 else None)
    for batch in (small, large, small, large):
        assert program(None, batch, None) == ("ran", batch["inputs"].shape)
    assert jitted.compiled == [(2, 3), (4, 5)]
    assert program.cost(small) == (8 * 6.0, 2.0, 117)
    assert program.cost(large) == (8 * 20.0, None, 117)


@pytest.mark.parametrize(
    ("changes", "length", "most"),
    [
        pytest.param({}, 7, 1.0, id="decoder"),
        pytest.param({"task": "translation", "model.family": "encoder_decoder"}, 7, 1.0, id="encoder and decoder"),
        pytest.param({"model.attention": ["window:3"]}, 256, 1.25, id="windowed decoder"),
    ],
)
def test_the_compiled_step_counts_what_the_formula_counts(changes: dict[str, Any], length: int, most: float) -> None:
    """Unrolled, whole and on one device, the products of the compiled program, read from its text, are those of the
    formula: 6 a weight and token, and attention. A window is computed in tiles, which hold a little more. XLA counts
    them all, and the norms, softmax and Adam beside them, which are some percent at a width of 64."""
    made, batch = Made(tiny(**UNROLLED | changes)), ragged(0, length=length)
    made.step(made.create(np.uint32(0)), made.layout.place(batch), np.uint32(0))
    cost = made.step.cost(batch)
    assert cost.model_flops is not None
    products = read(made.compiled_text(batch), devices=1).flops
    assert 1 - 1e-4 < products / cost.model_flops < most + 1e-4
    assert 1.0 < cost.flops / products < 1.25
    state = 3 * 4 * sum(np.prod(shape) for shape in made.shapes.values())
    assert state < cost.memory_bytes < 20 * state * length / 7


@pytest.mark.slow
def test_the_compiled_step_counts_the_body_of_a_loop_once() -> None:
    """So of six scanned layers it counts one, and the formula six."""
    made, batch = Made(tiny(**UNROLLED | {"model.num_layers": 6, "model.scan_layers": True})), ragged(0)
    made.step(made.create(np.uint32(0)), made.layout.place(batch), np.uint32(0))
    cost = made.step.cost(batch)
    assert cost.model_flops is not None
    assert cost.flops / cost.model_flops < 0.5


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
    ],
)
def test_devices_of_the_table(kind: str, name: str) -> None:
    assert known_flops(kind, "bfloat16") == SHEETS[name].flops
    assert known_flops(kind, "float32") == SHEETS[name].single


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H100 PCIe", "NVIDIA T4", "TPU v4 lite"])
def test_other_devices_are_measured(kind: str) -> None:
    assert known_flops(kind, "bfloat16") is None


def test_a_peak_is_measured_once_and_fast() -> None:
    """Eight simulated devices share the cores, and so the peak: each has less than one that is alone."""
    one, eight = (make_layout(override(tiny(), {"mesh.data": devices})).mesh for devices in (1, 8))
    peaks = peak_flops(one, "float32"), peak_flops(eight, "float32")
    assert 1e9 < peaks[0] < 1e13
    assert peaks[1] < peaks[0]
    began = time.monotonic()
    assert peak_flops(one, "float32") == peaks[0]
    assert time.monotonic() - began < 0.01


def test_a_known_device_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = make_layout(override(tiny(), {"mesh.data": 1})).mesh
    monkeypatch.setattr(jax, "jit", None)  # without which nothing can be measured
    monkeypatch.setattr(profiling, "known_flops", lambda kind, dtype: {("cpu", "bfloat16"): 5e12}[kind, dtype])
    assert peak_flops.__wrapped__(mesh, "bfloat16") == 5e12
