"""Sweeps of tests stand beside each other, and share no runs unless a test asks for that."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from experiments import run
from experiments.lab import shared


@pytest.fixture(scope="session", autouse=True)
def _alone() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared, "RESULTS", ())
        yield


@pytest.fixture
def command_of(tmp_path: Path) -> Callable[[str], Callable[..., int]]:
    """Of a made-up experiment in `lab/`: the command that runs a copy of it, in a folder where it may find files."""

    def copied(name: str) -> Callable[..., int]:
        path = shutil.copy(Path(__file__).parent / "lab" / name, tmp_path / name)
        return lambda *options: run.main([str(path), f"--workdir={tmp_path / 'out'}", *options])

    return copied
