"""Paths as people write them: the home folder, URLs, and every character that a file system allows."""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import run as experiments_run
from transformer import load_run, paths
from transformer.config import Config, from_stored, override, to_dict
from transformer.errors import UserError
from transformer.train import train
from transformer.training.checkpoint import Checkpoints

URLS = ["gs://bucket/run", "s3://bucket/run", "memory://run", "file:///tmp/run", "hdfs://host:9000/run", "gs:/bucket"]
URLS += ["simplecache::gs://bucket/run", "https://host/run"]
PATH_KEYS = ["init_from", "data.dir", "data.cache", "data.source", "data.target", "data.tokenizer"]


@pytest.mark.parametrize("url", URLS)
def test_a_url_is_refused_wherever_a_path_belongs(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for key in PATH_KEYS:
        with pytest.raises(UserError, match=f"{key}='.*is a URL, and only files of this machine"):
            override(Config(), {key: url})
    for call in (load_run, lambda workdir: train(Config(), workdir)):
        for workdir in (url, Path(url)):  # a Path has one slash less
            with pytest.raises(UserError, match=r"--workdir=.*is a URL"):
                call(workdir)
    with pytest.raises(SystemExit) as stopped:
        experiments_run.main(["tying", f"--workdir={url}"])
    assert stopped.value.code == 2
    assert list(tmp_path.iterdir()) == []


def test_the_home_folder_is_expanded_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that ~ and the folder itself are one run, and another user's resume reads the same files."""
    monkeypatch.setenv("HOME", "/home/someone")
    for key in PATH_KEYS:
        config = override(Config(), {key: "~/x"})
        assert config == override(Config(), {key: "/home/someone/x"})
        group, _, name = key.rpartition(".")
        stored = to_dict(Config())
        (stored[group] if group else stored)[name] = "~/x"
        assert from_stored(stored) == config
    root = override(Config(), {"data.dir": "~root/x"}).data.dir
    assert root == os.path.expanduser("~root/x") != "~root/x"
    assert paths.local("~", "--input") == Path("/home/someone")
    assert paths.expanded("a~b/~", "--input") == "a~b/~"
    with pytest.raises(UserError, match=r"data.dir='~nobody.of.this.name/x' names a user whom this machine does not"):
        override(Config(), {"data.dir": "~nobody.of.this.name/x"})


def test_experiments_expand_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(experiments_run, "train", lambda *_: None)
    (tmp_path / "base.py").write_text(Path("configs/quantities.py").absolute().read_text())
    monkeypatch.chdir(tmp_path)
    arguments = ["--workdir=~/sweep", "--base=~/base.py", "--tune=none", "--set", "data.cache=~/cache"]
    with pytest.raises(SystemExit):  # nothing was trained
        experiments_run.main(["tying", *arguments])
    assert (tmp_path / "sweep" / "sweep.json").is_file()
    assert f'"cache": "{tmp_path}/cache"' in (tmp_path / "sweep" / "sweep.json").read_text()
    assert not (tmp_path / "~").exists()


# Names of a folder. Those of REFUSED are what the libraries below read as patterns, or as URLs.
NAMES = ["a b", " a", "a ", "a%20b", "%", "a#b", "a{b}", "{", "'a'", '"a"', "a\nb", "a\rb", "a\tb", "a\x01b", "a\x7fb"]
NAMES += ["\u00e9", "e\u0301", "日本", "🙂", "a\u2028b", "a\u0085b", "-a", "--a", "a:b", "x" * 255, "a|b", "a$b"]
NAMES += ["$HOME", "a`b", "a;b", "a&b", "a,b", "a=b", "a@b", "a@0", "a!b", "<a>", "~a", ".a", "...", "a.", "a+b", "a^b"]
NAMES += ["(a)", "5", "a.orbax-checkpoint-tmp", "checkpoints", "a||b", "%2e%2e", "a..b"]
REFUSED = ["a[b]", "[", "[!a]", "]", "a*b", "**", "?", "a?b", "a\\b", "gs:", "a:", os.fsdecode(b"\xff\xfe")]


def test_what_is_saved_is_read_back_whatever_the_name_of_the_folder(tmp_path: Path) -> None:
    state = {"params": {"kernel": jnp.arange(8.0)}, "step": jnp.int32(3)}
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), state)
    for name in NAMES:
        workdir = paths.for_checkpoints(tmp_path / name / "run", "--workdir")
        workdir.mkdir(parents=True)
        writer = Checkpoints(workdir, owner=True)
        writer.save(4, state, {})
        writer.finish()
        writer.close()
        reader = Checkpoints(workdir)
        np.testing.assert_array_equal(reader.restore(like)["params"]["kernel"], np.arange(8.0), err_msg=ascii(name))
        reader.close()


@pytest.mark.parametrize("name", REFUSED, ids=ascii)
def test_a_name_that_is_a_pattern_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is a folder far above, of which a relative path says nothing."""
    for call in (load_run, lambda workdir: train(Config(), workdir)):
        with pytest.raises(UserError, match=r"choose a folder without|no name in UTF-8"):
            call(tmp_path / name)
        with pytest.raises(UserError, match=r"choose a folder without|no name in UTF-8"):
            call(tmp_path / name / "run")
    for key in ("init_from", "data.cache"):
        with pytest.raises(UserError, match=f"{key}=.*(choose a folder without|no name in UTF-8)"):
            override(Config(), {key: str(tmp_path / name)})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    if not name.startswith(os.fsdecode(b"\xff")):
        with pytest.raises(UserError, match="choose a folder without"):
            train(Config(), Path("run"))


def test_a_path_that_is_too_long_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    long = tmp_path.joinpath(*["x" * 200] * 19)
    with pytest.raises(UserError, match=r"--workdir has a path of \d+ bytes: choose one of at most 3800"):
        train(Config(), long)
    with pytest.raises(UserError, match=r"cannot write to --workdir=.*File name too long"):
        train(Config(), tmp_path / "above" / ("x" * 256))
    assert list(tmp_path.iterdir()) == []


def test_other_files_may_have_names_that_are_patterns(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"data.dir": str(tmp_path / "[a]*?"), "data.tokenizer": str(tmp_path / "[a]*?.json")}
    assert override(Config(), changes).data.dir == str(tmp_path / "[a]*?")
