"""Checkpoints that are damaged, of another model, on a full disk, read in part, or restored onto another mesh."""

import contextlib
import gc
import math
import os
import resource
import signal
import tempfile
import tracemalloc
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.tiny import DECODER, Made, ragged, tiny
from tests.users import unprivileged
from transformer.config import override
from transformer.errors import UserError
from transformer.training import checkpoint
from transformer.training.checkpoint import Checkpoints, checksums


def _state(step: int, size: int = 200) -> dict[str, Any]:
    return {"step": jnp.int32(step), "kernel": jax.random.normal(jax.random.key(step), (300, size))}


def _like(size: int = 200) -> Any:
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), _state(0, size))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Checkpoints of steps 4, 8 and 12, in a folder that nobody holds."""
    checkpoints = Checkpoints(tmp_path, keep=3, owner=True)
    for step in (4, 8, 12):
        checkpoints.save(step, _state(step), {"steps": 12})
    checkpoints.finish()
    checkpoints.close()
    return tmp_path


@pytest.fixture
def opened(run: Path) -> Iterator[Checkpoints]:
    checkpoints = Checkpoints(run, keep=3, owner=True)
    yield checkpoints
    checkpoints.close()


def _largest(run: Path, step: int) -> Path:
    """The file that holds the numbers."""
    return max((run / "checkpoints" / str(step)).rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


DAMAGES = {
    "one wrong bit": _flip,
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_left_out(
    run: Path, opened: Checkpoints, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    DAMAGES[damage](_largest(run, 12))
    restored = opened.restore(_like())
    jax.tree.map(np.testing.assert_array_equal, restored, _state(8))
    said = capsys.readouterr().err
    assert "the checkpoint of step 12" in said
    assert "is damaged" in said
    # Out of the way, so that the run can save its step 12 anew.
    opened.set_aside_after(8)
    assert opened.steps == [4, 8]
    assert (run / "damaged_checkpoints" / "12").is_dir()
    opened.save(12, _state(12), {})
    opened.finish()
    jax.tree.map(np.testing.assert_array_equal, opened.restore(_like()), _state(12))


def test_nothing_whole_is_a_sentence(run: Path, opened: Checkpoints) -> None:
    for step in (4, 8, 12):
        _flip(_largest(run, step))
    with pytest.raises(UserError, match=r"step 4 .* is damaged .* no whole one before it: delete the folder"):
        opened.restore(_like())


def test_a_checkpoint_of_another_model_is_a_sentence(opened: Checkpoints) -> None:
    with pytest.raises(UserError, match=r"another model .*kernel is \(300, 200\) in it and \(300, 7\) in the config"):
        opened.restore(_like(7))


def test_a_reader_leaves_what_is_being_written(run: Path) -> None:
    (run / "checkpoints" / "16.orbax-checkpoint-tmp").mkdir()
    reader = Checkpoints(run)
    assert reader.latest == 12
    reader.close()
    assert (run / "checkpoints" / "16.orbax-checkpoint-tmp").exists()
    Checkpoints(run, owner=True).close()
    assert not (run / "checkpoints" / "16.orbax-checkpoint-tmp").exists()


def _save_with(checkpoints: Checkpoints, losses: list[float | None]) -> None:
    """Checkpoints of steps 1, 2, ..., with their losses."""
    for step, loss in enumerate(losses, start=1):
        checkpoints.save(step, _state(step), {})
        if loss is not None:
            checkpoints.set_loss(step, loss)
    checkpoints.finish()


def test_the_best_stays_beside_the_newest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2, owner=True)
    _save_with(checkpoints, [3.0, None, 2.0, 5.0, None, None])
    assert checkpoints.steps == [3, 5, 6]
    assert checkpoints.best == 3
    checkpoints.close()
    assert Checkpoints(tmp_path).best == 3  # as another process finds it
    with pytest.raises(UserError, match=r"no checkpoint with a loss of validation: train with logging\.evaluate_every"):
        _ = Checkpoints(tmp_path / "none").best
    assert not (tmp_path / "none").exists()  # a reader makes no folder


@contextlib.contextmanager
def _little_room() -> Iterator[None]:
    """A limit on the size of files stands for the disk: the system refuses to write more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_loss_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1, owner=True)
    _save_with(checkpoints, [3.0, float("nan"), float("inf")])
    assert checkpoints.steps == [1, 3]
    assert checkpoints.best == 1
    assert set(checkpoints.losses) == {1, 3}
    checkpoints.close()


def test_where_every_loss_is_no_number_there_is_no_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2, owner=True)
    _save_with(checkpoints, [float("nan"), float("nan")])
    with pytest.raises(UserError, match=r"no checkpoint with a loss of validation"):
        _ = checkpoints.best
    checkpoints.close()


def test_a_loss_comes_after_the_save_and_nothing_is_removed_before(tmp_path: Path) -> None:
    """With keep=1, until it is known whether the new one is better both are there."""
    checkpoints = Checkpoints(tmp_path, keep=1, owner=True)
    _save_with(checkpoints, [3.0])
    checkpoints.save(2, _state(2), {})
    checkpoints.finish()
    assert (checkpoints.steps, checkpoints.best) == ([1, 2], 1)
    checkpoints.set_loss(2, 2.5)
    assert (checkpoints.steps, checkpoints.best) == ([2], 2)
    checkpoints.set_loss(7, 0.1)  # of a save that failed
    checkpoints.save(3, _state(3), {})
    checkpoints.set_loss(3, 4.0)
    checkpoints.finish()
    assert (checkpoints.steps, checkpoints.best) == ([2, 3], 2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]
    checkpoints.close()


def test_orbax_finds_the_loss_where_it_keeps_its_own(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, owner=True)
    _save_with(checkpoints, [3.5])
    checkpoints.close()
    other = checkpoint.ocp.training.Checkpointer(tmp_path / "checkpoints")
    assert [found.metrics for found in other.checkpoints] == [{"loss": 3.5}]
    other.close()


GARBLED = {
    "half": lambda path: path.write_text('{"lo'),
    "empty": lambda path: path.write_text(""),
    "another type": lambda path: path.write_text('{"loss": null}'),
    "not text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "an error of the system": lambda path: _replace(path, Path("/proc/self/mem")),
}


@pytest.mark.parametrize("garble", GARBLED)
def test_a_garbled_loss_is_said_once_and_costs_no_checkpoint(
    tmp_path: Path, garble: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2, owner=True)
    _save_with(checkpoints, [1.0, 2.0])
    GARBLED[garble](tmp_path / "checkpoints" / "1" / "metrics" / "metrics")
    assert checkpoints.best == 2
    for step in (3, 4):
        checkpoints.save(step, _state(step), {})
    checkpoints.finish()
    assert checkpoints.steps == [1, 2, 3, 4]
    assert capsys.readouterr().err.count("the validation loss of the checkpoint of step 1") == 1
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(_like(), 1), _state(1))
    checkpoints.close()


def test_a_full_disk_is_said_and_training_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2, owner=True)
    checkpoints.save(1, _state(1), {})
    checkpoints.finish()
    with _little_room():
        checkpoints.save(2, _state(2), {})
        with pytest.raises(UserError, match=r"could not be written .*: make room, .* go on from 1"):
            checkpoints.finish()
    assert "File too large" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]  # nothing half-written takes up room
    checkpoints.save(3, _state(3), {})
    checkpoints.finish()
    assert checkpoints.latest == 3
    checkpoints.close()


def test_what_comes_late_of_a_failed_save_is_cleared_away_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who write the other arrays hear of the failure a moment later."""
    checkpoints = Checkpoints(tmp_path, owner=True)
    half = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    half.mkdir()
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(half.exists())
        if len(waits) == 3:
            (half / "state").mkdir(parents=True)

    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(sleep=sleep))
    checkpoints._clear_unfinished()
    assert not half.exists()
    assert len(waits) > 3
    checkpoints.close()


def test_what_comes_even_later_goes_with_the_next_save(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, owner=True)
    (tmp_path / "checkpoints" / "1.orbax-checkpoint-tmp").mkdir()
    checkpoints.save(2, _state(2), {})
    checkpoints.finish()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]
    checkpoints.close()


# --- What is not damage


def _replace(path: Path, target: Path) -> None:
    path.unlink()
    path.symlink_to(target)


def _eio(step: Path) -> None:
    """Reading the first byte of one's own memory is an input/output error."""
    _replace(step / "state" / "_METADATA", Path("/proc/self/mem"))


def _eloop(step: Path) -> None:
    """An error of the system that reaches us as text, through TensorStore."""
    largest = max((step / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    _replace(largest, largest)


@pytest.mark.parametrize(
    ("spoil", "said"), [(_eio, "Input/output error"), (_eloop, "Too many levels of symbolic links")]
)
def test_an_error_of_the_system_is_no_damage(run: Path, opened: Checkpoints, spoil: Any, said: str) -> None:
    spoil(run / "checkpoints" / "12")
    with pytest.raises(UserError, match=rf"step 12 .* cannot be read now \({said}\): nothing was changed") as raised:
        opened.restore(_like())
    assert "delete" not in str(raised.value)
    assert opened.steps == [4, 8, 12]
    assert not (run / "damaged_checkpoints").exists()


def test_too_many_open_files_are_no_damage(run: Path, opened: Checkpoints) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")), hard))
        with pytest.raises(UserError, match=r"cannot be read now \(Too many open files\): nothing was changed"):
            opened.restore(_like())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert opened.steps == [4, 8, 12]
    jax.tree.map(np.testing.assert_array_equal, opened.restore(_like()), _state(12))


NO_DAMAGE = [
    MemoryError(),
    RuntimeError("can't start new thread"),
    ValueError("RESOURCE_EXHAUSTED: out of memory"),
    ValueError("PERMISSION_DENIED: Error opening"),
    ValueError("UNAVAILABLE: the service"),
    ValueError("UNKNOWN: Failed to open: Input/output error [os_error_code='5']"),
    PermissionError(13, "Permission denied"),
    TimeoutError("timed out"),
    ConnectionResetError("by peer"),
    type("TooManyRequests", (Exception,), {})("of a library that reads a remote disk"),
]


@pytest.mark.parametrize("error", NO_DAMAGE, ids=lambda error: f"{type(error).__name__} {error}"[:30])
def test_what_says_nothing_of_the_files_is_no_damage(
    opened: Checkpoints, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(checkpoint.ocp, "load", load)
    with pytest.raises(UserError, match=r"step 12 .* cannot be read now"):
        opened.restore(_like())


@pytest.mark.parametrize(
    "name", ["state/_METADATA", "state/manifest.ocdbt", "state/ocdbt.process_0/d/*", "checksums/data.json"]
)
def test_a_file_that_may_not_be_read_is_no_damage(name: str) -> None:
    """In a folder of its own: those above pytest's are closed to others."""
    with tempfile.TemporaryDirectory() as folder:
        made = Checkpoints(Path(folder), owner=True)
        _save_with(made, [1.0])
        made.close()
        for path in (Path(folder), *Path(folder).rglob("*")):
            path.chmod(0o755)
        for path in (Path(folder) / "checkpoints" / "1").glob(name):
            path.chmod(0)
        reader = Checkpoints(Path(folder))
        with unprivileged(), pytest.raises(UserError, match=r"step 1 .* cannot be read now \(Permission denied\)"):
            reader.restore(_like())
        reader.close()


def test_another_type_of_an_array_is_another_model(run: Path, opened: Checkpoints) -> None:
    """It was read as the other type, and then its checksum did not match."""
    like = _like()
    other = like["kernel"].update(dtype=jnp.bfloat16)
    with pytest.raises(UserError, match=r"another model .*kernel is float32 in it and bfloat16 in the config"):
        opened.restore(like | {"kernel": other})
    assert opened.steps == [4, 8, 12]


def test_a_reader_of_the_best_takes_one_that_is_better_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, reader = Checkpoints(tmp_path, keep=1, owner=True), Checkpoints(tmp_path)
    state = {step: {"params": _state(step)} for step in (1, 2)}
    trainer.save(1, state[1], {})
    trainer.set_loss(1, 3.0)
    read = Checkpoints._read

    def raced(self: Checkpoints, step: int, *more: Any) -> Any:
        if step == 1:
            trainer.save(2, state[2], {})
            trainer.set_loss(2, 2.0)
        return read(self, step, *more)

    monkeypatch.setattr(Checkpoints, "_read", raced)
    found = reader.restore_params(_like(), best=True)
    jax.tree.map(np.testing.assert_array_equal, found, _state(2))
    assert reader.restored == 2
    reader.close()
    trainer.close()


def test_a_damaged_best_is_said_and_no_other_is_taken_for_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1, owner=True)
    for step, loss in ((1, 2.0), (2, 3.0)):
        checkpoints.save(step, {"params": _state(step)}, {})
        checkpoints.set_loss(step, loss)
    _flip(_largest(tmp_path, 1))
    with pytest.raises(UserError, match=r"step 1 .* is damaged .*: use the newest checkpoint"):
        checkpoints.restore_params(_like(), best=True)
    checkpoints.close()


def test_a_kill_while_a_checkpoint_is_removed_leaves_none_that_is_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1, owner=True)
    checkpoints.save(1, _state(1), {})
    checkpoints.finish()

    def killed(path: Path) -> None:
        next(file for file in path.rglob("*") if file.is_file()).unlink()
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", killed)
        checkpoints.save(2, _state(2), {})
        checkpoints.finish()  # that is no failure of the save
    assert checkpoints.steps == [2]
    checkpoints.close()
    Checkpoints(tmp_path, owner=True).close()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]


def test_a_reader_that_races_the_pruning_takes_a_newer_one(
    run: Path, opened: Checkpoints, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Checkpoints(run)
    for step in (16, 20, 24):
        opened.save(step, _state(step), {})
    opened.finish()
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["16", "20", "24"]
    with monkeypatch.context() as patch:  # it had listed the folder before
        lists = iter([[4, 8, 12]])
        current = Checkpoints.steps.fget
        patch.setattr(Checkpoints, "steps", property(lambda self: next(lists, None) or current(self)))
        jax.tree.map(np.testing.assert_array_equal, reader.restore(_like()), _state(24))
    assert reader.restored == 24
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match="holds no checkpoint of step 12"):
        reader.restore(_like(), 12)
    reader.close()


def test_after_a_failed_save_the_list_is_that_on_disk(tmp_path: Path) -> None:
    """Orbax strikes the old checkpoint from its list before the new one is written."""
    checkpoints = Checkpoints(tmp_path, keep=1, owner=True)
    for step in (1, 2, 3, 4):
        full = step % 2 == 0
        with _little_room() if full else contextlib.nullcontext():
            checkpoints.save(step, _state(step), {})
            checkpoints._wait()
        assert (checkpoints.failed is not None) == full
        kept = step - 1 if full else step
        assert checkpoints.steps == [kept]
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [str(kept)]
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(_like()), _state(3))
    checkpoints.close()


# --- The parameters alone


def _unequal(step: int, params: int, moments: int) -> dict[str, Any]:
    """A state of so many rows of parameters and of moments; Orbax writes all of them into one file."""
    kernel = jax.random.normal(jax.random.key(step), (params + moments, 200))
    return {"step": jnp.int32(step), "params": {"kernel": kernel[:params]}, "moments": {"kernel": kernel[params:]}}


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _saved(folder: Path, params: int, moments: int, steps: tuple[int, ...] = (1, 2, 3)) -> Any:
    """The abstract state of the checkpoints that are saved."""
    checkpoints = Checkpoints(folder, keep=len(steps), owner=True)
    for step in steps:
        checkpoints.save(step, _unequal(step, params, moments), {})
    checkpoints.finish()
    checkpoints.close()
    return _abstract(_unequal(0, params, moments))


def test_the_moments_are_not_read_for_the_parameters(tmp_path: Path) -> None:
    like = _saved(tmp_path, params=3, moments=300)
    _flip(_largest(tmp_path, 3))
    reader = Checkpoints(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, reader.restore_params(like["params"]), _unequal(3, 3, 300)["params"])
    assert reader.restored == 3
    reader.average_params(like["params"], 3)
    assert int(reader.restore(like)["step"]) == 2
    reader.close()


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_parameters_are_left_out(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    like = _saved(tmp_path, params=300, moments=3)["params"]
    DAMAGES[damage](_largest(tmp_path, 3))
    reader = Checkpoints(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, reader.restore_params(like), _unequal(2, 300, 3)["params"])
    assert reader.restored == 2
    assert "step 3 " in capsys.readouterr().err
    each = [np.asarray(_unequal(step, 300, 3)["params"]["kernel"], np.float64) for step in (1, 2)]
    found = reader.average_params(like, 2)["kernel"]
    np.testing.assert_array_equal(found, np.mean(each, axis=0).astype(np.float32))
    with pytest.raises(UserError, match=r"holds 2 checkpoints, not 3: average fewer"):
        reader.average_params(like, 3)
    reader.close()


def test_parameters_of_another_model_are_a_sentence(tmp_path: Path) -> None:
    like = _saved(tmp_path, params=2, moments=2, steps=(1,))["params"]
    reader = Checkpoints(tmp_path)
    other = {"kernel": jax.ShapeDtypeStruct((2, 7), jnp.float32, sharding=like["kernel"].sharding)}
    for wrong, named in (
        (other, r"params/kernel is \(2, 200\) in it and \(2, 7\) in the config"),
        ({}, r"params/kernel is \(2, 200\) in it and not there in the config"),
        (like | {"bias": like["kernel"]}, r"params/bias is not there in it and \(2, 200\) in the config"),
    ):
        with pytest.raises(UserError, match=f"another model .*{named}"):
            reader.restore_params(wrong)
        with pytest.raises(UserError, match=f"another model .*{named}"):
            reader.average_params(wrong, 1)
    reader.close()


def test_the_mean_holds_one_checkpoint_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    like = _saved(tmp_path, params=30, moments=3)["params"]
    load, earlier = checkpoint.ocp.load, []

    def watched(*arguments: Any, **more: Any) -> Any:
        gc.collect()
        assert [kernel() for kernel in earlier] == [None] * len(earlier)
        tree = load(*arguments, **more)
        earlier.append(weakref.ref(tree["params"]["kernel"]))
        return tree

    monkeypatch.setattr(checkpoint.ocp, "load", watched)
    reader = Checkpoints(tmp_path)
    reader.average_params(like, 3)
    assert len(earlier) == 3
    reader.close()


def test_the_mean_is_of_the_shards_and_in_constant_memory(tmp_path: Path) -> None:
    """As where a run is split, once or over copies: bit for bit the float64 mean, and no more memory for more
    checkpoints. The host holds each sum once, in float64."""
    whole = _saved(tmp_path, params=1280, moments=8, steps=(1, 2, 3, 4))["params"]
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), whole)
    reader, peaks = Checkpoints(tmp_path), []
    reader.average_params(like, 2)  # what is compiled and imported
    for last in (2, 4):
        gc.collect()
        tracemalloc.start()
        found = reader.average_params(like, last)["kernel"]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.sharding == split
        each = [np.asarray(_unequal(step, 1280, 8)["params"]["kernel"], np.float64) for step in range(5 - last, 5)]
        np.testing.assert_array_equal(found, (sum(reversed(each)) / last).astype(np.float32))
    total = 8 * math.prod(whole["kernel"].shape)
    assert total < peaks[1] < min(2.5 * total, 1.25 * peaks[0]), peaks
    reader.close()


def test_the_mean_of_bfloat16_is_rounded_once(tmp_path: Path) -> None:
    """1, 1 and 1 + 2^-7: in bfloat16 each sum would be rounded, and the mean be 1."""
    checkpoints = Checkpoints(tmp_path, keep=4, owner=True)
    for step, value in enumerate((1.0, 1.0078125, 1.0078125), start=1):
        checkpoints.save(step, {"params": jnp.full((2,), value, jnp.bfloat16)}, {})
    like = _abstract(jnp.zeros((2,), jnp.bfloat16))
    checkpoints.finish()
    found = checkpoints.average_params(like, 3)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.float32(found), [1.0078125] * 2)
    checkpoints.close()


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write checkpoints to"):
        Checkpoints(tmp_path / "file", owner=True)


def test_no_wrong_bit_escapes_the_checksum() -> None:
    random = np.random.default_rng(0)
    words = random.integers(0, 2**32, (5, 7), dtype=np.uint32)
    whole = int(checksums({"x": words.view(np.float32)})["x"])
    expected = sum(int(word) * (2 * i + 1) for i, word in enumerate(words.ravel())) % 2**32
    assert whole == expected
    for _ in range(40):
        other = words.copy()
        other[random.integers(5), random.integers(7)] ^= np.uint32(1 << int(random.integers(32)))
        assert int(checksums({"x": other.view(np.float32)})["x"]) != whole


@pytest.mark.slow
def test_restored_onto_another_mesh_it_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    """Saved split by fsdp over 8, restored split by tensor over 2 x 4; and the next loss is the same to rounding."""
    meshes = [
        {"mesh.data": 1, "mesh.fsdp": 8},
        {"mesh.data": 2, "mesh.tensor": 4},
    ]
    one, other = (Made(override(tiny(**DECODER), mesh)) for mesh in meshes)
    state = one.create(np.uint32(0))
    checkpoints = Checkpoints(tmp_path, owner=True)
    checkpoints.save(1, state, {})
    checkpoints.finish()
    restored = checkpoints.restore(other.layout.abstract(jax.eval_shape(other.create, np.uint32(0))))
    checkpoints.close()
    assert tuple(restored.params["params"]["embedder"]["table"].sharding.spec) == ("tensor", None)
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, (state, restored)))
    losses = [
        jax.device_get(made.step(at, made.layout.place(ragged(1)), np.uint32(0))[1]["loss"])
        for made, at in ((one, state), (other, restored))
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
