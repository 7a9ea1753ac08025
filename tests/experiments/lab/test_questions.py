"""Questions as files: found, checked, and turned into configurations; every one that there is."""

import ast
from pathlib import Path

import pytest

from experiments.lab.questions import available, build, load, parse_setting
from transformer.config import load_file, override
from transformer.errors import UserError

ROOT = Path(__file__).parents[3]
FAKE = Path(__file__).with_name("fake_question.py")


@pytest.mark.parametrize("name", [name for name in available() if hasattr(load(name), "variants")])
def test_variants_of_every_experiment_build(name: str) -> None:
    module = load(name)
    built = 0
    for path in (ROOT / "configs").glob("*.py"):
        try:
            configs = build(module, load_file(path))
        except UserError:  # a base may lack what is asked for
            continue
        built += 1
        assert module.REFERENCE in configs
        assert len({str(config) for config in configs.values()}) == len(configs), f"{path.stem}: two variants are equal"
    assert built >= (1 if module.BASE == "configs/recurrent.py" else 11)  # one config alone is recurrent


def test_the_main_experiment_is_the_whole_grid() -> None:
    module = load("positions_and_windows")
    configs = build(module, load_file(ROOT / module.BASE))
    grid = {(config.model.positions, config.model.attention) for config in configs.values()}
    assert grid == {(p, (a,)) for p in ("sinusoidal", "learned", "none") for a in ("full", "window:8")}
    reference = configs[module.REFERENCE].model
    assert (reference.positions, reference.attention) == ("sinusoidal", ("full",))


def test_an_experiment_is_found_by_name_or_path() -> None:
    assert "positions_and_windows" in available()
    assert "run" not in available()
    with pytest.raises(UserError, match="did you mean 'positions_and_windows'"):
        load("position_and_window")
    with pytest.raises(UserError, match=r"choose one of: .*positions_and_windows"):
        load("zzz")
    with pytest.raises(UserError, match="no experiment file"):
        load("nowhere.py")


@pytest.mark.parametrize(
    ("text", "change", "error"),
    [
        ('REFERENCE = "sinusoidal-full"', 'REFERENCE = "sinusoid"', "REFERENCE is 'sinusoid'"),
        ('"model.positions": positions', '"model.position": positions', "did you mean 'model.positions'"),
        ('f"{positions}-{name}"', 'f"{positions}/{name}"', "cannot name a folder"),
        ("BASE = ", "BASIS = ", "has no BASE"),
    ],
)
def test_a_mistake_in_an_experiment_is_one_sentence(tmp_path: Path, text: str, change: str, error: str) -> None:
    path = tmp_path / "question.py"
    source = FAKE.read_text()
    assert text in source
    path.write_text(source.replace(text, change, 1))
    with pytest.raises(UserError, match=error):
        build(load(str(path)), load_file(ROOT / "configs/quantities.py"))


def test_settings_are_literals_or_strings() -> None:
    assert parse_setting("model.d_model=64") == ("model.d_model", 64)
    assert parse_setting("model.attention=('window:4', 'full')") == ("model.attention", ("window:4", "full"))
    assert parse_setting("data.dir=some/folder") == ("data.dir", "some/folder")
    assert parse_setting("data.dir=") == ("data.dir", "")
    with pytest.raises(UserError, match=r"did you mean 'model.d_model'"):
        parse_setting("model.dmodel=64")
    with pytest.raises(UserError, match="has no value"):
        parse_setting("model.d_model")
    base = load_file(ROOT / "configs/quantities.py")
    assert override(base, dict([parse_setting("optimizer.learning_rate=1e-3")])).optimizer.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("name", "base", "key"),
    [("heads", "recurrent", "model.num_heads"), ("key_size", "recurrent", "model.head_dim"),
     ("tokenizers", "mnist", "data.vocab_size"), ("tying", "mnist", "model.tied"),
     ("cells", "quantities", "model.cell")],
)  # fmt: skip
def test_a_base_that_has_no_use_for_what_is_varied_is_refused(name: str, base: str, key: str) -> None:
    with pytest.raises(UserError, match=rf"differs in .*{key}.*, which means nothing to .*: choose another --base"):
        build(load(name), load_file(ROOT / "configs" / f"{base}.py"))


def test_measurements_are_found_as_well() -> None:
    names = {name for name in available() if hasattr(load(name), "cases")}
    assert names == {
        "accelerator",
        "attention_cost",
        "corpus_cost",
        "decoding_cost",
        "receptive_field",
        "recurrence",
        "table_one",
        "time_to_quality",
        "training_cost",
    }
    for name in names:
        cases = load(name).cases()
        assert cases
        assert all(isinstance(arguments, dict) for arguments in cases.values())


def _imported(path: Path) -> set[str]:
    """The modules that a file imports, at whatever depth of the code."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    whole = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    of = [(node.module or "", alias.name) for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert not any(node.level for node in nodes if isinstance(node, ast.ImportFrom)), "names are whole"
    return whole | {f"{module}.{name}" for module, name in of}


def test_questions_are_files_of_their_own() -> None:
    """Beside them stands the command line alone; none imports another; what they share is in lab/, which knows none."""
    questions = {path.stem for path in (ROOT / "experiments").glob("*.py")} - {"__init__", "run"}
    assert questions == set(available())
    for path in (ROOT / "experiments").rglob("*.py"):
        ours = {name for name in _imported(path) if name.split(".")[0] == "experiments"}
        assert all(name.startswith("experiments.lab.") for name in ours), f"{path.name} imports {ours}"
