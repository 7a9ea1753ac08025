"""Two processes are one; a run is alone in its folder; SIGTERM and kills change nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training import kill
from transformer.errors import UserError
from transformer.training.processes import _roll_call, alone_in, any_process, join, stop_signal


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


def _train_apart(config: Path, workdir: Path, processes: int, *more: str) -> "list[subprocess.Popen[str]]":
    """Four devices in so many processes; rows over all of them, parameters split over pairs."""
    mesh = ["--config.mesh.data=2", "--config.mesh.fsdp=2", *more]
    if processes == 1:
        return [_train(config, workdir, 4, *mesh)]
    join = [f"--coordinator=localhost:{_port()}", f"--processes={processes}"]
    return [_train(config, workdir, 4 // processes, *mesh, *join, f"--process={index}") for index in range(processes)]


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
    address = f"localhost:{_port()}"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", DAMAGED_FOR_ONE, str(tmp_path), address, str(index)],
            cwd=kill.ROOT,
            env=os.environ | {"XLA_FLAGS": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in (0, 1)
    ]
    reasons = ("another process cannot read its share", "a sector of this machine's disk")
    for index, process in enumerate(running):
        out, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        assert out.splitlines()[-1] == f"[{4.0 + 4 * index}] 4"
        assert f"is damaged ({reasons[index]}): it is left out for the one before" in said
    assert (tmp_path / "damaged_checkpoints" / "8").is_dir()


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


def test_any_process_of_one_is_itself() -> None:
    assert any_process(3, True, False) == (True, False)


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


def test_sigterm_is_heard_and_the_handler_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_signal() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
    assert signal.getsignal(signal.SIGTERM) == before


def test_outside_the_main_thread_there_is_no_signal() -> None:
    said: list[Any] = []

    def ask() -> None:
        with stop_signal() as stop:
            said.append(stop())

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert said == [False]


@pytest.mark.slow
def test_killed_runs_end_bit_for_bit_alike(tmp_path: Path) -> None:
    assert kill.run(tmp_path, kills=3, steps=400, checkpoint_every=5, seed=3) == []


@pytest.mark.long
@pytest.mark.slow
def test_thirty_kills_by_each_signal(tmp_path: Path) -> None:
    assert kill.run(tmp_path, kills=30, steps=2400, checkpoint_every=20) == []
