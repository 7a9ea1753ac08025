"""The cache: what changes a key, made once, whole or not at all, and what is done where it cannot be written."""

import contextlib
import errno
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.users import unprivileged
from transformer import command_line
from transformer.config import DataConfig
from transformer.data import caching
from transformer.data.batches.corpus import tokenize
from transformer.data.caching import ArrayWriter, Key, cache_root, cached, load_array, spare, usable, writable, writing
from transformer.data.sources import load_source, multi30k, named
from transformer.data.tokenizers.training import load_or_train
from transformer.errors import UserError


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


# --- Caches that cannot be written


def set_mode(folder: Path, mode: int) -> None:
    for path in [*folder.rglob("*"), folder]:
        path.chmod(mode if path.is_dir() else mode & 0o666)


def open_up(folder: Path) -> None:
    folder.chmod(0o700)
    for path in folder.iterdir():
        if path.is_dir():
            open_up(path)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that every user can read, with a folder for temporary files in it."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    (folder / "temporary").mkdir()
    (folder / "temporary").chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "temporary"))
    for known in (caching._tell, caching._spare_of_process):
        known.cache_clear()
    yield folder
    open_up(folder)
    shutil.rmtree(folder)


def made_once(folder: Path) -> None:
    (folder / "x").write_text("made")


def never(folder: Path) -> None:
    raise AssertionError("made again")


def test_what_is_prepared_is_read_from_a_read_only_cache(room: Path) -> None:
    key = Key(room / "cache" / "things", ["a"], [one])
    cached(key, made_once)
    set_mode(room / "cache", 0o555)
    with unprivileged():
        assert (cached(key, never) / "x").read_text() == "made"
    assert not list((room / "temporary").iterdir())


@pytest.mark.parametrize("mode", [0o555, 0o000])  # read-only; of another user who lets nobody in
def test_what_a_read_only_cache_lacks_is_made_elsewhere(
    room: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    key = Key(room / "cache" / "things", ["b"], [one])
    (room / "cache" / "things").mkdir(parents=True)
    set_mode(room / "cache", mode)
    with unprivileged():
        (first, again) = (cached(key, make) for make in (made_once, never))
        assert first == again
        assert (first / "x").read_text() == "made"
        assert room / "temporary" in first.parents
        assert spare().stat().st_mode & 0o077 == 0
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert f"{room}/cache/things cannot be written" in told[0]


def test_an_entry_that_cannot_be_read_is_made_elsewhere(room: Path) -> None:
    key = Key(room / "cache" / "things", ["c"], [one])
    set_mode(cached(key, made_once), 0o000)
    (room / "cache" / "things").chmod(0o777)
    with unprivileged():
        assert room / "temporary" in cached(key, made_once).parents


def test_a_run_on_a_read_only_cache(room: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split in ("train", "val", "test_2016_flickr"):
        for language in ("en", "de"):
            (room / f"{split}.{language}").write_text("".join(f"{split} {language} {i}\n" for i in range(9)))
    data = DataConfig(name="multi30k", dir=str(room), cache=str(room / "cache"), vocab_size=280)

    def read(split: str) -> list[int]:
        source = load_source(data)
        return tokenize(source, split, ("en",), load_or_train(source, data), data)["en"].flat.tolist()

    expected = read("train")
    set_mode(room / "cache", 0o555)
    with unprivileged():
        assert read("train") == expected
        assert not caplog.records
        assert len(read("test")) > 0
    assert re.search("tokens/[0-9a-f]+ cannot be written", caplog.text)


def test_a_download_into_a_read_only_cache(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, missing = (room / "cache" / "downloads" / "multi30k" / name for name in ("there.gz", "missing.gz"))
    there.parent.mkdir(parents=True)
    there.write_bytes(b"before")
    set_mode(room / "cache", 0o555)
    opened = lambda url, timeout: contextlib.closing(tempfile.SpooledTemporaryFile())  # noqa: E731, SIM115
    monkeypatch.setattr(multi30k.urllib.request, "urlopen", opened)
    data = DataConfig(cache=str(room / "cache"))
    with unprivileged():
        assert multi30k._downloaded(data, "there.gz") == there
        assert room / "temporary" in multi30k._downloaded(data, "missing.gz").parents
    assert not missing.exists()


def test_a_dataset_by_name_in_a_read_only_cache(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is prepared there is read; another is prepared elsewhere, and found there again."""
    made: list[Path] = []

    class Named:
        """As much of a TFDS builder as loading asks for."""

        url_infos = None

        def __init__(self, name: str, data_dir: Path | None) -> None:
            self.data_dir_root = Path(data_dir or room / "none")
            self.data_path = self.data_dir = self.data_dir_root / name / "1.0.0"

        def is_prepared(self) -> bool:
            return self.data_path.is_dir()

    def prepare(builder: Named) -> None:
        made.append(builder.data_path)
        builder.data_path.mkdir()

    monkeypatch.setattr(named.tfds, "builder", lambda name, data_dir: Named(name, data_dir))
    monkeypatch.setattr(named, "prepare", prepare)
    monkeypatch.setattr(named, "from_builder", lambda name, builder, fingerprint: builder)
    monkeypatch.setattr(named, "surveyed", lambda source, builder, data: builder.data_path)
    there = room / "cache" / "tfds" / "there" / "1.0.0"
    there.mkdir(parents=True)
    set_mode(room / "cache", 0o555)
    with unprivileged():
        assert named.load(DataConfig(name="there", cache=str(room / "cache")), ()) == there
        assert not made
        for _ in range(2):
            found = named.load(DataConfig(name="missing", cache=str(room / "cache")), ())
            assert made == [found]
            assert room / "temporary" in found.parents


@pytest.mark.parametrize("home", ["", "file", "read only"])
def test_no_home_folder(
    room: Path, home: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def nobody(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    (room / "file").touch()
    (room / "read only").mkdir(mode=0o555)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    if home:
        monkeypatch.setenv("HOME", str(room / home))
    else:
        monkeypatch.delenv("HOME")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    with unprivileged():
        root = cache_root(DataConfig())
        assert room / "temporary" in root.parents
        assert (cached(Key(root / "things", [], [one]), made_once) / "x").exists()
        command_line.use_compilation_cache()
        assert room / "temporary" in Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).parents
    assert "cannot be written: what is missing there is kept in" in caplog.text
    sentence = r"data\.cache=~/x cannot be made .*: name a folder that you may write"
    with pytest.raises(UserError, match=sentence), unprivileged():
        cache_root(DataConfig(cache="~/x"))


def test_a_folder_for_temporary_files_that_others_can_write(room: Path) -> None:
    folder = room / "temporary" / f"transformer-{os.geteuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    assert spare() != folder
    assert spare() == spare()
    assert spare().stat().st_mode & 0o077 == 0


def test_nowhere_to_write(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(room / "none"))
    (room / "file").touch()
    with pytest.raises(UserError, match=r"Neither the cache nor .* can be written .*: name a folder in data\.cache"):
        writable(room / "file" / "cache")
    monkeypatch.setenv("HOME", str(room / "file"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    command_line.use_compilation_cache()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


# --- Full disks, and filesystems without locks

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_as_libraries_say(folder: Path) -> None:
    (folder / "half").write_text("half")
    raise RuntimeError("Failed to write [No space left on device]")


def full_within(folder: Path) -> None:
    (folder / "half").write_text("half")
    try:
        raise FULL
    except OSError as error:
        raise ValueError("Failed to finalize writing of split") from error


@pytest.mark.parametrize("make", [full_as_libraries_say, full_within])
def test_a_full_disk(tmp_path: Path, make) -> None:
    key = Key(tmp_path / "things", [], [one])
    with pytest.raises(UserError, match=r"There is no space left in .*things: free some, .* \(data\.cache\)") as error:
        cached(key, make)
    assert "\n" not in str(error.value)
    assert [path.suffix for path in key.shelf.iterdir()] == [".lock"]
    assert (cached(key, made_once) / "x").exists()


def test_a_disk_that_is_full_already(
    room: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def temporary_file(dir: Path) -> None:
        raise FULL

    monkeypatch.setattr(tempfile, "TemporaryFile", temporary_file)
    assert room / "temporary" in usable(room / "cache" / "things" / "a").parents
    assert "cache/things cannot be written" in caplog.text


def test_two_processes_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    def late(folder: Path) -> None:
        (folder / "x").write_text("late")
        with writing(key.path) as other:  # by another process, meanwhile
            other.mkdir()
            made_once(other)
        assert folder.exists(), "what another process is writing stays"

    monkeypatch.setattr(caching.fcntl, "lockf", no_locks)
    key = Key(tmp_path, [], [one])
    assert (cached(key, late) / "x").read_text() == "made"
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize("counts", [(), (0,), (3,), (1, 0, 12), (100, 1)])
@pytest.mark.parametrize(("shape", "dtype"), [((), np.int64), ((5, 2), np.uint8), ((3,), np.float32)])
def test_an_array_in_parts_is_what_save_writes(
    tmp_path: Path, counts: tuple[int, ...], shape: tuple[int, ...], dtype: type
) -> None:
    parts = [np.random.default_rng(n).integers(0, 99, (n, *shape)).astype(dtype) for n in counts]
    writer = ArrayWriter(tmp_path / "parts.npy", shape, dtype)
    for part in parts:
        writer.add(part)
    writer.close()
    np.save(tmp_path / "whole.npy", np.concatenate([np.zeros((0, *shape), dtype), *parts]))
    assert (tmp_path / "parts.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_rows_of_another_shape_are_no_rows_of_the_array(tmp_path: Path) -> None:
    writer = ArrayWriter(tmp_path / "a.npy", (2,), np.float32)
    with pytest.raises(ValueError, match=r"rows of shape \(3,\), not \(2,\)"):
        writer.add(np.zeros((4, 3), np.float32))
    writer.close()
