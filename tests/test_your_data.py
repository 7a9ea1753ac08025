"""The page of own data: each of its commands runs, on small files of every kind, and prints what stands there; and what
a run does when its files move or change."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.own_data import make
from tests.test_verbs import Verb, commands
from tests.your_data import PAGE, Command, commands_of

ROOT = Path(__file__).parent.parent
# A model of another size, and two steps: what the data say does not depend on either.
SMALL = [
    "model.num_layers=1",
    "model.d_model=16",
    "model.d_ff=16",
    "model.num_heads=2",
    "steps=2",
]
OF_DATA = re.compile(r"\] step 0/\d+  ((?:train|validation|mixture): .*)")  # lines that do not


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "configs").symlink_to(ROOT / "configs")
    make(folder / "runs" / "own")
    return folder


@pytest.fixture(scope="module")
def verb(place: Path) -> Iterator[Verb]:
    with commands(place) as run:
        yield run


def run(verb: Verb, command: Command) -> None:
    name, *flags = command.arguments[2:]
    if name == "transformer.train":
        flags += [f"--config.{each}" for each in SMALL]
    ended = verb(name, *flags, given=command.given.encode())
    assert ended.code == 0, ended.err
    if name == "transformer.train":
        assert OF_DATA.findall(ended.err + ended.out.decode()) == OF_DATA.findall(command.printed)
    elif command.printed.startswith("{"):
        shown, printed = command.printed.splitlines(), ended.out.decode().splitlines()
        assert len(shown) == len(printed)
        assert json.loads(shown[-1]).keys() == json.loads(printed[-1]).keys()
    else:
        assert bool(ended.out.strip()) == bool(command.printed.strip())


WISHES = {title: found for title, found in commands_of(PAGE.read_text()).items() if found}


def test_the_page_has_twelve_kinds() -> None:
    assert [title.split(".")[0] for title in WISHES] == [str(number) for number in range(1, 13)]


@pytest.mark.parametrize("title", WISHES)
def test_the_commands_of_the_page(verb: Verb, title: str) -> None:
    for command in WISHES[title]:
        run(verb, command)


# --- Files that move, or change, while a run goes on


def test_files_may_move_and_not_change(verb: Verb, tmp_path: Path, place: Path) -> None:
    (tmp_path / "a").mkdir()
    shutil.copy(place / "runs" / "own" / "mine.csv", tmp_path / "a" / "mine.csv")
    flags = ["--config=configs/sst2.py", "--config.data.name=table", f"--workdir={tmp_path / 'run'}"]
    flags += ["--config.data.columns.text=review", "--config.data.columns.label=category"]
    flags += [f"--config.{each}" for each in SMALL]

    def train(file: str, *more: str) -> tuple[int, str]:
        ended = verb("train", *flags, f"--config.data.files={tmp_path / file}", *more)
        return ended.code, ended.err

    assert train("a/mine.csv")[0] == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["model"]["num_classes"] == 2
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert train("b/mine.csv", "--config.steps=3")[0] == 0
    text = (tmp_path / "b" / "mine.csv").read_text()
    (tmp_path / "b" / "mine.csv").write_text(text.replace(",thing", ",object", 1))
    code, said = train("b/mine.csv", "--config.steps=4")
    assert code == 2
    assert "was trained on other data" in said
    code, said = train("none.csv", "--config.steps=4")
    assert (code, "there is no such file" in said) == (2, True)
    shutil.rmtree(tmp_path / "b")
    ended = verb("predict", f"--workdir={tmp_path / 'run'}", given=b"the old horse waits\n")
    assert ended.code == 0, ended.err


def test_a_task_that_the_columns_do_not_fit(verb: Verb, tmp_path: Path) -> None:
    """Told before anything is written."""
    for config, file, said in (
        ("sst2", "pairs.tsv --config.data.columns.source=en --config.data.columns.target=de", "name their column in"),
        ("multi30k", "mine.jsonl --config.data.columns.text=body", "no text field"),
        ("sst2", "mine.parquet", "has no classes, which task 'text_classification' needs"),
    ):
        name, *columns = file.split()
        flags = [f"--config=configs/{config}.py", "--config.data.name=table", f"--config.data.files=runs/own/{name}"]
        ended = verb("train", *flags, *columns, f"--workdir={tmp_path / 'run'}")
        assert ended.code == 2
        assert said in ended.err
        assert ended.err.count("\n") == 1
        assert not (tmp_path / "run").exists()
