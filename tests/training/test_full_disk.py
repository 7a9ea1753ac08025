"""A disk that fills and is freed again, twice, under a run: a small tmpfs stands for it, so root runs this."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.training import kill
from transformer.training.checkpoint import Checkpoints

SIZE = 6_000_000  # bytes; a checkpoint of this run has about a tenth


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder], check=False)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def _fill(ballast: Path) -> None:
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mount") is None or os.geteuid() != 0, reason="mounting a tmpfs needs root")
def test_a_disk_that_fills_and_is_freed_twice_costs_nothing_but_the_saves_between(tmp_path: Path) -> None:
    """The run goes on; what it has saved, and the best of that, stays; the end is that of a run with room."""
    steps, disk = 400, tmp_path / "disk"
    config = kill.make_config(tmp_path, steps, checkpoint_every=10, log_every=10)
    with (tmp_path / "whole.log").open("w") as file:
        whole = kill.start(config, tmp_path / "whole", file.fileno())
    with small_disk(disk):
        workdir, log = disk / "run", tmp_path / "log"
        with log.open("w") as file:
            process = kill.start(config, workdir, file.fileno())

        def wait(what: Callable[[], Any]) -> None:
            until = time.monotonic() + 300
            while not what():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.005)

        def failures() -> int:
            return log.read_text().count("training goes on, and tries again at the next")

        checkpoints = Checkpoints(workdir)
        wait(lambda: len(checkpoints.losses) > 0)
        for _ in range(2):
            before, latest = failures(), checkpoints.latest
            _fill(disk / "ballast")
            wait(lambda before=before: failures() > before + 2)
            assert not process.poll()
            kept, best = checkpoints.steps, checkpoints.best
            assert latest in kept or max(kept) > latest
            assert 1 <= len(kept) <= 3, "the newest, the best, and perhaps one whose loss could not be written"
            (disk / "ballast").unlink()
            wait(lambda kept=kept: checkpoints.latest > max(kept))
            assert best in checkpoints.steps or checkpoints.losses[checkpoints.best] <= checkpoints.losses.get(best, 99)
        assert process.wait() == 0, log.read_text()
        assert whole.wait() == 0, (tmp_path / "whole.log").read_text()
        print(f"{failures()} saves failed; last checkpoint {checkpoints.latest}, best {checkpoints.best}")
        kept = [path.name for path in (workdir / "checkpoints").iterdir()]
        assert sorted(map(int, kept)) == checkpoints.steps, "nothing unfinished is left"
        named = kill.final(tmp_path / "whole"), kill.final(workdir)
        assert named[0].keys() == named[1].keys()
        assert all((named[0][name] == named[1][name]).all() for name in named[0])
        expected = kill.lines(tmp_path / "whole")
        assert [line for line in kill.lines(workdir) if line not in expected] == [], "no line is torn"
        checkpoints.close()
