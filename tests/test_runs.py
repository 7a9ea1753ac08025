"""A run on disk is used without its training data; and where the data is needed, it has to be what it was."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import transformer
from transformer import runs
from transformer.config import Config, MeshConfig, override
from transformer.data.sources import load_source
from transformer.errors import UserError
from transformer.evaluate import on_other_files
from transformer.runs import load_ensemble, load_run
from transformer.train import train
from transformer.training import checkpoint, optim, step
from transformer.training.checkpoint import Checkpoints
from transformer.training.sharding import make_layout

WORDS = {"uno": "one", "due": "two", "tre": "three", "sei": "six"}
TEXTS = ["uno due", "", "tre sei sei", "due"]


def _sentences(count: int) -> list[str]:
    random = np.random.default_rng(0)
    return [" ".join(random.choice(list(WORDS), random.integers(2, 6))) for _ in range(count)]


def _train(folder: Path, data: dict[str, Any], **changes: Any) -> Path:
    """A run of 4 steps in `folder`/run, with checkpoints after 2 and 4."""
    small = {
        "steps": 4, "model.num_layers": 2, "model.d_model": 16, "model.d_ff": 32, "model.num_heads": 2,
        "data.max_len": 32, "data.buckets": (32,), "data.batch_tokens": 512, "data.vocab_size": 300,
        "data.dir": str(folder / "data"), "data.cache": str(folder / "cache"), "optimizer.learning_rate": 0.1,
        "optimizer.warmup_steps": 1, "logging.checkpoint_every": 2,
    }  # fmt: skip
    train(override(Config(), small | data | changes), folder / "run", quiet=True)
    return folder / "run"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a classifier of texts: data/ and run/."""
    folder = tmp_path_factory.mktemp("labelled")
    (folder / "data").mkdir()
    for split, count in (("train", 60), ("dev", 10), ("test", 10)):
        rows = [f"{text}\t{int('sei' in text)}" for text in _sentences(count)]
        (folder / "data" / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    data = {"data.name": "sst2", "data.target": "text", "data.tokenizer": "words", "task": "text_classification"}
    _train(folder, data | {"model.family": "encoder_only", "model.num_classes": 2})
    return folder


@pytest.fixture(scope="module")
def translated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a translation with scanned layers."""
    folder = tmp_path_factory.mktemp("translated")
    (folder / "data").mkdir()
    for split, count in (("train", 60), ("validation", 10), ("test", 10)):
        texts = _sentences(count)
        (folder / "data" / f"{split}.it").write_text("\n".join(texts) + "\n")
        english = [" ".join(WORDS[word] for word in text.split()) for text in texts]
        (folder / "data" / f"{split}.en").write_text("\n".join(english) + "\n")
    data = {"data.name": "files", "data.source": "it", "data.target": "en", "model.scan_layers": True}
    return _train(folder, data)


def _moved(folder: Path, to: Path) -> Path:
    """A copy of the run alone."""
    shutil.copytree(folder / "run", to / "run")
    return to / "run"


def _without_facts(workdir: Path) -> Path:
    """As runs were before facts were noted."""
    noted = json.loads((workdir / "data.json").read_text())
    del noted["facts"]
    (workdir / "data.json").write_text(json.dumps(noted))
    return workdir


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(data: Any) -> Any:
        raise AssertionError("the training data was opened")

    monkeypatch.setattr(runs, "load_source", load)


# --- Without the data


def test_training_notes_what_was_learned_from_the_data(labelled: Path, translated: Path) -> None:
    noted = json.loads((labelled / "run" / "data.json").read_text())
    run = load_run(labelled / "run")
    assert noted["facts"] == run.facts == {"classes": ["negative", "positive"], "labels": {"0": 0, "1": 1}}
    assert noted["fingerprint"] == run.source.fingerprint
    assert json.loads((translated / "data.json").read_text())["facts"] == {}


@pytest.mark.usefixtures("no_data")
def test_classes_are_named_as_they_were_at_training(labelled: Path, tmp_path: Path) -> None:
    workdir = _moved(labelled, tmp_path)
    found = load_run(workdir).generate(TEXTS)
    assert found[1] == ""
    assert {found[0], *found[2:]} <= {"negative", "positive"}
    path = workdir / "data.json"
    path.write_text(path.read_text().replace("negative", "sad").replace("positive", "glad"))
    named = {"negative": "sad", "positive": "glad", "": ""}
    assert load_run(workdir).generate(TEXTS) == [named[name] for name in found]


@pytest.mark.usefixtures("no_data")
def test_a_run_in_a_notebook(translated: Path) -> None:
    run = transformer.load_run(str(translated))
    assert run.step == run.config.steps == 4
    assert run.model is run.task.model
    assert len(run.generate(TEXTS, beam=2, max_new=3)) == 4
    assert "layer_1" in run.params["params"]["encoder"], "scanned layers become single ones"
    tokens = run.reading("uno due", "one two").tokens
    watched = run.attention("uno due", "one two")
    assert watched.keys() == tokens.keys() == {"encoder", "decoder"}
    cross = watched["decoder"]["cross"].weights
    assert cross.shape == (2, 1, 2, len(tokens["decoder"]), len(tokens["encoder"]))
    np.testing.assert_allclose(cross.sum(axis=-1), 1, rtol=1e-5)
    with pytest.raises(UserError, match="--beam must be 0"):
        run.generate(TEXTS, beam=-1)


def test_importing_the_library_imports_no_jax() -> None:
    code = "import sys, transformer; sys.exit('jax' in sys.modules or 'tensorflow_datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert transformer.load_run is load_run
    with pytest.raises(AttributeError, match="'transformer' has no attribute 'restore'"):
        transformer.restore  # noqa: B018


# --- With the data


def test_labels_that_were_corrected_after_training_are_noticed(labelled: Path, tmp_path: Path) -> None:
    """What needs the data is refused in one sentence; what needs none goes on."""
    shutil.copytree(labelled / "data", tmp_path / "data")
    before = load_run(labelled / "run")
    assert 0 <= before.evaluate("test")["accuracy"] <= 1
    workdir = _moved(labelled, tmp_path)
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["dir"] = str(tmp_path / "data")
    (workdir / "config.json").write_text(json.dumps(config))
    assert load_run(workdir).evaluate("test") == before.evaluate("test"), "moved, and the same"
    path = tmp_path / "data" / "dev.tsv"
    first, *rows = path.read_text().splitlines()
    path.write_text("\n".join([first[:-1] + str(1 - int(first[-1])), *rows]) + "\n")
    run = load_run(workdir)
    with pytest.raises(UserError, match=r"was trained on other data than 'sst2' holds now .*: bring back") as raised:
        run.evaluate("test")
    assert "\n" not in str(raised.value)
    assert run.generate(TEXTS) == before.generate(TEXTS)


def test_a_run_without_facts_takes_the_names_of_the_data_and_says_where_it_changed(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = _without_facts(_moved(labelled, tmp_path))
    expected = load_run(labelled / "run").generate(TEXTS)
    old = load_run(workdir)
    assert old.facts is None
    assert old.generate(TEXTS) == expected
    assert "trained on other data" not in capsys.readouterr().err

    def changed(**changes: Any) -> None:
        monkeypatch.setattr(runs, "load_source", lambda data: dataclasses.replace(load_source(data), **changes))

    changed(fingerprint="0123")
    with pytest.raises(UserError, match="was trained on other data than 'sst2' holds now"):
        load_run(workdir).generate(TEXTS)
    changed(facts={"classes": ["a", "b", "c"]})
    with pytest.raises(UserError, match=r"sst2 has 3 classes, and model\.num_classes=2"):
        load_run(workdir).generate(TEXTS)
    changed()
    noted = json.loads((workdir / "data.json").read_text())
    (workdir / "data.json").write_text(json.dumps(noted | {"fingerprint": "0123"}))  # as an older version wrote it
    assert load_run(workdir).generate(TEXTS) == expected
    assert "whether 'sst2' changed is not known" in capsys.readouterr().err


def test_other_files_are_evaluated_on_purpose(tmp_path: Path) -> None:
    """With what the run learned from its own; nothing is compared but the classes."""

    def files(folder: str, *labels: str) -> str:
        (tmp_path / folder).mkdir()
        for stem in ("train", "dev", "test"):
            (tmp_path / folder / f"{stem}.tsv").write_text("".join(f"{folder} {x}\t{x}\n" for x in labels))
        return str(tmp_path / folder)

    own, corrected, renamed = files("own", "0", "1"), files("corrected", "1", "0"), files("renamed", "a", "b")
    config = override(Config(), {"data.name": "sst2", "data.dir": own, "data.cache": str(tmp_path / "cache")})
    facts = {"classes": ["negative", "positive"], "labels": {"0": 0, "1": 1}, "noted": "by the run"}

    def run(config: Config = config, facts: dict[str, Any] = facts) -> runs.Run:
        return runs.Run(config, None, None, None, 0, lambda: load_source(config.data), facts, workdir=tmp_path / "run")

    source = on_other_files(run(), corrected).source
    assert [example["text"] for example in source.split("test")] == ["corrected 1", "corrected 0"]
    assert source.facts == facts
    with pytest.raises(UserError, match=r"--data_dir=.*renamed has the classes \['a', 'b'\], and .* was trained on"):
        _ = on_other_files(run(), renamed).source
    with pytest.raises(UserError, match=r"--data_dir=x is not for the run .*, which has no data\.dir: leave it out"):
        on_other_files(run(override(config, {"data.dir": ""})), "x")
    with pytest.raises(UserError, match=r"which reads a series, scaled by its own training part: leave it out"):
        on_other_files(run(dataclasses.replace(config, task="forecasting")), "x")


def test_the_data_is_opened_once(labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(runs, "load_source", lambda data: opened.append(data.name) or load_source(data))
    run = load_run(labelled / "run")
    assert opened == []
    assert run.source is dataclasses.replace(run, step=1).source
    assert opened == ["sst2"]


# --- Checkpoints


def _saved(workdir: Path, at: int) -> Any:
    """The parameters of a checkpoint, read by its step."""
    run = load_run(workdir)
    layout = make_layout(run.config, axes=run.task.axes)
    create = step.make_init(run.task.init, optim.make_optimizer(run.config, run.task.axes), layout)
    checkpoints = Checkpoints(workdir, 2)
    state = checkpoints.restore(layout.abstract(jax.eval_shape(create, np.uint32(0))), at)
    checkpoints.close()
    return jax.device_get(state.params)


def test_the_newest_the_best_and_the_mean(labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workdir = labelled / "run"
    two, four = _saved(workdir, 2), _saved(workdir, 4)
    jax.tree.map(np.testing.assert_array_equal, load_run(workdir).params, four)
    mean = load_run(workdir, average=2)
    assert mean.step == 4
    jax.tree.map(lambda a, b, c: np.testing.assert_allclose(a, (b + c) / 2, rtol=1e-6), mean.params, two, four)
    assert not np.array_equal(jax.tree.leaves(two)[0], jax.tree.leaves(four)[0])
    monkeypatch.setattr(Checkpoints, "best", 2)  # which one that is, test_checkpoint.py says
    best = load_run(workdir, best=True)
    assert best.step == 2
    jax.tree.map(np.testing.assert_array_equal, best.params, two)


@pytest.mark.parametrize(
    ("mesh", "spec"),
    [
        (MeshConfig(data=2, fsdp=4), ("fsdp", None)),
        (MeshConfig(data=1, tensor=2), (None, "tensor")),
        (MeshConfig(data=2, fsdp=2, tensor=2), ("fsdp", "tensor")),
    ],
    ids=["fsdp", "tensor", "both"],
)
def test_parameters_in_shards_where_there_is_a_mesh(
    mesh: MeshConfig, spec: tuple[str | None, ...], labelled: Path, translated: Path
) -> None:
    """Of single and of scanned layers; the run is worth the same, and writes the same as on one device."""
    for workdir in (labelled / "run", translated):
        whole, split = load_run(workdir, mesh=MeshConfig(data=1)), load_run(workdir, mesh=mesh)
        kernel = split.params["params"]["encoder"]["layer_1"]["feed_forward"]["inner"]["kernel"]
        assert tuple(kernel.sharding.spec) == spec
        assert {shard.data.size for shard in kernel.addressable_shards} == {kernel.size // mesh.fsdp // mesh.tensor}
        jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, (whole.params, split.params)))
        assert split.generate(TEXTS) == whole.generate(TEXTS)
        expected, found = whole.evaluate("test"), split.evaluate("test")
        assert expected.keys() == found.keys()
        for name in {"loss", "accuracy", "macro_f1", "bleu", "token_accuracy"} & found.keys():
            assert found[name] == pytest.approx(expected[name], rel=1e-5)
    manners: list[dict[str, Any]] = [{"beam": 3, "nbest": 2}, {"sample": True, "temperature": 0.7}]
    for manner in manners:
        assert split.generate(TEXTS, **manner) == whole.generate(TEXTS, **manner)


def test_without_a_mesh_every_device_has_all_parameters(labelled: Path) -> None:
    for leaf in jax.tree.leaves(load_run(labelled / "run").params):
        assert leaf.sharding.is_fully_replicated
        assert leaf.sharding.num_devices == 8


@pytest.mark.parametrize("mesh", [MeshConfig(data=1, fsdp=8), MeshConfig(data=1, tensor=2)], ids=["fsdp", "tensor"])
def test_no_device_reads_more_than_its_shards(
    mesh: MeshConfig, translated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the storage is asked for, and that scanned layers are cut where they lie."""
    asked: list[Any] = []
    load = checkpoint.ocp.load

    def watched(*arguments: Any, **more: Any) -> Any:
        asked.extend(jax.tree.leaves(arguments[1]))
        return load(*arguments, **more)

    monkeypatch.setattr(checkpoint.ocp, "load", watched)
    run = load_run(translated, mesh=mesh)
    most = sum(4 * math.prod(x.sharding.shard_shape(x.shape)) for x in asked)
    whole = sum(4 * x.size for x in asked)
    axis = "fsdp" if mesh.fsdp > 1 else "tensor"
    size = getattr(mesh, axis)
    vectors = sum(4 * x.size for x in asked if axis not in tuple(x.sharding.spec))
    assert most == vectors + (whole - vectors) / size
    assert vectors < whole / 8
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(run.params))
    assert held == most


def test_a_mesh_that_does_not_fit_a_run_is_a_sentence(labelled: Path, translated: Path) -> None:
    with pytest.raises(UserError, match=r"mesh\.data=9, .* but there are 8 devices"):
        load_run(translated, mesh=MeshConfig(data=9))
    with pytest.raises(UserError, match=r"num_heads=2 does not divide over mesh\.tensor=4"):
        load_run(translated, mesh=MeshConfig(data=1, tensor=4))
    run = load_run(labelled / "run", mesh=MeshConfig(data=7))
    assert run.generate(TEXTS) == load_run(labelled / "run").generate(TEXTS), "a line is decoded on any number"
    with pytest.raises(
        UserError, match=r"a batch of 16 rows of length 32 does not divide over data x fsdp = 7 devices"
    ):
        run.evaluate("test")


# --- Mistakes


def test_what_is_no_ensemble(labelled: Path, translated: Path) -> None:
    with pytest.raises(UserError, match=r"run of 'text_classification' and .* of 'translation': an ensemble is of one"):
        load_ensemble([labelled / "run", translated])
    run = load_ensemble([translated, str(translated)])
    assert [member.workdir for member in run.members] == [translated, translated]
    assert run.evaluate("test", max_new=2)["members"] == 2


def test_no_run_and_a_damaged_one(labelled: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no run \(there is no config.json\): train there first"):
        load_run(tmp_path / "none")
    workdir = _moved(labelled, tmp_path)
    for content in ("[]", '{"fingerprint": "01'):
        (workdir / "data.json").write_text(content)
        with pytest.raises(UserError, match=r"data\.json' is damaged"):
            load_run(workdir)
    (workdir / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"holds no tokenizer\.json: train there first"):
        load_run(workdir)
