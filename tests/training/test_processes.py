"""Two processes are one; a run is alone in its folder; signals and kills change nothing."""

import contextlib
import errno
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training import kill
from transformer.errors import Stopped, UserError
from transformer.training import lock
from transformer.training.processes import (
    AGREE_EVERY,
    SIGNALS,
    Agreement,
    _roll_call,
    agreement,
    alone_in,
    join,
    stop_signal,
)


def _train(config: Path, workdir: Path, devices: int, *more: str) -> "subprocess.Popen[str]":
    flags = f"--xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-m", "transformer.train", f"--config={config}", f"--workdir={workdir}", *more]
    return subprocess.Popen(
        command, cwd=kill.ROOT, env=os.environ | {"XLA_FLAGS": flags}, stderr=subprocess.PIPE, text=True
    )


def _port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def _losses(workdir: Path) -> list[float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def _train_apart(config: Path, workdir: Path, processes: int, *more: str, **mesh: int) -> "list[subprocess.Popen[str]]":
    """The devices of a mesh in so many processes."""
    sizes = mesh or {"data": 2, "fsdp": 2}  # rows over four, parameters split over pairs
    devices = math.prod(sizes.values())
    more = (*more, *(f"--config.mesh.{axis}={size}" for axis, size in sizes.items()))
    if processes == 1:
        return [_train(config, workdir, devices, *more)]
    more += (f"--coordinator=localhost:{_port()}", f"--processes={processes}")
    return [_train(config, workdir, devices // processes, *more, f"--process={index}") for index in range(processes)]


def _finish(running: "list[subprocess.Popen[str]]") -> None:
    for process in running:
        said = process.communicate()[1]
        assert process.returncode == 0, said


@pytest.mark.slow
def test_two_processes_of_two_devices_are_one_of_four(tmp_path: Path) -> None:
    config = kill.make_config(tmp_path, steps=10, checkpoint_every=5)
    _finish([*_train_apart(config, tmp_path / "two", 2), *_train_apart(config, tmp_path / "one", 1)])
    assert len(_losses(tmp_path / "one")) == 2
    np.testing.assert_allclose(_losses(tmp_path / "two"), _losses(tmp_path / "one"), rtol=1e-6)
    two, one = kill.final(tmp_path / "two"), kill.final(tmp_path / "one")
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "processes"), [({"data": 1, "tensor": 2}, 2), ({"data": 2, "tensor": 2}, 4)], ids=["alone", "with rows"]
)
def test_heads_may_be_split_over_processes(mesh: dict[str, int], processes: int, tmp_path: Path) -> None:
    """One device each, so that neighbours feed the same rows; what they save is saved once, and read by one process."""
    config, every = kill.make_config(tmp_path, steps=6, checkpoint_every=3), "--config.logging.log_every=1"
    _finish(_train_apart(config, tmp_path / "apart", processes, every, **mesh))
    _finish(_train_apart(config, tmp_path / "alone", 1, every, **mesh))
    apart, alone = _losses(tmp_path / "apart"), _losses(tmp_path / "alone")
    assert len(alone) == 6
    np.testing.assert_allclose(apart, alone, rtol=1e-6)
    found, expected = kill.final(tmp_path / "apart"), kill.final(tmp_path / "alone")
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.long
@pytest.mark.slow
def test_fifty_steps_in_one_two_and_four_processes(tmp_path: Path) -> None:
    """The loss of every step; `pytest -s` prints the largest relative differences."""
    config = kill.make_config(tmp_path, steps=50, checkpoint_every=25)
    every = ("--config.logging.log_every=1", "--config.optimizer.eps=1e-6")
    for processes in (1, 2, 4):
        _finish(_train_apart(config, tmp_path / str(processes), processes, *every))
    alone = np.array(_losses(tmp_path / "1"))
    assert len(alone) == 50
    for processes in (2, 4):
        apart = np.max(np.abs(np.array(_losses(tmp_path / str(processes))) / alone - 1))
        print(f"{processes} processes x {4 // processes} devices against 1 x 4: {apart:.1e}")
        assert apart <= 1e-5


DAMAGED_FOR_ONE = """
import sys, pathlib, jax, jax.numpy as jnp, numpy as np
from orbax.checkpoint import v1 as ocp
from transformer.training.checkpoint import Checkpoints
from transformer.training.processes import join

index = int(sys.argv[3])
join(sys.argv[2], 2, index, 60)
split = jax.sharding.NamedSharding(jax.make_mesh((2,), ("data",)), jax.sharding.PartitionSpec("data"))
make = jax.jit(lambda step: {"kernel": jnp.arange(8.0) + step}, out_shardings={"kernel": split})
checkpoints = Checkpoints(pathlib.Path(sys.argv[1]), keep=3, owner=True)
for step in (4, 8):
    checkpoints.save(step, make(step), {})
checkpoints.finish()
whole = ocp.load

def load(folder, *more, **named):
    if index == 1 and folder.name == "8":
        raise ValueError("a sector of this machine's disk")
    return whole(folder, *more, **named)

ocp.load = load
like = {"kernel": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=split)}
state = checkpoints.restore(like)
checkpoints.set_aside_after(4)
print([float(shard.data[0]) for shard in state["kernel"].addressable_shards], checkpoints.latest)
checkpoints.close()
"""


@pytest.mark.slow
def test_what_one_process_cannot_read_none_restores(tmp_path: Path) -> None:
    """One would go on from step 8 and the other from step 4, or both wait for each other."""
    reasons = ("another process cannot read its share", "a sector of this machine's disk")
    for index, process in enumerate(_two(DAMAGED_FOR_ONE, tmp_path)):
        out, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        assert out.splitlines()[-1] == f"[{4.0 + 4 * index}] 4"
        assert f"is damaged ({reasons[index]}): it is left out for the one before" in said
    assert (tmp_path / "damaged_checkpoints" / "8").is_dir()


STARTS = """
import contextlib, json, pathlib, sys, threading
from transformer.errors import Stopped, UserError
from transformer.training import processes
from transformer.training.lock import only_process_in

folder, address, index = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
processes.join(address, 2, index, 60)
processes.SECONDS_TO_APPEAR = 0.5
first, told = index == 0, {}


@contextlib.contextmanager
def case(name):
    try:
        yield
        told[name] = "went on"
    except (UserError, OSError, Stopped) as error:
        told[name] = f"{type(error).__name__}: {error}"


for name, who in (("mistake of 0", 0), ("mistake of 1", 1)):
    with case(name), processes.together():
        if index == who:
            raise UserError("this tokenizer cannot be read")
with case("error of 0"), processes.together():
    if first:
        raise OSError("No space left on device")
with case("stopped"), processes.together(lambda: index == 1):
    pass
with case("other seed"):
    processes.check_same({"steps": 4, "seed": 4 + index, "learned": None})
with case("same"):
    processes.check_same({"steps": 4})
with case("other folders"), processes.alone_in(folder / str(index)):
    pass
if first:
    (folder / "only 0").mkdir()
with case("no folder"), processes.alone_in(folder / ("run" if first else "nowhere")):
    pass
with contextlib.ExitStack() as held:
    if first:  # flock counts open files, not processes
        held.enter_context(only_process_in(folder / "taken"))
    with case("taken"), processes.alone_in(folder / "taken"):
        pass
with case("alone"), processes.alone_in(folder / "run"):
    if first:
        (folder / "run" / "config.json").touch()
print(json.dumps(told), flush=True)
"""


def _two(program: str, folder: Path) -> "list[subprocess.Popen[str]]":
    """The program in two processes of one run, with the arguments folder, address and index."""
    address = f"localhost:{_port()}"
    return [
        subprocess.Popen(
            [sys.executable, "-c", program, str(folder), address, str(index)],
            cwd=kill.ROOT,
            env=os.environ | {"XLA_FLAGS": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in (0, 1)
    ]


def test_what_fails_in_one_process_ends_both(tmp_path: Path) -> None:
    told = []
    for process in _two(STARTS, tmp_path):
        out, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        told.append(json.loads(out.splitlines()[-1]))
    zero, one = told
    sentence = "this tokenizer cannot be read"
    assert (zero["mistake of 0"], one["mistake of 0"]) == (
        f"UserError: {sentence}",
        f"UserError: process 0 of 2: {sentence}",
    )
    assert (zero["mistake of 1"], one["mistake of 1"]) == (
        f"UserError: process 1 of 2: {sentence}",
        f"UserError: {sentence}",
    )
    assert zero["error of 0"] == "OSError: No space left on device"
    assert one["error of 0"] == "UserError: process 0 of 2: OSError: No space left on device"
    assert (
        zero["stopped"]
        == one["stopped"]
        == "Stopped: stopped before the first step of this start, with nothing to save"
    )
    assert zero["other seed"] == one["other seed"]
    assert "process 1 of 2 has seed=5 and process 0 has 4: start all processes with the same" in zero["other seed"]
    assert zero["same"] == one["same"] == "went on"
    for name, where in (("other folders", "1"), ("no folder", "nowhere")):
        assert f"{str(tmp_path / where)!r} on " in one[name]
        assert "all processes need one --workdir, on a file system that their machines share" in one[name]
        assert zero[name] == one[name].replace("UserError: ", "UserError: process 1 of 2: ")
    assert "another process is at work" in zero["taken"]
    assert one["taken"] == zero["taken"].replace("UserError: ", "UserError: process 0 of 2: ")
    assert zero["alone"] == one["alone"] == "went on"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["only 0", "run"], "what failed has left nothing"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "config.json"]


@pytest.mark.slow
def test_two_processes_that_differ_end_before_the_first_step(tmp_path: Path) -> None:
    """Each with the sentence, in both processes; and a signal to one of them stops both at the same step."""
    config = kill.make_config(tmp_path, steps=4000, checkpoint_every=1000)

    def train(name: str, *differing: tuple[str, ...]) -> "list[subprocess.Popen[str]]":
        join = [f"--coordinator=localhost:{_port()}", "--processes=2"]
        return [
            _train(config, tmp_path / name, 1, *join, f"--process={index}", *more)
            for index, more in enumerate(differing)
        ]

    seed, data = train("seed", (), ("--config.seed=7",)), train("none", ("--config.data.dir=/nowhere",), ())
    sentences = {"process 1 of 2 has seed=7 and process 0 has 0": seed, "no file /nowhere/train.en": data}
    for sentence, running in sentences.items():
        for process in running:
            said = process.communicate(timeout=120)[1]
            assert process.returncode == 2, said
            assert sentence in next(line for line in said.splitlines() if line.startswith("error: "))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["cache", "data"]
    both = train("both", (), ())
    while kill.steps_written(tmp_path / "both") < 10:
        assert both[0].poll() is None, both[0].communicate()[1]
        time.sleep(0.05)
    both[1].send_signal(signal.SIGUSR1)
    ends = []
    for process in both:
        said = process.communicate(timeout=120)[1]
        assert process.returncode == os.EX_TEMPFAIL, said
        ends.append(said.splitlines()[-1])
    assert ends[0] == ends[1]
    assert re.fullmatch(r"stopped after step \d+ of 4000, which is saved: the same command goes on from there", ends[0])


def test_a_process_that_never_joins_is_named() -> None:
    port = _port()
    with pytest.raises(UserError, match=rf"processes 1, 2 of 3 did not join at localhost:{port} within 1 s: start"):
        join(f"localhost:{port}", 3, 0, 1)
    with pytest.raises(UserError, match=rf"process 0 did not answer at localhost:{port} within 1 s: start all 3"):
        join(f"localhost:{port}", 3, 2, 1)


def test_the_roll_call_ends_when_all_are_there() -> None:
    port = _port()
    others = [threading.Thread(target=_roll_call, args=("localhost", port, 3, index, 60)) for index in (2, 1)]
    for thread in others:
        thread.start()
    _roll_call("localhost", port, 3, 0, 60)
    for thread in others:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("given", [("localhost", 2, 0), ("localhost:1", None, 0), ("localhost:1", 2, 2), (":1", 2, 0)])
def test_a_process_that_is_none_is_a_sentence(given: tuple[str, int | None, int]) -> None:
    with pytest.raises(UserError, match="name no process of a run: give host:port"):
        join(*given, 1)


# --- Agreement


class Board(dict[str, str]):
    """The key-value store of JAX's coordination service."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        assert allow_overwrite or key not in self
        self[key] = value

    def key_value_dir_get(self, folder: str) -> list[tuple[str, str]]:
        return [(key, value) for key, value in self.items() if key.startswith(folder)]


def test_one_process_agrees_with_itself_at_once() -> None:
    assert agreement()(3, stopping=True, late=False) == {"stopping": True, "late": False}


@pytest.mark.parametrize("leader", [0, 1, 2])
@pytest.mark.parametrize("raised", [1, 5, 6, 7, 8, 9])
def test_all_processes_agree_at_one_step(raised: int, leader: int) -> None:
    """One is as far before the others as it can be: with the metrics of step t - 1, which they have dispatched and no
    more, it asks in step t."""
    board = Board()
    processes = [Agreement(board) for _ in range(3)]
    for process in processes:
        process.folder = processes[0].folder  # in three processes the counts are equal
    first: dict[int, dict[str, list[int]]] = {index: {"stopping": [], "late": []} for index in range(3)}

    def step(index: int, number: int) -> None:
        raising = index == 1 and number >= raised  # as a signal that stays
        late = index == 2 and number >= raised and not first[2]["late"]  # until it has saved
        found = processes[index](number, stopping=raising, late=late)
        for name in (name for name, agreed in found.items() if agreed):
            first[index][name].append(number)

    for number in range(1, 40):
        for index in (index for index in range(3) if index != leader and number > 2):
            step(index, number - 2)
        step(leader, number)
    for number in (38, 39):
        for index in (index for index in range(3) if index != leader):
            step(index, number)
    assert first[0] == first[1] == first[2], "they would save other steps, or wait for each other forever"
    (late,) = first[0]["late"]
    assert raised + 2 <= late == first[0]["stopping"][0] <= raised + 1 + AGREE_EVERY


def test_runs_of_one_process_have_boards_of_their_own() -> None:
    board = Board()
    first, second = Agreement(board), Agreement(board)
    first(AGREE_EVERY - 2, stopping=True)
    assert first(AGREE_EVERY, stopping=False) == {"stopping": True}
    assert second(AGREE_EVERY, stopping=False) == {"stopping": False}


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    with alone_in(tmp_path / "run"):
        with pytest.raises(UserError, match=r"another process is at work in .*run'"), alone_in(tmp_path / "run"):
            pass
        with alone_in(tmp_path / "other"):
            pass
    with alone_in(tmp_path / "run"):  # the lock went with its holder
        pass


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to --workdir="), alone_in(tmp_path / "file" / "run"):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def test_a_file_system_without_locks_is_said_once(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with alone_in(tmp_path / "run"):
        (tmp_path / "run" / "config.json").touch()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"has no locks ({os.strerror(number)}): start no second process" in said
    assert (tmp_path / "run" / "config.json").exists()


def test_another_error_of_the_lock_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with pytest.raises(UserError, match=r"cannot write to --workdir=.*Input/output error"), alone_in(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()


def _fail(workdir: Path, *made: str) -> None:
    with contextlib.suppress(ValueError), alone_in(workdir):
        for name in made:
            (workdir / name).mkdir(parents=True)
        raise ValueError


def test_a_start_that_fails_removes_what_it_made_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    _fail(tmp_path / "there" / "a" / "run", "checkpoints", "x/y")
    assert list((tmp_path / "there").iterdir()) == [], "the folders above it, too"
    _fail(tmp_path / "there", "checkpoints")
    assert list((tmp_path / "there").iterdir()) == [], "the folder itself was there"
    (tmp_path / "there" / "empty").mkdir()
    _fail(tmp_path / "there", "checkpoints")
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["empty"], "and so was what it held"
    with alone_in(tmp_path / "run"):
        (tmp_path / "run" / "config.json").touch()
    _fail(tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", "config.json"}
    (tmp_path / "link").symlink_to(tmp_path / "there", target_is_directory=True)
    _fail(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()


def test_a_lock_that_its_holder_removes_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening and locking: two processes would else hold two files of one name."""
    real = lock.fcntl.flock

    def late(handle: Any, how: int) -> None:
        real(handle, how)
        monkeypatch.setattr(lock.fcntl, "flock", real)
        (tmp_path / ".lock").unlink()

    monkeypatch.setattr(lock.fcntl, "flock", late)
    with (
        lock.only_process_in(tmp_path),
        pytest.raises(UserError, match="another process"),
        lock.only_process_in(tmp_path),
    ):
        pass


@pytest.mark.parametrize("number", SIGNALS, ids=[signal.Signals(number).name for number in SIGNALS])
def test_a_signal_is_heard_and_the_handler_put_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_signal() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
    assert signal.getsignal(number) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_before_the_first_step_ends_the_start_at_once(tmp_path: Path) -> None:

    def begin() -> None:
        with stop_signal(), alone_in(tmp_path / "run"):
            with contextlib.suppress(Exception):  # a restore that it interrupts is no damage
                os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("went on")

    with pytest.raises(Stopped, match="before the first step"):
        begin()
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup and the workers of an experiment
    try:
        with stop_signal() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop()
    finally:
        signal.signal(signal.SIGINT, before)


BUSY = """
import ctypes
from transformer.training.processes import stop_signal

with stop_signal() as stop:
    stop()
    print("busy", flush=True)
    ctypes.CDLL(None).sleep(60) or ctypes.CDLL(None).sleep(60)  # as compiling: no operation of Python ends
    ctypes.CDLL(None).sleep(60)
"""


def test_the_second_interrupt_ends_at_once() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY], cwd=kill.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "busy\n"
    process.send_signal(signal.SIGINT)
    assert "once more" in process.stderr.readline()
    assert process.poll() is None, "the first one saves"
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130
    process.communicate()


def test_outside_the_main_thread_there_is_no_signal() -> None:
    said: list[Any] = []

    def ask() -> None:
        with stop_signal() as stop:
            said.append(stop())

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert said == [False]


ENDS = """
from transformer import command_line
from transformer.errors import Stopped

def main():
    raise Stopped("stopped after step 3 of 8, which is saved")

command_line.run(main)
"""


def test_the_exit_code_says_that_steps_are_left() -> None:
    ended = subprocess.run([sys.executable, "-c", ENDS], cwd=kill.ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 75
    assert ended.stderr == "stopped after step 3 of 8, which is saved: the same command goes on from there\n"


@pytest.mark.slow
def test_killed_runs_end_bit_for_bit_alike(tmp_path: Path) -> None:
    assert kill.run(tmp_path, kills=3, steps=400, checkpoint_every=5, seed=3) == []


@pytest.mark.long
@pytest.mark.slow
def test_thirty_kills_by_each_signal(tmp_path: Path) -> None:
    assert kill.run(tmp_path, kills=30, steps=2400, checkpoint_every=20) == []
