"""The four commands as people run them: what they print, and one sentence for every mistake.

Each command is a process of its own, forked from one that has made the slow imports.
"""

import contextlib
import gzip
import json
import os
import random
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

# Reads one JSON request a line, runs `python -m <verb> <arguments>` in a fork, answers with the exit code.
SERVER = """
import json, os, runpy, sys, traceback
import flax.linen, jax, ml_collections.config_flags, optax, orbax.checkpoint, sacrebleu, tensorflow_datasets
import experiments.lab.cases, experiments.lab.report, experiments.lab.sweep
import transformer.tasks, transformer.training.checkpoint, transformer.training.loop

for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if not child:
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(request[name], flags), number)
        sys.stdin = open(0, closefd=False)
        sys.argv = [request["verb"], *request["arguments"]]
        code = 0
        try:
            runpy.run_module(request["verb"], run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Ended(NamedTuple):
    code: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.decode().split("\n")[:-1]

    @property
    def last(self) -> dict[str, object]:
        assert self.code == 0, self.err
        return json.loads(self.lines[-1])


Verb = Callable[..., Ended]


@contextlib.contextmanager
def commands(folder: Path) -> Iterator[Verb]:
    """Runs commands that are started in a folder."""
    environment = os.environ | {
        "XLA_FLAGS": "",
        "PYTHONPATH": str(ROOT),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    environment |= {"TOKENIZERS_PARALLELISM": "false", "HOME": str(folder)}
    pipe = subprocess.PIPE
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=pipe, stdout=pipe, cwd=folder, env=environment)
    assert server.stdin is not None
    assert server.stdout is not None
    stdin, stdout = server.stdin, server.stdout

    def run(name: str, *arguments: object, given: bytes = b"") -> Ended:
        (folder / "in").write_bytes(given)
        request = {
            "verb": name if "." in name else f"transformer.{name}",
            "arguments": [str(argument) for argument in arguments],
        }
        request |= {"stdin": str(folder / "in"), "stdout": str(folder / "out"), "stderr": str(folder / "err")}
        stdin.write(json.dumps(request).encode() + b"\n")
        stdin.flush()
        code = int(stdout.readline())
        return Ended(code, (folder / "out").read_bytes(), (folder / "err").read_text())

    yield run
    stdin.close()
    server.wait(20)


@pytest.fixture(scope="module")
def verb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Verb]:
    with commands(tmp_path_factory.mktemp("verbs")) as run:
        yield run


WORDS = (("one", "eins"), ("two", "zwei"), ("three", "drei"), ("four", "vier"), ("five", "fünf"), ("six", "sechs"))


def _write_pairs(folder: Path) -> None:
    """Spelled digits, and the same from right to left in German."""
    folder.mkdir()
    drawn = random.Random(0)
    for split, count in (("train", 160), ("validation", 24), ("test", 16)):
        pairs = [[drawn.choice(WORDS) for _ in range(drawn.randint(1, 5))] for _ in range(count)]
        english = "".join(" ".join(word for word, _ in pair) + "\n" for pair in pairs)
        german = "".join(" ".join(word for _, word in reversed(pair)) + "\n" for pair in pairs)
        (folder / f"{split}.en").write_text(english, encoding="utf-8")
        (folder / f"{split}.de").write_text(german, encoding="utf-8")


class Small(NamedTuple):
    """A config file, the data it names, and runs trained from it."""

    config: Path
    data: Path
    run: Path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, verb: Verb) -> Small:
    folder = tmp_path_factory.mktemp("small")
    data, config = folder / "data", folder / "config.py"
    _write_pairs(data)
    config.write_text(
        textwrap.dedent(f"""
        from transformer.config import defaults


        def get_config():
            config = defaults()
            config.steps = 4
            config.data.name = "files"
            config.data.dir = {str(data)!r}
            config.data.cache = {str(folder / "cache")!r}
            config.data.vocab_size = 300
            config.data.max_len = 32
            config.data.buckets = (16, 32)
            config.data.batch_tokens = 256
            config.model.num_layers = 1
            config.model.d_model = 16
            config.model.d_ff = 32
            config.model.num_heads = 2
            config.model.max_positions = 40
            config.optimizer.learning_rate = 1e-2
            config.optimizer.warmup_steps = 4
            config.logging.log_every = 2
            return config
        """)
    )
    ended = verb("train", f"--config={config}", f"--workdir={folder / 'run'}")
    assert ended.code == 0, ended.err
    return Small(config, data, folder / "run")


@pytest.fixture(scope="module")
def learned(small: Small, verb: Verb) -> Path:
    """A run with learned positions: 40 of them. Its third step is traced."""
    run = small.run.parent / "learned"
    flags = ("--config.model.positions=learned", "--profile_steps=3,3")
    ended = verb("train", f"--config={small.config}", f"--workdir={run}", *flags)
    assert ended.code == 0, ended.err
    return run


def _one_sentence(ended: Ended, *said: str) -> None:
    """Exit code 2, nothing on stdout, and one line on stderr that says all of `said`; a warning may precede it."""
    assert ended.code == 2, ended
    assert ended.out == b""
    lines = [line for line in ended.err.strip().split("\n") if not re.match(r"W\d{4} ", line)]
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in lines[0]
    for words in said:
        assert words in lines[0], lines[0]


# --- What they print


def test_train_leaves_a_run_of_plain_files(small: Small) -> None:
    run = small.run
    assert {"config.json", "tokenizer.json", "metrics.jsonl", "checkpoints"} <= {path.name for path in run.iterdir()}
    assert json.loads((run / "config.json").read_text())["steps"] == 4
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if "loss" in line]
    assert [line["step"] for line in training] == [2, 4]
    for line in training:
        assert {"step", "loss", "learning_rate", "tokens_per_second"} <= set(line)
        assert 0 < line["loss"] < 20
        assert line["learning_rate"] > 0
    assert "validation_nll" in lines[-1]


def test_steps_are_traced_for_perfetto_and_tensorboard(learned: Path) -> None:
    (folder,) = (learned / "profile" / "plugins" / "profile").iterdir()  # where TensorBoard looks for it
    assert list(folder.glob("*.xplane.pb"))
    (path,) = folder.glob("*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    steps = [event for event in events if "jit_train_step" in event.get("name", "") + str(event.get("args", ""))]
    assert steps, "the compiled step is in it"
    assert all(event["dur"] >= 0 for event in steps if event["ph"] == "X")


def test_steps_that_are_done_cannot_be_traced(small: Small, verb: Verb) -> None:
    ended = verb("train", f"--config={small.config}", f"--workdir={small.run}", "--profile_steps=2,4")
    _one_sentence(ended, "--profile_steps=2,4", "after step 4")


def test_evaluate_ends_in_one_json_object(small: Small, verb: Verb) -> None:
    result = verb("evaluate", f"--workdir={small.run}").last
    keys = {"loss", "perplexity", "token_accuracy", "exact_match", "bleu", "bleu_signature", "split", "step"}
    assert keys <= set(result)
    assert result["split"] == "test"
    assert result["step"] == 4
    assert "tok:13a" in str(result["bleu_signature"])
    assert 0 < float(str(result["loss"])) < 10


def test_evaluate_says_how_sure_it_is(small: Small, learned: Path, verb: Verb) -> None:
    result = verb("evaluate", f"--workdir={small.run}", f"--against={learned}", "--bootstrap=50").last
    assert result["chrf_signature"].startswith("nrefs:1")
    for name in ("loss", "token_accuracy", "bleu", "chrf", "exact_match"):
        low, high = result["intervals"][name]
        assert low <= result[name] <= high
        assert result["against"][name]["low"] <= result["against"][name]["high"]
        assert 0 < result["against"][name]["p"] <= 1
    other = verb("evaluate", f"--workdir={learned}").last
    assert result["against"]["loss"]["difference"] == pytest.approx(result["loss"] - other["loss"], abs=1e-9)
    assert result["against"]["workdir"] == str(learned)


def test_an_ensemble_is_compared_by_what_it_writes(small: Small, learned: Path, verb: Verb) -> None:
    ended = verb("evaluate", f"--workdir={small.run},{small.run}", f"--against={learned}", "--bootstrap=20")
    assert ended.code == 0, ended.err
    assert ended.last["against"].keys() == {"workdir", "bleu", "chrf", "exact_match"}


def test_describe_ends_in_the_number_of_parameters(small: Small, verb: Verb) -> None:
    ended = verb("describe", f"--config={small.config}", "--config.model.num_layers=3", "--config.data.vocab_size=1000")
    layer = 4 * 16**2 + 2 * 16 * 32 + 32 + 16 + 2 * 2 * 16
    expected = 1000 * 16 + 3 * (layer + layer + 4 * 16**2 + 2 * 16)
    assert ended.last == {"parameters": expected}
    assert [line.split() for line in ended.lines if line.startswith("total")] == [["total", f"{expected:,}"]]
    assert sum(": full, strips: " in line for line in ended.lines) == 9, "encoder, decoder, and between them"


def test_commands_of_their_own(small: Small) -> None:
    """Once without the fork: a real process, from another folder, with a sentence and a table."""
    command = [sys.executable, "-m", "transformer.describe", f"--config={small.config}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    good = subprocess.run(command, capture_output=True, text=True, cwd=small.data, env=environment, check=False)
    assert good.returncode == 0, good.stderr
    assert list(json.loads(good.stdout.splitlines()[-1])) == ["parameters"]
    bad = [*command, "--config.model.postions=learned"]
    told = subprocess.run(bad, capture_output=True, cwd=small.data, env=environment, check=False)
    _one_sentence(Ended(told.returncode, told.stdout, told.stderr.decode()), "'model.positions'")


# --- One line for each line

LINES = [
    "one two",
    "",
    "three four five",
    "   ",
    "日本語 Ж 🙂 \u2028 end",
    "two",
    "one two",
    "\t",
    "six " * 30,
    "a\u0085b",
]


def _generate(verb: Verb, run: Path, given: bytes) -> list[str]:
    ended = verb("generate", f"--workdir={run}", given=given)
    assert ended.code == 0, ended.err
    return ended.lines


def test_generate_writes_one_line_for_each_line(small: Small, verb: Verb) -> None:
    """Empty and blank lines, unseen characters, line separators inside a line, and one longer than any bucket."""
    outputs = _generate(verb, small.run, "".join(line + "\n" for line in LINES).encode())
    assert len(outputs) == len(LINES)
    assert [bool(output) for output, line in zip(outputs, LINES, strict=True) if not line.strip()] == [False] * 3
    assert outputs[0] == outputs[6]


def test_the_end_of_a_line_is_no_part_of_it(small: Small, verb: Verb) -> None:
    lines = ["one two", "", "three four five", "six"]
    plain = _generate(verb, small.run, "".join(line + "\n" for line in lines).encode())
    assert _generate(verb, small.run, "\n".join(lines).encode()) == plain, "no newline at the end"
    assert _generate(verb, small.run, "".join(line + "\r\n" for line in lines).encode()) == plain, "Windows"


@pytest.mark.parametrize(("given", "lines"), [(b"", 0), (b"\n", 1), (b"\n\n\n", 3), (b"\r\n \n", 2), (b"\n  ", 2)])
def test_nothing_in_nothing_out(small: Small, verb: Verb, given: bytes, lines: int) -> None:
    assert _generate(verb, small.run, given) == [""] * lines


def test_generate_by_beam_search_in_columns(small: Small, verb: Verb, tmp_path: Path) -> None:
    """Two outputs a line, numbered, from a file; scores fall; an ensemble of a run with itself is the run."""
    (tmp_path / "in.txt").write_text("one two\n\nsix\n", encoding="utf-8")
    flags = [f"--input={tmp_path / 'in.txt'}", "--beam=3", "--nbest=2", "--alignments", "--max_new=5", "--batch_size=1"]
    ended = verb("generate", f"--workdir={small.run}", *flags)
    assert ended.code == 0, ended.err
    columns = [line.split(" ||| ") for line in ended.lines]
    assert [row[0] for row in columns] == ["0", "0", "1", "1", "2", "2"]
    assert {len(row) for row in columns} == {4}
    assert float(columns[0][2]) >= float(columns[1][2])
    assert [row[1] for row in columns[2:4]] == ["", ""]
    both = verb("generate", f"--workdir={small.run},{small.run}", *flags[:3], "--max_new=5")
    again = [line.split(" ||| ") for line in both.lines]
    assert [row[:2] for row in again] == [row[:2] for row in columns]
    assert [float(row[2]) for row in again] == pytest.approx([float(row[2]) for row in columns], abs=1e-5)


@pytest.mark.parametrize(
    ("flag", "said"),
    [("--beam=-1", ["--beam", "-1"]), ("--nbest=3", ["--nbest=3"]), ("--max_new=-2", ["--max_new", "-2"]),
     ("--temperature=0", ["--temperature"]), ("--batch_size=0", ["batch_size"]), ("--input=no.txt", ["no.txt"])],
)  # fmt: skip
def test_mistakes_of_generate(small: Small, verb: Verb, flag: str, said: list[str]) -> None:
    _one_sentence(verb("generate", f"--workdir={small.run}", flag, given=b"one\n"), *said)


def test_a_line_that_is_not_utf8_is_named(small: Small, verb: Verb) -> None:
    ended = verb("generate", f"--workdir={small.run}", given=b"one\ntwo\n\xfcnf\n")
    _one_sentence(ended, "line 3", "UTF-8")


def test_learned_positions_refuse_a_longer_line(learned: Path, verb: Verb) -> None:
    assert len(_generate(verb, learned, b"one two\nthree\n")) == 2
    _one_sentence(verb("generate", f"--workdir={learned}", given=b"one\n" + b"six seven " * 30), "line 2", "after 40")


def test_language_model_generates_a_continuation(small: Small, verb: Verb, tmp_path: Path) -> None:
    """With learned positions, the most constrained: prompt and continuation share the table."""
    run = tmp_path / "run"
    changes = ["task=language_model", "model.family=decoder_only", "model.positions=learned", "data.target=de"]
    flags = [f"--config.{change}" for change in changes]
    assert verb("train", f"--config={small.config}", f"--workdir={run}", *flags).code == 0
    outputs = _generate(verb, run, b"eins zwei\n\ndrei\n")
    assert len(outputs) == 3
    assert outputs[1] == ""
    assert set(verb("evaluate", f"--workdir={run}").last) >= {"loss", "perplexity", "token_accuracy"}


# --- Mistakes on the command line

TRAIN = [
    ("--config.model.postions=learned", ["'model.postions'", "'model.positions'"]),
    ("--config.positions=learned", ["'positions'", "'model.positions'"]),
    ("--config.nonsense.of.mine=1", ["nonsense"]),
    ("--config.steps=abc", ["steps", "abc"]),
    ("--config.model.num_layers=2.5", ["num_layers", "2.5"]),
    ("--config.model.dropout=high", ["dropout", "high"]),
    ("--config.steps=0", ["'steps'", "at least 1"]),
    ("--config.steps=-5", ["'steps'", "at least 1"]),
    ("--config.seed=-1", ["seed", "-1"]),
    ("--config.model.num_heads=3", ["num_heads=3"]),
    ("--config.model.dropout=1.0", ["dropout", "1.0"]),
    ("--config.label_smoothing=-0.1", ["label_smoothing"]),
    ("--config.optimizer.learning_rate=0", ["learning_rate"]),
    ("--config.optimizer.schedule=linear", ["'cosine'", "'linear'"]),
    ("--config.model.norm=mid", ["norm", "'mid'"]),
    ("--config.model.positions=learnt", ["learnt", "learned"]),
    ("--config.model.family=encoder", ["family", "encoder"]),
    ("--config.task=translate", ["translate", "translation"]),
    ("--config.model.attention=('windw:4',)", ["windw:4", "window:16"]),
    ("--config.model.attention=('window:-4',)", ["window:-4"]),
    ("--config.data.max_len=33", ["max_len=33", "buckets"]),
    ("--config.model.vocab_size=100", ["vocab_size=100", "smaller"]),
    ("--config.model.vocab_size=-3", ["vocab_size"]),
    ("--config.data.vocab_size=100", ["vocab_size=100", "256"]),
    ("--config.mesh.data=64", ["mesh.data=64"]),
    ("--config.data.name=filse", ["filse", "files"]),
    ("--config.data.dir=/nowhere/at/all", ["/nowhere/at/all"]),
    ("--config.data.target=fr", ["fr"]),
    ("--profile_steps=2", ["profile_steps=2", "10,20"]),
    ("--profile_steps=2,5", ["profile_steps=2,5", "4 steps"]),
    ("--no_such_flag=3", ["no_such_flag"]),
    ("stray", ["'stray'"]),
]


@pytest.mark.parametrize(("argument", "said"), TRAIN, ids=[argument for argument, _ in TRAIN])
def test_a_mistake_is_one_sentence(small: Small, verb: Verb, tmp_path: Path, argument: str, said: list[str]) -> None:
    _one_sentence(verb("train", f"--config={small.config}", f"--workdir={tmp_path / 'run'}", argument), *said)
    assert not (tmp_path / "run" / "checkpoints").exists()


# What is typed wrong, for all commands; TMP holds notes/, empty, empty.json, empty.py, binary and syntax.py, RUN a run.
MISTAKES = """
train --config=TMP/none.py --workdir=TMP/r : there is no config file
train --config=TMP/notes --workdir=TMP/r : there is no config file
train --config=TMP/empty --workdir=TMP/r : is not a Python config file
train --config=TMP/empty.py --workdir=TMP/r : has no get_config()
train --config=TMP/syntax.py --workdir=TMP/r : cannot be run: SyntaxError
train --config= --workdir=TMP/r : there is no config file
train --workdir=TMP/r --config : there is no config file ''
train --config --workdir=TMP/r : there is no config file '--workdir=
train --config=gs://bucket/config.py --workdir=TMP/r : --config='gs://bucket/config.py' is a URL
train --config=CONFIG --workdir= : --workdir is missing
train --config=CONFIG --workdir=TMP/empty : cannot write to --workdir=
train --config=CONFIG --workdir=TMP/empty/run : cannot write to --workdir=
train --config=CONFIG --workdir=/proc/1/run : cannot write to --workdir='/proc/1/run'
train --config=CONFIG --workdir=TMP/notes/new/../../../../../../../../../proc/run : cannot write to --workdir=
train --config=CONFIG --workdir=gs://bucket/run : is a URL, and only files of this machine
train --config=CONFIG --workdir=~no.such.user/run : a user whom this machine does not know
train --config=CONFIG --workdir=TMP/a*b : has '*' in
train --config=CONFIG --workdir=TMP/r --config.model=3 : 'model' is a group of keys
train --config=CONFIG --workdir=TMP/r --config.model.d_model : Missing value
train --config=CONFIG --workdir=TMP/r --config.model.d_model=1e2 : d_model=1e2
train --config=CONFIG --workdir=TMP/r --config.model.tied=maybe : tied=maybe
train --config=CONFIG --workdir=TMP/r --config.seed=99999999999 : seed must be
train --config=CONFIG --workdir=TMP/r --config.optimizer.learning_rate=nan : above 0 and finite, not nan
train --config=CONFIG --workdir=TMP/r --config.optimizer.final_rate=nan : must be 0 or more, not nan
train --config=CONFIG --workdir=TMP/r --config.data.buckets=() : takes a tuple of int
train --config=CONFIG --workdir=TMP/r --config.data.buckets=(16,'a') : takes a tuple of int
train --config=CONFIG --workdir=TMP/r --config.data.dir=TMP/empty : There is no file
train --config=CONFIG --workdir=TMP/r --config.data.dir=s3://bucket/data : data.dir='s3://bucket/data' is a URL
train --config=CONFIG --workdir=TMP/r --config.data.cache=TMP/empty : data.cache=
train --config=CONFIG --workdir=TMP/r --config.data.cache=/proc/cache : data.cache=/proc/cache cannot be made
train --config=CONFIG --workdir=TMP/r --config.data.tokenizer=TMP/none.json : There is no tokenizer at
train --config=CONFIG --workdir=TMP/r --config.data.tokenizer=TMP/empty.json : is no tokenizer file
train --config=CONFIG --workdir=TMP/r --config.data.tokenizer=bep : did you mean 'bpe'?
train --config=CONFIG --workdir=TMP/r --config.data.source=de : must name two languages
train --config=CONFIG --workdir=TMP/r --config.data.dir= --config.data.source=TMP/notes : There is no file data.source=
train --config=CONFIG --workdir=TMP/r --config.data.name= : data.name=''
train --config=CONFIG --workdir=TMP/r --config.task=image_classification : needs model.family='encoder_only'
train --config=CONFIG --workdir=TMP/r --config.mesh.data=0 : mesh.data=0
train --config=CONFIG --workdir=TMP/r --config.logging.keep=0 : logging.keep
train --config=CONFIG --workdir=TMP/r --config.init_from=TMP/notes : holds no run
train --config=CONFIG --workdir=RUN --change=model.d_ff : --change=model.d_ff is not possible
train --config=CONFIG --workdir=RUN --change=nonsense : unknown config key 'nonsense'
train --config=CONFIG --workdir=TMP/r --profile_steps=a,b : --profile_steps=a,b
train --config=CONFIG --workdir=TMP/r --processes=2 : add --coordinator=host:port
train --config=CONFIG --workdir=TMP/r --coordinator=nowhere --processes=2 --process=0 : name no process of a run
train --config=CONFIG --workdir=TMP/r --distributed : cannot be brought together
train --config=CONFIG --workdir=TMP/r --join_seconds=0 : join_seconds
evaluate --workdir=TMP/notes : holds no run
evaluate --workdir=s3://bucket/run : is a URL
evaluate --workdir=, : holds no run
evaluate --workdir=RUN --average=two : average=two
evaluate --workdir=RUN --bootstrap=-1 : bootstrap
evaluate --workdir=RUN --alpha=nan : --alpha must be a finite number
evaluate --workdir=RUN --against=gs://bucket/run : --against='gs://bucket/run' is a URL
evaluate --workdir=RUN --against= : --against is empty
evaluate --workdir=RUN --config=CONFIG : Unknown command line flag 'config'
evaluate --workdir=RUN --mesh=data=2,model=4 : --mesh='data=2,model=4' has 'model=4'
evaluate --workdir=RUN --mesh=data=99 : mesh.data=99
generate --workdir=RUN --mesh= : --mesh='' has ''
generate --workdir=TMP/notes : holds no run
generate --workdir=RUN --nbest=0 : --nbest=0
generate --workdir=RUN --nbest=4 --beam=2 : --nbest=4
generate --workdir=RUN --sample --beam=2 : exclude each other
generate --workdir=RUN --sample --temperature=nan : --temperature must be
generate --workdir=RUN --sample --top_p=2 : --top_p must be
generate --workdir=RUN --temperature=0.5 : add --sample
generate --workdir=RUN --sample --seed=-1 : --seed must be
generate --workdir=RUN --min_new=5 --max_new=2 : --min_new=5
describe --config=TMP/none.py : there is no config file
describe --config=CONFIG --mesh=dat=2 : --mesh='dat=2'
describe --config=CONFIG --mesh=data=2,data=4 : write data, fsdp, sequence or tensor once
describe --config=CONFIG --mesh=tensor=3 : does not divide over mesh.tensor=3
describe --config=CONFIG --topology=v5e:4x5 : did you mean
describe --config=CONFIG --topology=h100:8 : write h100:slices x hosts x devices
describe --config=CONFIG --topology= : write a slice of TPUs such as v5e:4x4
describe --config=CONFIG --topology=v5e:4x4 --nocompile : leave one out
heads --workdir=RUN : --text is missing
heads --text=one : give either --workdir
heads --workdir=RUN --pretrained=TMP/notes --text=one : give either --workdir
heads --workdir=RUN --text=one --output=TMP/notes : is no file in a folder that is there
heads --workdir=RUN --text=one --output=gs://bucket/heads.html : is a URL
heads --pretrained=TMP/notes --text=one --output=TMP/h.html : holds no vocab.txt
convert : --llama2c is missing
convert --llama2c=TMP/none --tokenizer=TMP/none --output=TMP/o : none
convert --llama2c=TMP/empty --tokenizer=TMP/empty --output=TMP/o : empty
convert --llama2c=TMP/binary --tokenizer=TMP/binary --output=TMP/o : binary
convert --llama2c=TMP/notes --tokenizer=TMP/notes --output=TMP/o : notes
convert --llama2c=TMP/empty --tokenizer=TMP/empty --output=gs://bucket : --output='gs://bucket' is a URL
tokenize : --input or --output is missing
tokenize --input=TMP/none --output=TMP/t.json : none cannot be read
tokenize --input=TMP/notes --output=TMP/t.json : notes cannot be read
tokenize --input=TMP/empty --output=TMP/t.json : is empty
tokenize --input=TMP/binary --output=TMP/t.json : has a NUL character in line 1
tokenize --input=CONFIG --output=TMP/notes : is no .json file that can be written
tokenize --input=CONFIG --output=TMP/t.txt : is no .json file that can be written
tokenize --input=CONFIG --output=/proc/t.json : /proc/t.json cannot be written
tokenize --input=CONFIG --output=TMP/empty/t.json : cannot be written
tokenize --input=CONFIG --output=TMP/t.json --kind=bep : did you mean 'bpe'?
tokenize --input=CONFIG --output=TMP/t.json --vocab_size=3 : 3
tokenize --input=CONFIG --output=TMP/t.json --holes=-1 : holes
experiments.run : the following arguments are required: experiment, --workdir
experiments.run tyinng --workdir=TMP/s : did you mean 'tying'?
experiments.run tying : the following arguments are required: --workdir
experiments.run tying --workdir= : --workdir is empty
experiments.run tying --workdir=TMP/empty : cannot write to --workdir=
experiments.run tying --workdir=gs://bucket/sweep : is a URL
experiments.run tying --workdir=TMP/s --base=TMP/none.py : there is no config file
experiments.run tying --workdir=TMP/s --seeds=0 : at least 1
experiments.run tying --workdir=TMP/s --first-seed=-1 : is not a whole number from 0
experiments.run tying --workdir=TMP/s --set model.d_modl=3 : did you mean 'model.d_model'?
experiments.run tying --workdir=TMP/s --set model.d_model : has no value
experiments.run tying --workdir=TMP/s --set model.d_model=x : takes int, not 'x'
experiments.run tying --workdir=TMP/s --set data.cache=gs://bucket : data.cache='gs://bucket' is a URL
experiments.run tying --workdir=TMP/s --budget=money : invalid choice: 'money'
experiments.run tying --workdir=TMP/s --bse=3 : unrecognized arguments: --bse=3
experiments.run tying --workdir=TMP/s --executor=slurm --submit=nonsense=3 : is no option of sbatch
experiments.run tying --workdir=TMP/s --submit partition=gpu : is for --executor=slurm
experiments.run tying --workdir=TMP/s --report-only : none of the
experiments.run tying --workdir=RUN --report-only : none of the
experiments.run TMP/none.py --workdir=TMP/s : there is no experiment file
experiments.run TMP/empty.py --workdir=TMP/s : has no variants
experiments.run TMP/syntax.py --workdir=TMP/s : syntax.py' cannot be run: SyntaxError
experiments.run attention_cost --workdir=TMP/s --seeds=4 : leave out --seeds
"""


def _files(*folders: Path) -> dict[Path, int]:
    """All files with the times at which they were written, and all folders."""
    found = (path for folder in folders for path in folder.rglob("*"))
    return {path: path.stat().st_mtime_ns if path.is_file() else 0 for path in found}


@pytest.mark.parametrize("line", MISTAKES.strip().split("\n"), ids=lambda line: line.split(" : ")[0])
def test_a_mistake_of_any_command_changes_nothing(small: Small, verb: Verb, tmp_path: Path, line: str) -> None:
    (tmp_path / "notes").mkdir()
    for name, content in {"notes/mine": b"mine", "binary": bytes(range(256)), "syntax.py": b"def variants(:"}.items():
        (tmp_path / name).write_bytes(content)
    for name in ("empty", "empty.json", "empty.py"):
        (tmp_path / name).touch()
    before = _files(tmp_path, small.run)
    typed, said = line.split(" : ")
    for name, path in {"TMP": tmp_path, "CONFIG": small.config, "RUN": small.run}.items():
        typed = typed.replace(name, str(path))
    name, *arguments = typed.split(" ")
    _one_sentence(verb(name, *arguments, given=b"one two\n"), said)
    assert _files(tmp_path, small.run) == before


def test_learned_positions_shorter_than_the_sentences(small: Small, verb: Verb, tmp_path: Path) -> None:
    flags = ("--config.model.positions=learned", "--config.model.max_positions=16")
    ended = verb("train", f"--config={small.config}", f"--workdir={tmp_path / 'run'}", *flags)
    _one_sentence(ended, "max_len=32", "max_positions=16")


@pytest.mark.parametrize("value", ["full", "window:4", "('window:4','full')", "('window:4',)"])
def test_attention_is_typed_as_one_pattern_or_as_several(small: Small, verb: Verb, value: str) -> None:
    assert verb("describe", f"--config={small.config}", f"--config.model.attention={value}").code == 0


def test_no_config_no_workdir_no_file(small: Small, verb: Verb, tmp_path: Path) -> None:
    _one_sentence(verb("train", f"--workdir={tmp_path / 'run'}"), "--config")
    _one_sentence(verb("train", f"--config={small.config}"), "--workdir")
    _one_sentence(verb("train", "--config=configs/nothing.py", f"--workdir={tmp_path / 'run'}"), "configs/nothing.py")
    _one_sentence(verb("describe"), "--config")
    _one_sentence(verb("evaluate"), "--workdir")
    _one_sentence(verb("generate", given=b"one\n"), "--workdir")
    assert list(tmp_path.iterdir()) == []


def _config_file(line: str) -> str:
    return f"from transformer.config import defaults\ndef get_config():\n    c = defaults()\n    {line}\n    return c\n"


BROKEN = {
    "syntax": ("def get_config(:\n", ""),
    "no function": ("x = 1\n", "get_config"),
    "import": ("import no_such_module_of_mine\n", "no_such_module_of_mine"),
    "name": (_config_file("c.steps = undefined_name"), "undefined_name"),
    "no config": ("def get_config():\n    return 3\n", ""),
    "unknown group": (_config_file("c.modle.d_model = 3"), "modle"),
    "unknown key": (_config_file("c.model.postions = 'learned'"), "postions"),
    "wrong type": (_config_file("c.steps = 'x'"), "steps"),
}


@pytest.mark.parametrize(("text", "said"), BROKEN.values(), ids=BROKEN)
def test_a_broken_config_file(verb: Verb, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "broken.py").write_text(text)
    ended = verb("train", f"--config={tmp_path / 'broken.py'}", f"--workdir={tmp_path / 'run'}")
    _one_sentence(ended, said)


def test_a_run_in_a_folder_of_any_name(small: Small, verb: Verb, tmp_path: Path) -> None:
    """The names of all folders; each character by itself is tried in tests/test_paths.py."""
    place = tmp_path / "-a b%20'\"{e\u0301}\U0001f642#\n\t,=@0$HOME;&<>|~" / "..."
    shutil.copytree(small.run, place / "run")
    shutil.copytree(small.data, place / "data")
    config = place / "config.py"
    moved = [(str(small.data), str(place / "data")), (str(small.run.parent / "cache"), str(place / "cache"))]
    text = small.config.read_text()
    for old, new in moved:
        text = text.replace(repr(old), repr(new))
    config.write_text(text)
    ended = verb("train", f"--config={config}", f"--workdir={place / 'run'}", "--config.steps=6")
    assert ended.code == 0, ended.err
    result = verb("evaluate", f"--workdir={place / 'run'}", "--against", place / "run").last
    assert result["step"] == 6
    (place / "in.txt").write_text("one two\n")
    ended = verb("generate", f"--workdir={place / 'run'}", f"--input={place / 'in.txt'}")
    assert ended.code == 0, ended.err
    assert len(ended.lines) == 1


# --- Mistakes in the data


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("train.de", None, ["train.de"]),
        ("test.en", b"one\n", ["test.en", "has 1 lines", "16"]),
        ("train.en", b"", ["train.en", "empty"]),
        ("validation.en", b"\n" * 24, ["validation"]),
        ("test.de", b"eins\n" * 15 + b"f\xfcnf\n", ["test.de", "UTF-8", "line 16"]),
    ],
    ids=["missing", "unequal", "empty", "blank", "not UTF-8"],
)
def test_broken_files(
    small: Small, verb: Verb, tmp_path: Path, file: str, content: bytes | None, said: list[str]
) -> None:
    _write_pairs(tmp_path / "data")
    if content is None:
        (tmp_path / "data" / file).unlink()
    else:
        (tmp_path / "data" / file).write_bytes(content)
    run = tmp_path / "run"
    _one_sentence(
        verb("train", f"--config={small.config}", f"--config.data.dir={tmp_path / 'data'}", f"--workdir={run}"), *said
    )
    assert not run.exists()


def test_no_sentence_fits(small: Small, verb: Verb, tmp_path: Path) -> None:
    _write_pairs(tmp_path / "data")
    (tmp_path / "data" / "train.en").write_text("one two three four five six seven\n" * 160)
    flags = (f"--config.data.dir={tmp_path / 'data'}", "--config.data.max_len=3", f"--workdir={tmp_path / 'run'}")
    _one_sentence(verb("train", f"--config={small.config}", *flags), "max_len=3")


# --- Mistakes with the workdir


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--config.model.d_ff=64", ["model.d_ff", "32", "64"]),
        ("--config.seed=7", ["seed"]),
        ("--config.optimizer.learning_rate=0.5", ["add --change=optimizer.learning_rate to change it on purpose"]),
        ("--config.data.batch_tokens=512", ["data.batch_tokens"]),
    ],
)
def test_a_workdir_of_another_config(small: Small, verb: Verb, argument: str, said: list[str]) -> None:
    before = (small.run / "config.json").read_bytes()
    _one_sentence(
        verb("train", f"--config={small.config}", f"--workdir={small.run}", argument), "another config", *said
    )
    assert (small.run / "config.json").read_bytes() == before


def test_a_run_begins_with_the_parameters_of_another(small: Small, verb: Verb, tmp_path: Path) -> None:
    from transformer import load_run

    shutil.copytree(small.run, tmp_path / "first")
    command = ("train", f"--config={small.config}", f"--workdir={tmp_path / 'run'}", "--config.seed=5")
    begun = (f"--config.init_from={tmp_path / 'first'}", "--config.optimizer.learning_rate=1e-12")
    ended = verb(*command, *begun, "--config.steps=1")
    assert ended.code == 0, ended.err
    before, after = (
        load_run(path).params["params"]["decoder"]["layer_0"]["feed_forward"]["inner"]["kernel"]
        for path in (tmp_path / "first", tmp_path / "run")
    )
    assert abs(before - after).max() < 1e-9
    assert (tmp_path / "run" / "tokenizer.json").read_bytes() == (small.run / "tokenizer.json").read_bytes()
    shutil.rmtree(tmp_path / "first")
    ended = verb(*command, *begun, "--config.steps=2")
    assert ended.code == 0, f"the first run may be gone once this one has begun: {ended.err}"


def test_a_run_cannot_begin_from_nothing_or_another_model(small: Small, verb: Verb, tmp_path: Path) -> None:
    train = ("train", f"--config={small.config}", f"--workdir={tmp_path / 'run'}")
    _one_sentence(verb(*train, f"--config.init_from={tmp_path / 'none'}"), "none", "train there first")
    _one_sentence(
        verb(*train, f"--config.init_from={small.run}", "--config.model.d_ff=48"), "another model", "(32,)", "(48,)"
    )


def test_a_workdir_that_cannot_be_written(small: Small, verb: Verb, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    _one_sentence(verb("train", f"--config={small.config}", f"--workdir={tmp_path / 'file'}"), "--workdir", "file")
    _one_sentence(verb("train", f"--config={small.config}", f"--workdir={tmp_path / 'file' / 'run'}"), "--workdir")
    _one_sentence(verb("train", f"--config={small.config}", "--workdir=/proc/run"), "--workdir")


@pytest.mark.parametrize("name", ["evaluate", "generate"])
def test_a_workdir_without_a_run(verb: Verb, tmp_path: Path, name: str) -> None:
    _one_sentence(verb(name, f"--workdir={tmp_path}", given=b"one\n"), str(tmp_path), "train there first")
    _one_sentence(verb(name, f"--workdir={tmp_path / 'none'}", given=b"one\n"), "train there first")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["evaluate", "generate"])
@pytest.mark.parametrize("missing", ["tokenizer.json", "checkpoints"])
def test_a_run_with_a_part_missing(small: Small, verb: Verb, tmp_path: Path, name: str, missing: str) -> None:
    for file in ("config.json", "tokenizer.json"):
        if file != missing:
            (tmp_path / file).write_bytes((small.run / file).read_bytes())
    _one_sentence(verb(name, f"--workdir={tmp_path}", given=b"one\n"), "train there first")


@pytest.mark.parametrize("content", ['{"steps": 4', "[]", '{"stepps": 4}', ""], ids=["cut", "list", "key", "empty"])
def test_a_damaged_config_of_a_run(small: Small, verb: Verb, tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    _one_sentence(verb("evaluate", f"--workdir={tmp_path}"))
    _one_sentence(verb("train", f"--config={small.config}", f"--workdir={tmp_path}"))


def test_an_unknown_split_and_too_few_checkpoints(small: Small, verb: Verb) -> None:
    _one_sentence(verb("evaluate", f"--workdir={small.run}", "--split=tset"), "'tset'", "'test'")
    _one_sentence(verb("evaluate", f"--workdir={small.run}", "--average=5"), "1 checkpoint", "5")
    assert verb("evaluate", f"--workdir={small.run}", "--average=0").code == 2
    assert verb("evaluate", f"--workdir={small.run}", "--best").last["step"] == 4
    _one_sentence(verb("evaluate", f"--workdir={small.run}", "--best", "--average=2"), "--best", "--average=2")


def test_learned_positions_refuse_a_split_with_longer_sentences(learned: Path, verb: Verb, tmp_path: Path) -> None:
    assert verb("evaluate", f"--workdir={learned}").code == 0


def test_resuming_on_other_data_is_refused(small: Small, verb: Verb, tmp_path: Path) -> None:
    """The config is the same, and the files it names are not."""
    _write_pairs(tmp_path / "data")
    flags = (f"--config={small.config}", f"--config.data.dir={tmp_path / 'data'}", f"--workdir={tmp_path / 'run'}")
    assert verb("train", *flags).code == 0
    train = tmp_path / "data" / "train.en"
    train.write_text(train.read_text().replace("one", "seven"))
    _one_sentence(verb("train", *flags, "--config.steps=8"), "data")


def test_fewer_steps_than_were_done(small: Small, verb: Verb) -> None:
    """Nothing is left to do; the line that a run ends with is not written for a step it has passed."""
    before = (small.run / "metrics.jsonl").read_text()
    verb("train", f"--config={small.config}", f"--workdir={small.run}", "--config.steps=2")
    steps = [json.loads(line)["step"] for line in (small.run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps), before


def test_help_names_the_flags(verb: Verb) -> None:
    ended = verb("train", "--help")
    assert re.search(r"--workdir\b", ended.out.decode() + ended.err)
    assert re.search(r"--config\b", ended.out.decode() + ended.err)
