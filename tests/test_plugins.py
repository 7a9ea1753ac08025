"""Own models without a fork: a plugin in every command, its keys in every room, and no import that nobody asked for."""

import csv
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments import run as sweep
from experiments.lab.questions import build, load
from tests import test_verbs
from tests.test_verbs import Small, Verb, commands
from tests.test_verbs import _one_sentence as one_sentence
from transformer import load_run
from transformer.config import Config, load_file, override
from transformer.data.tokenizers import TOKENIZERS
from transformer.data.tokenizers.training import code
from transformer.errors import UserError
from transformer.model.families import build as build_model
from transformer.model.positions import POSITIONS
from transformer.plugins import load_plugins
from transformer.training import optim

ROOT = Path(__file__).parents[1]
PLUGIN = Path(__file__).parent / "plugins" / "ramp.py"
BOTH = ("ramp", "marked")
MARKED = """
from pathlib import Path

Path(__file__).with_suffix(".imported").touch()
"""
small = test_verbs.small  # a fixture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands are started: it holds the example, and a plugin that leaves marked.imported behind."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copy(PLUGIN, folder)
    (folder / "marked.py").write_text(MARKED)
    (folder / "faulty.py").write_text("int('one')\n")
    return folder


@pytest.fixture(scope="module")
def verb(folder: Path) -> Iterator[Verb]:
    with commands(folder) as run:
        yield run


@pytest.fixture(autouse=True)
def marked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that is there once somebody has imported `marked`. What this process imports is undone."""
    monkeypatch.syspath_prepend(folder)
    rows = dict(POSITIONS)
    yield folder / "marked.imported"
    POSITIONS.clear()
    POSITIONS.update(rows)
    for name in ("ramp", "marked", "faulty"):
        sys.modules.pop(name, None)
    (folder / "marked.imported").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def config(small: Small) -> Path:
    """A config file that names both plugins."""
    path = small.run.parent / "own.py"
    keys = {"plugins": BOTH, "model.positions": "ramp", "model.extra": {"length": 50}}
    lines = "".join(f"    config.{key} = {value!r}\n" for key, value in keys.items())
    path.write_text(small.config.read_text().replace("    return config\n", f"{lines}    return config\n"))
    return path


@pytest.fixture(scope="module")
def trained(config: Path, verb: Verb) -> Path:
    """A run of the config."""
    workdir = config.parent / "own"
    ended = verb("train", f"--config={config}", f"--workdir={workdir}", "--config.extra.note=a,b")
    assert ended.code == 0, ended.err
    return workdir


def test_every_command_knows_the_plugin(config: Path, trained: Path, verb: Verb, marked: Path, tmp_path: Path) -> None:
    stored = json.loads((trained / "config.json").read_text())
    assert stored["plugins"] == ["ramp", "marked"]
    assert (stored["model"]["extra"], stored["extra"], stored["data"]["extra"]) == ({"length": 50}, {"note": "a,b"}, {})
    named = (f"--workdir={trained}", "--plugins=ramp,marked")
    assert verb("evaluate", *named, f"--against={trained}").last["step"] == 4
    assert marked.exists()
    assert len(verb("generate", *named, given=b"one two\nsix\n").lines) == 2
    page = tmp_path / "heads.html"
    ended = verb("heads", *named, "--text=one two", f"--output={page}")
    assert ended.code == 0, ended.err
    assert "encoder" in page.read_text()
    assert "parameters" in verb("describe", f"--config={config}").last
    resumed = verb("train", f"--config={config}", f"--workdir={trained}", "--config.extra.note=a,b")
    assert resumed.code == 0, resumed.err
    assert "resumed at step 4" in resumed.out.decode() + resumed.err


@pytest.mark.parametrize("name", ["evaluate", "generate", "predict", "heads", "convert", "tokenize"])
def test_a_command_imports_what_is_named(name: str, verb: Verb, marked: Path) -> None:
    one_sentence(verb(name), "is missing" if name != "heads" else "--text")
    assert not marked.exists()
    one_sentence(verb(name, "--plugins=marked"), "is missing" if name != "heads" else "--text")
    assert marked.exists()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("evaluate", ["--workdir=RUN"]),
        ("evaluate", ["--workdir=RUN", "--plugins=ramp"]),
        ("evaluate", ["--workdir=SMALL,RUN"]),
        ("evaluate", ["--workdir=SMALL", "--against=RUN"]),
        ("generate", ["--workdir=RUN"]),
        ("heads", ["--workdir=RUN", "--text=one"]),
        ("train", ["--config=CONFIG", "--workdir=RUN"]),
        ("train", ["--config=CONFIG", "--workdir=TMP/new", "--config.init_from=RUN"]),
    ],
)
def test_a_run_imports_nothing_by_itself(
    name: str, arguments: list[str], small: Small, trained: Path, verb: Verb, marked: Path, tmp_path: Path
) -> None:
    marked.unlink(missing_ok=True)  # of the training
    places = {"RUN": trained, "SMALL": small.run, "CONFIG": small.config, "TMP": tmp_path}
    for place, path in places.items():
        arguments = [argument.replace(place, str(path)) for argument in arguments]
    way = "add it to `plugins` of the config" if name == "train" else "add --plugins=ramp,marked (or load_run"
    ended = verb(name, *arguments, given=b"one\n")
    one_sentence(ended, str(trained), "names the plugin '", "'marked', which opening a run does not import", way)
    assert not marked.exists()


def test_a_notebook_names_the_plugin(trained: Path, marked: Path) -> None:
    marked.unlink(missing_ok=True)
    said = r"names the plugin 'ramp' and 'marked', which .* load_run\(\.\.\., plugins=\('ramp', 'marked'\)"
    with pytest.raises(UserError, match=said):
        load_run(trained)
    assert not marked.exists()
    assert "ramp" not in POSITIONS
    run = load_run(trained, plugins=BOTH)
    assert marked.exists()
    assert run.config.extra == {"note": "a,b"}
    assert run.attention("one two")["encoder"]["self"].weights.max() < 0.9


def test_a_key_reaches_the_module(trained: Path, tmp_path: Path) -> None:
    """With a ramp so steep that every token sees one other alone; it is stored with the run."""
    shutil.copytree(trained, tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    stored["model"]["extra"]["length"] = 1e-6
    (tmp_path / "run" / "config.json").write_text(json.dumps(stored))
    weights = load_run(tmp_path / "run", plugins=BOTH).attention("one two")["encoder"]["self"].weights
    assert weights[0, 0, 0][1:].max(-1).min() == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--config.plugins=nowhere"],
            ["plugin 'nowhere' cannot be imported (ModuleNotFoundError: No module named", "PYTHONPATH"],
        ),
        (["--config.plugins=faulty"], ["plugin 'faulty' cannot be imported (ValueError: invalid literal", "mend it"]),
        (["--config.plugins=my/plugin.py"], ["plugin 'my/plugin.py' is no name of a module: write my_module"]),
        (["--config.extra.rate=1"], ["config key 'extra.rate' is for plugins", "add plugins=('my_module',)"]),
        (["--config.model.extra.rate=1"], ["config key 'model.extra.rate' is for plugins"]),
        (["--config.data.extra.rate=1"], ["config key 'data.extra.rate' is for plugins"]),
        (["--config.mesh.extra.rate=1"], ["unknown config key 'mesh.extra.rate'"]),
        (["--config.extra=1"], ["config key 'extra' is a group of keys"]),
        (["--config.plugins=marked", "--config.model.positions=ramp"], ["no model.positions 'ramp'"]),
        (["--config.plugins=marked", "--config.model.cell=tanh"], ["no model.cell 'tanh': choose one of lstm, gru"]),
        (["--config.plugins=marked", "--config.model.remat=some"], ["no model.remat 'some': choose one of none, full"]),
        (["--config.plugins=marked", "--config.optimizer.schedule=no"], ["no optimizer.schedule 'no': choose one of"]),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], said: list[str], small: Small, verb: Verb, tmp_path: Path
) -> None:
    one_sentence(verb("train", f"--config={small.config}", f"--workdir={tmp_path}/run", *arguments), *said)


def test_a_flag_takes_a_plugin_and_its_keys(small: Small, verb: Verb, marked: Path) -> None:
    keys = ("--config.plugins=ramp", "--config.model.positions=ramp")
    ended = verb(
        "describe", f"--config={small.config}", *keys, "--config.model.extra.length=2", "--config.extra.fast=true"
    )
    assert "parameters" in ended.last


def test_rows_of_tables_that_a_config_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a plugin, a wrong name is told before anything is loaded; with one, where the row is looked up."""
    for key, name in (("optimizer.schedule", "flat"), ("model.cell", "tanh"), ("model.remat", "some")):
        with pytest.raises(UserError, match=key):
            override(Config(), {key: name})
    config = override(Config(), {"plugins": "marked", "optimizer.schedule": "flat", "model.cell": "tanh"})
    with pytest.raises(UserError, match=r"no optimizer\.schedule 'flat': choose one of inverse_sqrt, cosine"):
        optim.schedule(config)
    monkeypatch.setitem(optim.SCHEDULES, "flat", lambda peak, warmup_steps, steps, final_rate: lambda count: peak)
    assert optim.schedule(config)(3) == config.optimizer.learning_rate
    with pytest.raises(UserError, match=r"no model\.cell 'tanh': choose one of lstm, gru"):
        build_model(config.model)


def test_a_tokenizer_of_a_plugin_is_made_anew_when_its_file_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_plugins(["marked"])
    monkeypatch.setitem(TOKENIZERS, "own", type("Own", (), {"__module__": "marked"}))
    assert sys.modules["marked"] in code()


def test_names_are_a_tuple() -> None:
    with pytest.raises(UserError, match=r"plugins='marked' is a text, not a tuple of names: write \('marked',\)"):
        load_plugins("marked")


def test_the_readme_shows_the_plugin_that_is_tested_here() -> None:
    assert f"```python\n{PLUGIN.read_text()}```" in (ROOT / "README.md").read_text()


QUESTION = '''"""Does the length matter?

Hypothesis: not in four steps.
"""

PLUGINS = ("ramp",)
BASE = {base!r}
REFERENCE = "flat"
PRIMARY = "test/loss"
MATTERS = 0.01
SETTINGS = {{"model.positions": "ramp", "model.extra.length": 100}}


def variants(base):
    return {{"flat": {{}}, "steep": {{"model.extra.length": 2}}}}
'''


@pytest.fixture
def question(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A question outside the project, beside its plugin; only its folder holds the plugin."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not (Path(path) / PLUGIN.name).exists()])
    shutil.copy(PLUGIN, tmp_path)
    (tmp_path / "question.py").write_text(QUESTION.format(base=str(small.config)))
    return tmp_path / "question.py"


def test_a_question_brings_its_plugin(question: Path, small: Small) -> None:
    module = load(str(question))
    assert "ramp" in POSITIONS
    base = override(load_file(small.config), {"plugins": "json"})  # as good as any
    configs = build(module, base)
    assert {config.plugins for config in configs.values()} == {("json", "ramp")}
    assert configs["steep"].model.extra == {"length": 2}
    question.write_text(question.read_text().replace('("ramp",)', '("ramps",)'))
    with pytest.raises(UserError, match="plugin 'ramps' cannot be imported"):
        load(str(question))


@pytest.mark.slow
def test_a_question_outside_the_project_end_to_end(question: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "sweep"
    assert sweep.main([str(question), f"--workdir={workdir}", "--seeds=1", "--jobs=1"]) == 0
    with (workdir / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    assert {row["status"] for row in rows.values()} == {"finished"}
    assert rows["flat"]["test/loss"] != rows["steep"]["test/loss"]
    assert "model.extra.length" in (workdir / "report.md").read_text()
    run = load_run(workdir / "runs/steep/seed0", plugins=("ramp",))
    assert run.config.model.extra == {"length": 2}
    assert run.attention("one two")["encoder"]["self"].weights.shape[2] == 2
