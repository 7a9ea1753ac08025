"""Where arrays live: logical axes, the same numbers on every mesh, and what the devices send each other."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.tiny import DECODER, MESHES, Made, copied, on, ragged, tiny, train
from transformer.accelerators.exchange import Collective
from transformer.accelerators.program import collectives
from transformer.config import load_file, override
from transformer.errors import UserError
from transformer.tasks.untrained import longest_batch
from transformer.training import sharding
from transformer.training.optim import RECENT, Norms
from transformer.training.sharding import check_rows, kept_whole, make_layout
from transformer.training.step import State

ROOT = Path(__file__).parents[2]

# --- The table


AXES = {
    "attention/query/kernel": ("model", "heads"),
    "attention/key/kernel": ("model", "key_heads"),
    "attention/out/kernel": ("heads", "model"),
    "embedder/table": ("vocabulary", "width"),
    "feed_forward/inner/bias": ("inner",),
    "layers_0/feed_forward/outer/kernel": ("layers", "inner", "model"),
    "layers_0/norm/scale": ("layers", "model"),
}


def test_what_the_optimizer_keeps_has_the_axes_of_its_parameter() -> None:
    layout = make_layout(on(tiny(), **MESHES["fsdp 8"]), axes=AXES)
    assert layout.names("optimizer/1/mu/params/attention/query/kernel", (16, 16)) == ("model", "heads")
    assert layout.names("params/layers_0/norm/scale", (6, 16)) == ("layers", "model")
    assert layout.names("step", ()) == ()
    with pytest.raises(ValueError, match=r"shape \(6, 16, 16\) and axes \('model', 'heads'\)"):
        layout.names("params/attention/query/kernel", (6, 16, 16))


@pytest.mark.parametrize(
    ("mesh", "path", "shape", "spec"),
    [
        ("fsdp 8", "attention/query/kernel", (16, 16), ("fsdp", None)),
        ("fsdp 8", "attention/query/kernel", (12, 16), (None, "fsdp")),  # what does not divide is left for the next
        ("fsdp 8", "embedder/table", (23, 16), (None, "fsdp")),
        ("fsdp 8", "feed_forward/inner/bias", (32,), (None,)),
        ("tensor 8", "attention/out/kernel", (16, 16), ("tensor", None)),
        ("tensor 8", "feed_forward/inner/bias", (32,), ("tensor",)),
        ("tensor 8", "embedder/table", (23, 16), (None, None)),  # an odd vocabulary stays whole
        ("fsdp_tensor 2 x 2 x 2", "layers_0/feed_forward/outer/kernel", (6, 32, 16), (None, "tensor", "fsdp")),
        ("fsdp_tensor 2 x 2 x 2", "embedder/table", (24, 16), ("tensor", "fsdp")),
        ("fsdp_tensor 2 x 2 x 2", "layers_0/norm/scale", (6, 16), (None, None)),  # a vector a layer is no matrix
        ("data 8", "embedder/table", (24, 16), (None, None)),
    ],
)
def test_how_parameters_are_split(mesh: str, path: str, shape: tuple[int, ...], spec: tuple[str | None, ...]) -> None:
    assert tuple(make_layout(on(tiny(), **MESHES[mesh]), axes=AXES).spec(path, shape)) == spec


def test_grouped_keys_that_do_not_divide_stay_whole() -> None:
    """Two heads of keys over four devices: half a head each would be a wrong split, though the columns divide."""
    layout = make_layout(on(tiny(**{"model.num_kv_heads": 2}), data=2, tensor=4), axes=AXES)
    assert tuple(layout.spec("attention/key/kernel", (16, 4))) == (None, None)
    assert tuple(layout.spec("attention/query/kernel", (16, 16))) == (None, "tensor")


@pytest.mark.parametrize(
    ("mesh", "parameters", "sentences"),
    [
        (
            "fsdp 8",
            {"embedder/table": (23, 12), "attention/query/kernel": (16, 4)},
            ["mesh.fsdp=8: embedder/table 23 x 12"],
        ),
        (
            "tensor 8",
            {"embedder/table": (23, 16), "layers_0/norm/scale": (6, 3)},
            ["mesh.tensor=8: embedder/table 23 x 16"],
        ),
        (
            "fsdp_tensor 2 x 2 x 2",
            {"embedder/table": (23, 15), "attention/key/kernel": (7, 9), "attention/query/kernel": (16, 16)},
            [
                "mesh.tensor=2: embedder/table 23 x 15, attention/key/kernel 7 x 9",
                "mesh.fsdp=2: embedder/table 23 x 15, attention/key/kernel 7 x 9",
            ],
        ),
        ("fsdp 8", {"embedder/table": (24, 12), "feed_forward/inner/bias": (31,)}, []),
        ("data 8", {"embedder/table": (23, 15)}, []),
    ],
)  # fmt: skip
def test_matrices_that_stay_whole_are_named(mesh: str, parameters: dict[str, Any], sentences: list[str]) -> None:
    """Vectors stay whole on purpose, and the table is split along the axis that divides, whichever it is."""
    found = kept_whole(make_layout(on(tiny(), **MESHES[mesh]), axes=AXES), parameters)
    assert found == [f"every device holds whole, because no axis divides over {sentence}" for sentence in sentences]


# --- The state


def _bytes(tree: Any, layout: sharding.Layout) -> int:
    """Of one device's share."""
    places = jax.tree.leaves(layout.shardings(tree))
    shares = [place.shard_shape(x.shape) for place, x in zip(places, jax.tree.leaves(tree), strict=True)]
    return sum(4 * int(np.prod(shape)) for shape in shares)


def test_fsdp_over_eight_holds_a_seventh_at_most_and_creates_no_more() -> None:
    wide = DECODER | {"model.d_model": 64, "model.d_ff": 256, "model.vocab_size": 513}
    made = Made(on(tiny(**wide), **MESHES["fsdp 8"]))
    shapes = jax.eval_shape(made.create, np.uint32(0))
    whole = sum(4 * x.size for x in jax.tree.leaves(shapes))
    for part in (shapes.params, shapes.optimizer):
        assert _bytes(part, made.layout) <= sum(4 * x.size for x in jax.tree.leaves(part)) / 7
    compiled = made.create.lower(np.uint32(0)).compile()  # type: ignore[attr-defined]
    memory = compiled.memory_analysis()
    assert memory.output_size_in_bytes <= whole / 7
    assert memory.output_size_in_bytes + memory.temp_size_in_bytes < whole / 2


def test_the_state_is_the_same_bit_for_bit_however_it_is_created() -> None:
    config = tiny(**DECODER)
    states = [Made(on(config, **mesh)).create(np.uint32(7)) for mesh in ({"data": 1}, MESHES["fsdp_tensor 2 x 2 x 2"])]
    table = states[1].params["params"]["embedder"]["table"]
    assert {shard.data.shape for shard in table.addressable_shards} == {(12, 8)}
    for left, right in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))


# --- The same numbers


@pytest.fixture(scope="module")
def alone() -> np.ndarray:
    return train(on(tiny(**DECODER), data=1), 4)[1]


@pytest.mark.parametrize(
    ("mesh", "accumulate"),
    [
        ("data 8", 4),
        ("fsdp_tensor 2 x 2 x 2", 4),
        pytest.param("fsdp 8", 1, marks=pytest.mark.slow),
        pytest.param("tensor 8", 1, marks=pytest.mark.slow),
    ],
)
def test_the_same_losses_on_every_mesh(alone: np.ndarray, mesh: str, accumulate: int) -> None:
    """Dropout, ragged rows, devices with rows of padding only, micro-batches."""
    state, lines = train(on(tiny(**DECODER), **MESHES[mesh], accumulate=accumulate), 4)
    np.testing.assert_allclose(lines, alone, rtol=1e-5)
    specs = {tuple(leaf.sharding.spec) for leaf in jax.tree.leaves(state.params)}
    axes = {axis for spec in specs for axis in spec if axis}
    assert axes == {
        axis for axis in ("fsdp", "tensor") if MESHES[mesh].get(axis, 1) > 1
    }  # and they are still where they were


@pytest.fixture(scope="module")
def alone_for_long() -> np.ndarray:
    return train(on(tiny(), data=1), 50, copied)[1]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("mesh", MESHES)
def test_the_same_losses_for_fifty_steps(alone_for_long: np.ndarray, mesh: str, accumulate: int) -> None:
    lines = train(on(tiny(), **MESHES[mesh], accumulate=accumulate), 50, copied)[1]
    np.testing.assert_allclose(lines, alone_for_long, rtol=1e-5)


def test_a_row_has_its_mask_in_any_micro_batch(alone: np.ndarray) -> None:
    """Without dropout the losses would agree even if rows were numbered wrongly; so would they if it did nothing."""
    config = on(tiny(**DECODER), data=1)
    parts = train(on(config, accumulate=4), 1)[1]
    np.testing.assert_allclose(parts, alone[:1], rtol=1e-6)
    dry = train(override(config, {"model.dropout": 0.0}), 1)[1]
    assert abs(dry[0] / alone[0] - 1) > 1e-3


# --- Updates that are skipped


@pytest.fixture(scope="module")
def guarded() -> Made:
    return Made(on(tiny(**DECODER | {"optimizer.max_spike": 3.0}), data=1))


def _skipped(made: Made, state: State) -> bool:
    """Whether a step left all but its number as it was, and counted nothing."""
    before = jax.device_get((state.params, state.optimizer))
    after, metrics = made.step(state, made.layout.place(ragged(0)), np.uint32(0))
    assert int(after.step) == 1
    same = jax.tree.map(np.array_equal, before, jax.device_get((after.params, after.optimizer)))
    counted = any(np.any(pair) for name, pair in jax.device_get(metrics).items() if name != "skipped")
    skipped = bool(metrics["skipped"][0])
    assert counted != skipped
    assert all(jax.tree.leaves(same)) == skipped
    return skipped


def test_a_loss_that_is_no_number_skips_the_update(guarded: Made) -> None:
    state = guarded.create(np.uint32(0))
    state.params["params"]["embedder"]["table"] = state.params["params"]["embedder"]["table"].at[5, 0].set(jnp.inf)
    assert _skipped(guarded, state)


def test_a_gradient_far_above_the_recent_ones_skips_the_update(guarded: Made) -> None:
    first = guarded.create(np.uint32(0))
    norm = guarded.step(first, guarded.layout.place(ragged(0)), np.uint32(0))[1]["gradient_norm"][0]

    def after(seen: int, mean: Any) -> State:
        made = guarded.create(np.uint32(0))
        norms = Norms(jnp.float32(mean), jnp.int32(seen))
        return made._replace(optimizer=(norms, *made.optimizer[1:]))

    assert _skipped(guarded, after(RECENT, norm / 3.01))
    assert not _skipped(guarded, after(RECENT, norm / 2.99))
    assert not _skipped(guarded, after(RECENT - 1, norm / 100))


# --- What is sent


def test_fsdp_gathers_matrix_by_matrix() -> None:
    """Never the whole tree at once: no all-gather is larger than the largest matrix."""
    wide = DECODER | {"model.d_model": 32, "model.d_ff": 128, "model.vocab_size": 256}
    made = Made(on(tiny(**wide), **MESHES["fsdp 8"]))
    sent = collectives(made.compiled_text(), 8)
    gathers = [one.result_bytes for one in sent if one.kind == "all-gather"]
    shapes = jax.eval_shape(made.create, np.uint32(0)).params
    largest = max(4 * x.size for x in jax.tree.leaves(shapes))
    assert gathers, "fsdp without a gather splits nothing"
    assert max(gathers) <= largest < sum(4 * x.size for x in jax.tree.leaves(shapes)) / 2


PROGRAM = """HloModule jit_step

%body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %g = f32[8,16]{1,0} all-gather(f32[1,16]{1,0} %x), replica_groups=[1,8]<=[8], dimensions={0}
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %w = (s32[], f32[8,16]) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"6"}}
  %r = (bf16[4]{0}, f32[2,2]{1,0}) all-reduce(%a, %b), replica_groups={{0,1},{2,3}}, to_apply=%add
  %s = (f32[2]{0}, f32[8]{0}) all-gather-start(%a), replica_groups=[2,4]<=[8], dimensions={0}
  %d = f32[8]{0} all-gather-done(%s)
}
"""


def test_collectives_are_read_from_the_text() -> None:
    found = collectives(PROGRAM, 8)
    assert set(found) == {
        Collective("all-gather", 512, 8, 6),
        Collective("all-reduce", 24, 2, 1),
        Collective("all-gather", 32, 4, 1),
    }
    assert sum(one.sent_bytes for one in found) == 6 * 512 * 7 / 8 + 2 * 24 / 2 + 32 * 3 / 4


# --- Groups of devices with a slow network between them


@dataclasses.dataclass(frozen=True)
class Device:
    """What the order of a mesh is made of."""

    id: int
    process_index: int
    slice_index: int = 0
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100 80GB HBM3"
    core_on_chip: int = 0
    coords: tuple[int, int, int] = (0, 0, 0)


def _machines(*devices: int, slices: bool = False) -> list[Device]:
    """GPUs, so many in each process; each process a slice of its own, or all of them one. The last comes first."""
    of = [index for index, count in enumerate(devices) for _ in range(count)]
    return [Device(n, index, index if slices else 0) for n, index in enumerate(of)][::-1]


def _pods(count: int) -> list[Device]:
    """Slices of 2 x 4 TPU v5e, four in a process."""
    return [
        Device(8 * pod + n, 2 * pod + n // 4, pod, "tpu", "TPU v5 lite", coords=(n % 2, n // 2, 0))
        for pod in range(count)
        for n in range(8)
    ]


@pytest.mark.parametrize("slices", [False, True])
@pytest.mark.parametrize(("groups", "each"), [(2, 2), (4, 1)])
def test_data_goes_over_groups_of_machines_first(slices: bool, groups: int, each: int) -> None:
    """Only neighbours along "data" are in two groups; and a group is of machines that follow each other."""
    mesh = sharding.arranged(_machines(4, 4, 4, 4, slices=slices), (8, 1, 2), groups)
    assert mesh.shape == (8, 1, 2)
    assert sorted(device.id for device in mesh.flat) == list(range(16))
    found = np.vectorize(lambda device: device.process_index // each)(mesh)
    np.testing.assert_array_equal(found, np.arange(8)[:, None, None] // (8 // groups) * np.ones((1, 1, 2)))


def test_data_goes_over_the_slices_of_tpus_first() -> None:
    mesh = sharding.arranged(_pods(3), (6, 2, 2), 3)
    found = np.vectorize(lambda device: device.slice_index)(mesh)
    np.testing.assert_array_equal(found, np.arange(6)[:, None, None] // 2 * np.ones((1, 2, 2)))
    neighbours = [np.array([device.coords for device in row]) for row in mesh.reshape(-1, 2)]
    assert {int(np.abs(a - b).sum()) for a, b in neighbours} == {1}, "tensor is between neighbours"


@pytest.mark.parametrize(
    ("devices", "groups", "sentence"),
    [
        (_machines(4, 4, 4), 2, r"mesh\.dcn=2, and the devices of each process are 4, 4, 4: set it to 1, or to what"),
        (_machines(4, 8), 2, r"mesh\.dcn=2, and the devices of each process are 8, 4: set it to 1"),
        (_machines(6, 6, slices=True), 4, r"mesh\.dcn=4, and the devices of each slice are 6, 6: set it to 1"),
        (_pods(2), 1, r"mesh\.dcn=1, and the devices of each slice are 8, 8: set it to how many slices there are"),
        (_pods(4), 2, r"mesh\.dcn=2, .* slice are 8, 8, 8, 8: set it to how many slices"),
        (_pods(1), 2, r"mesh\.dcn=2, .* slice are 8: set it to how many slices"),
    ],
)
def test_groups_that_there_are_not_are_a_sentence(devices: list[Device], groups: int, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        sharding.arranged(devices, (len(devices), 1, 1), groups)


# --- Bad input


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mesh.data": 9}, r"mesh\.data=9, .* but there are 8 devices"),
        ({"mesh.data": 0}, r"mesh\.data=0, .*one may be -1"),
        ({"mesh.fsdp": 3}, r"mesh\.data=-1, mesh\.fsdp=3, .* there are 8 devices"),
        ({"mesh.fsdp": -1}, r"one may be -1"),
        ({"mesh.dcn": 3}, r"mesh\.data=8 does not divide over mesh\.dcn=3"),
        ({"mesh.dcn": 2}, r"mesh\.dcn=2, and the devices of each process are 8: set it to 1"),
        ({"mesh.tensor": 8, "model.num_heads": 4}, r"num_heads=4 .* mesh\.tensor=8"),
        ({"mesh.tensor": 4, "model.d_ff": 30}, r"d_ff=30 .* mesh\.tensor=4"),
    ],
)
def test_what_does_not_fit_is_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as raised:
        make_layout(override(tiny(), changes))
    assert len(re.findall(r"\.\s", str(raised.value))) == 0


def test_a_part_of_the_devices_may_be_used() -> None:
    assert make_layout(on(tiny(), data=3)).mesh.size == 3


@pytest.mark.parametrize(
    ("mesh", "rows", "accumulate", "sentence"),
    [
        ("data 8", 12, 1, r"12 rows of length 7 does not divide over data x fsdp = 8 devices: .* multiple of 8,"),
        ("fsdp 2 x 4", 8, 2, r"8 rows .* = 8 devices and 2 micro-batches: make data\.row_multiple a multiple of 16,"),
        ("tensor 8", 6, 4, r"6 rows .* = 1 devices and 4 micro-batches: .* multiple of 4,"),
        ("fsdp_tensor 2 x 2 x 2", 6, 1, r"6 rows .* = 4 devices: .* multiple of 4,"),
    ],
)
def test_rows_that_do_not_divide_are_a_sentence(mesh: str, rows: int, accumulate: int, sentence: str) -> None:
    layout = make_layout(on(tiny(), **MESHES[mesh]))
    check_rows(layout, [(16, 7), (32, 5)], accumulate)
    with pytest.raises(UserError, match=sentence):
        check_rows(layout, [(32, 5), (rows, 7)], accumulate)


@pytest.mark.parametrize("devices", [1, 2, 4, 8, 16])
def test_the_command_of_the_readme_divides_on_any_number_of_devices(devices: int) -> None:
    """Its flags are read from the README."""
    (command,) = re.findall(r"train --config=configs/gpt2_124m\.py (?:.*\\\n)*.*", (ROOT / "README.md").read_text())
    given = dict(re.findall(r"--config\.(\S+)=(\S+)", command))
    assert {"mesh.fsdp": "-1", "mesh.accumulate": "4"}.items() <= given.items()
    changes = {key: int(value) if re.fullmatch(r"-?\d+", value) else value for key, value in given.items()}
    config = override(load_file(ROOT / "configs" / "gpt2_124m.py"), changes)
    layout, (length, rows) = make_layout(config, devices), longest_batch(config)
    assert (rows, length) == (512, 1024)
    assert layout.strategy == ("fsdp" if devices > 1 else "data")
    check_rows(layout, [(rows, length)], config.mesh.accumulate)


@pytest.mark.slow
def test_the_command_of_the_readme_compiles_for_sixteen_devices() -> None:
    """A smaller model with the same rows, in a process that has sixteen."""
    small = {"num_layers": 2, "d_model": 32, "d_ff": 64, "num_heads": 4, "vocab_size": 64, "max_positions": 8}
    sizes = [f"--config.model.{key}={value}" for key, value in small.items()]
    sizes += ["--config.data.max_len=8", "--config.data.buckets=(8,)", "--config.data.batch_tokens=4096"]
    flags = ["--config.mesh.accumulate=4", "--config.model.dtype=bfloat16", "--config.model.remat=dots"]
    command = [sys.executable, "-m", "transformer.describe", f"--config={ROOT / 'configs' / 'gpt2_124m.py'}"]
    ended = subprocess.run([*command, *sizes, *flags, "--mesh=fsdp=16"], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "compiled for 16 simulated devices, 512 rows of 8 tokens" in ended.stdout
    assert re.search(r"embedder/table .*fsdp: 32/16", ended.stdout)
