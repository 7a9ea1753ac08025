"""The command that trains a tokenizer, as people run it."""

import subprocess
import sys
from pathlib import Path

import pytest

from transformer.data.tokenizers import Tokenizer

ROOT = Path(__file__).parent.parent


def tokenize(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "transformer.tokenize", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    (tmp_path / "en.txt").write_text("the lake and the lakes\n" * 20)
    (tmp_path / "de.txt").write_text("der See und die Seen\n" * 20)
    return [f"--input={tmp_path / name}" for name in ("en.txt", "de.txt")]


def test_one_vocabulary_for_several_files(files: list[str], tmp_path: Path) -> None:
    output = f"--output={tmp_path / 'made' / 'tokenizer.json'}"
    ended = tokenize(*files, output, "--kind=sentencepiece_bpe", "--vocab_size=330", "--mask", "--holes=2")
    assert (ended.returncode, ended.stderr) == (0, "")
    tokenizer = Tokenizer.load(tmp_path / "made" / "tokenizer.json")
    assert ended.stdout.startswith(f"{tokenizer.vocab_size} pieces of sentencepiece_bpe in ")
    assert len(tokenizer.encode("lake See")) == 2
    assert (tokenizer.mask_id, tokenizer.hole_ids) == (3, (4, 5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind=words"], "--input or --output is missing"),
        (["--input=IN", "--output=OUT", "--kind=wrods"], "no tokenizer 'wrods': did you mean 'words'?"),
        (["--input=IN", "--output=OUT", "--vocab_size=5"], "data.vocab_size=5 leaves no room"),
        (["--input=EMPTY", "--output=OUT"], "empty.txt is empty: give a file"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], message: str, files: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    paths = {"IN": "en.txt", "OUT": "out.json", "EMPTY": "empty.txt"}
    for short, name in paths.items():
        arguments = [argument.replace(f"={short}", f"={tmp_path / name}") for argument in arguments]
    ended = tokenize(*arguments)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert message in ended.stderr
    assert not (tmp_path / "out.json").exists()
