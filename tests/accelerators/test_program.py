"""What is read of a compiled program: FLOPs, trips of loops, collectives; the roofline; names of topologies; what is
said of a step that does not fit."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from transformer.accelerators import compiling, topologies
from transformer.accelerators.program import Op, Program, read
from transformer.accelerators.roofline import bound, utilisation
from transformer.accelerators.sheets import SHEETS, Sheet
from transformer.accelerators.topologies import Topology
from transformer.config import Config, override
from transformer.errors import UserError


def _text(function: Any, *shapes: tuple[int, ...]) -> str:
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile().as_text()


def test_products_count_two_flops_a_multiplication() -> None:
    found = read(_text(lambda x, y: x @ y, (67, 31), (31, 53)), 1)
    assert found.flops == 2 * 67 * 31 * 53
    assert (found.loops, found.branches, found.kernels, found.collectives) == ((), 0, {}, ())


def test_batched_products() -> None:
    found = read(_text(lambda x, y: jnp.einsum("bhlk,bhsk->bhls", x, y), (3, 5, 67, 31), (3, 5, 53, 31)), 1)
    assert found.flops == 2 * 3 * 5 * 67 * 31 * 53


def test_a_loop_counts_its_trips() -> None:
    """Also one inside another."""

    def step(x: Any, _: Any) -> Any:
        return jax.lax.fori_loop(0, 3, lambda i, y: jnp.tanh(y @ y), x), None

    found = read(_text(lambda x: jax.lax.scan(step, x, None, length=7)[0], (67, 67)), 1)
    assert found.flops == 7 * 3 * 2 * 67**3
    assert sorted((loop.times, loop.trips) for loop in found.loops) == [(1, 7), (7, 3)]


def test_a_branch_counts_nothing_and_is_seen() -> None:
    def choose(n: Any, x: Any) -> Any:
        return jax.lax.cond(n.sum() > 0, lambda: x @ x, lambda: x + 1)

    found = read(_text(choose, (2,), (67, 67)), 1)
    assert (found.branches, found.flops) == (1, 0)


TPU_LOOP = """HloModule jit_step, is_scheduled=true
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  %at = s32[]{:T(128)} get-tuple-element(%p), index=0
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%at, %one)
  %x = f32[8]{0} get-tuple-element(%p), index=1
  ROOT %t = (s32[]{:T(128)}, f32[8]{0}) tuple(%next, %x)
}
%condition (p.1: (s32[], f32[8])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  %at.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %limit = s32[]{:T(128)} constant(12)
  ROOT %less = pred[]{:T(512)} compare(%at.1, %limit), direction=LT
}
ENTRY %main (x.1: f32[8]) -> f32[8] {
  %x.1 = f32[8]{0} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, f32[8]{0}) tuple(%zero, %x.1)
  %loop = (s32[]{:T(128)}, f32[8]{0}) while(%start), condition=%condition, body=%body
  ROOT %out = f32[8]{0} get-tuple-element(%loop), index=1
}
"""


def test_trips_that_the_compiler_does_not_say_are_read_from_the_condition() -> None:
    assert [(loop.times, loop.trips) for loop in read(TPU_LOOP, 1).loops] == [(1, 12)]
    (loop,) = read(TPU_LOOP.replace("direction=LT", "direction=NE"), 1).loops
    assert loop.trips is None


def test_the_roofline_is_the_slower_of_products_and_bytes() -> None:
    sheet = Sheet(flops=100.0, single=10.0, memory=1.0, bandwidth=5.0, link=2.0)
    ops = (
        Op("product.1", "", flops=400.0, single=0.0, moved=5, times=3),  # 4 s by its products
        Op("copy.2", "", flops=0.0, single=0.0, moved=35, times=2),  # 7 s by its bytes
        Op("product.3", "", flops=400.0, single=20.0, moved=5, times=1),  # 3.8 s and 2 s in float32
    )
    found = bound(Program(ops, (), 0, {}, ()), sheet)  # type: ignore[arg-type]
    assert found.computing == pytest.approx(3 * 4 + 2 * 7 + 5.8)
    assert found.reading == pytest.approx((3 * 5 + 2 * 35 + 5) / 5)
    assert found.seconds == max(found.computing, found.reading)
    assert utilisation(1000.0, 20.0, 2, sheet.flops) == 0.25


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e:4x5", "of v5e 1x1, 2x2, 2x4, 4x4"),
        ("v5e-16", "did you mean 'v5e:4x4'"),
        ("v5e:1x8", "did you mean 'v5e:2x4'"),
        ("", "write a slice of TPUs such as v5e:4x4, or GPUs such as h100:1x1x8"),
        ("gpu", "there are a100, h100, h200, v4"),
        ("v5e:44", "did you mean 'v5e:4x4'"),
        ("v5:4x4", "did you mean 'v5"),
        ("h100:8", "write h100:slices x hosts x devices of a host"),
        ("h100:1x1x9", "at most 8"),
        ("b200:1x1x8", "did you mean"),
    ],
)
def test_a_topology_that_is_not_known_is_a_sentence(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        topologies.parse(name)


def test_a_compiler_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    for name, extra in (("v5e:4x4", "tpu"), ("h100:1x1x8", "gpu")):
        with pytest.raises(UserError, match=rf"is not installed: pip install '.\[{extra}\]'"):
            topologies.load(name)


def test_rows_that_do_not_divide_over_the_devices_are_a_sentence() -> None:
    eight = topologies.Topology("eight", "v5e", tuple(jax.devices()))
    config = override(Config(), {"model.vocab_size": 64, "data.row_multiple": 4, "data.batch_tokens": 1})
    with pytest.raises(UserError, match="a batch of 4 rows of length 256 does not divide over data x fsdp = 8"):
        compiling.compile_step(config, eight)


def test_every_known_group_has_a_sheet() -> None:
    for chip, sizes in topologies.TOPOLOGIES.items():
        assert chip in SHEETS
        assert topologies.parse(f"{chip}:{sizes[0]}")[0] == chip


# --- Steps that do not fit


def test_a_step_that_does_not_fit_is_a_sentence() -> None:
    found = compiling._too_large(120.0, 80.0, 64, "h100")
    assert str(found) == "a device needs 120.0 GB with 64 rows at a time, and an h100 has 80.0 GB"
    assert found.share == 1.5
    assert "and a v5e has 16.9 GB" in str(compiling._too_large(18.0, 16.9, 64, "v5e"))
    unknown = compiling._too_large(*compiling._gigabytes("RESOURCE_EXHAUSTED"), 64, "v5e")
    assert str(unknown) == "a v5e has too little memory for 64 rows at a time"


@pytest.mark.parametrize(
    ("fits_from", "share", "tried", "sentence"),
    [
        (4, 1.2, [2, 4], "2 rows at a time fit, with mesh.accumulate=4, in 3.0 GB"),
        (4, 3.5, [4], "2 rows at a time fit, with mesh.accumulate=4, in 3.0 GB"),
        (16, 1.2, [2, 4, 8], "not even one row at a time fits: split the parameters (mesh.fsdp, mesh.tensor), or set "
         "model.remat=full"),
    ],
)  # fmt: skip
def test_the_largest_step_that_fits_is_found(
    fits_from: int, share: float, tried: list[int], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 rows on eight devices: eight of each, in as few micro-batches as will do."""
    settings = {"model.vocab_size": 64, "data.max_len": 16, "data.buckets": (16,), "data.batch_tokens": 1024}
    config, devices = override(Config(), settings), tuple(jax.devices())
    began: list[int] = []

    def compile_step(config: Config, topology: Topology) -> Any:
        began.append(config.mesh.accumulate)
        if config.mesh.accumulate < fits_from:
            raise compiling.TooLarge("", share)
        layout = compiling.layout_on(config, compiling.task_of(config), topology)
        return compiling.Step(config, topology, layout, 64, 16, "", compiling.Memory(10**9, 2 * 10**9, 16e9), 1.0)

    monkeypatch.setattr(compiling, "compile_step", compile_step)
    topology = Topology("v5e:2x4", "v5e", devices)
    assert compiling.instead(config, topology, compiling.TooLarge("", share)) == sentence
    assert began == tried
    again = override(config, {"model.remat": "full"})
    assert "remat" not in compiling.instead(again, topology, compiling.TooLarge("", share))
