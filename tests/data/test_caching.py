"""The cache: what changes a key, made once, whole or not at all."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from transformer.data import caching
from transformer.data.caching import Key, cached, load_array


def module(folder: Path, code: str, name: str = "maker") -> ModuleType:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(code)
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec
    assert spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def one() -> int:
    return 1


def two() -> int:
    return 2


def test_a_thing_is_made_once(tmp_path: Path) -> None:
    made = []

    def make(folder: Path) -> None:
        assert not list(folder.iterdir())
        (folder / "x").write_text("made")
        made.append(folder)

    key = Key(tmp_path / "things", ["a", 1], [one])
    folders = [cached(key, make), cached(Key(tmp_path / "things", ["a", 1], [one]), make)]
    assert folders[0] == folders[1]
    assert folders[0].parent == tmp_path / "things"
    assert (folders[0] / "x").read_text() == "made"
    assert len(made) == 1


def test_whatever_it_follows_from_is_in_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = module(tmp_path / "a", "# a comment\ndef make():\n    return 1\n")
    same = module(tmp_path / "b", "# a comment\ndef make():\n    return 1\n")
    changed = module(tmp_path / "c", "# a comment\ndef make():\n    return 2\n")

    def path(inputs: object = ("a",), code: object = (first,), libraries: tuple[str, ...] = ("numpy",)) -> Path:
        return Key(tmp_path, inputs, code, libraries).path  # type: ignore[arg-type]

    assert path(code=(same,)) == path()
    assert path(code=(first.make,)) == path(code=(same.make,))
    monkeypatch.setattr(caching.importlib.metadata, "version", lambda name: f"{name} of today")
    now = path()
    assert now == path()
    different = [
        path(("b",)),
        path(("a", "a")),
        path(code=(changed,)),
        path(code=(changed.make,)),
        path(code=(first.make,)),
        path(code=(one,)),
        path(code=(two,)),
        path(code=(first, one)),
        path(libraries=()),
        path(libraries=("scipy",)),
    ]
    monkeypatch.setattr(caching.importlib.metadata, "version", lambda name: f"{name} of tomorrow")
    assert len({now, path(), *different}) == 12


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise error

    key = Key(tmp_path, [], [one])
    with pytest.raises(error):
        cached(key, fail)
    assert not key.path.exists()
    assert not list(tmp_path.glob("*.part")) + list(tmp_path.glob(".*.part"))
    assert (cached(key, lambda folder: (folder / "whole").touch()) / "whole").exists()


KILLED = """
import os, sys
from pathlib import Path
from transformer.data.caching import Key, cached
def make(folder):
    (folder / "half").write_text("half")
    os._exit(9)
cached(Key(Path(sys.argv[1]), [], []), make)
"""


def test_what_a_killed_process_left_is_swept_up(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False).returncode == 9
    assert list(tmp_path.glob(".*.part"))
    made = cached(Key(tmp_path, [], []), lambda folder: (folder / "whole").touch())
    assert [path.name for path in made.iterdir()] == ["whole"]
    assert not list(tmp_path.glob(".*.part"))


def test_large_arrays_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", np.arange(7))
    assert not isinstance(load_array(tmp_path / "a.npy"), np.memmap)
    monkeypatch.setattr(caching, "MAP_ABOVE", 0)
    assert isinstance(load_array(tmp_path / "a.npy"), np.memmap)
    assert load_array(tmp_path / "a.npy").tolist() == list(range(7))
