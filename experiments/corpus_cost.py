"""What does a corpus larger than memory cost to prepare and to train on?

Hypothesis: preparing and training take less than 1.5 GB of memory, whatever the size of the corpus; tokens are made at
least 0.8 times as fast as the `tokenizers` library makes them of the same text with as many threads; a prepared corpus
gives its first step within 20 seconds, and a training step waits for data at most 1 % of its time.

A text of so many gigabytes is made of the lines of the docstrings of installed packages, repeated and shuffled: as
lines, each a document in packed rows, and as one text that is read in contiguous rows. Three processes follow each
other: one reads the text into a store, trains a tokenizer on it, makes the tokens and plans an epoch; one encodes the
beginning of the same text with the library alone, in batches of lines; one trains the model of configs/gpt.py for some
hundred steps. Memory is that of a process and its children together, pages of mapped files included. A step may also
wait where a block of the corpus is opened, once in thousands of steps: how long that takes, as a share of the time
that a block lasts, is told apart, as if no thread did it before it is needed.

Source: the size of a corpus that peers' users ask for (google/maxtext, issues 471 and 4486).
"""

import json
import random
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.lab import watched
from experiments.lab.questions import FOLDER
from experiments.lab.render import Block, Table

CASES: dict[str, dict[str, Any]] = {
    "1 GB of lines": {"gigabytes": 1.0, "form": "lines"},
    "3 GB of lines": {"gigabytes": 3.0, "form": "lines"},
    "3 GB in one text": {"gigabytes": 3.0, "form": "text"},
}
STEPS = 600
VALIDATION = 200_000  # bytes
ALONE = 64_000_000  # bytes that the library encodes by itself
PIECES = 8000
# Form -> keys of the config; "?" stands for the folder.
FORMS: dict[str, dict[str, Any]] = {
    "lines": {"data.name": "table", "data.files": ("?/train.txt", "?/validation.txt"), "data.target": "text"},
    "text": {"data.name": "text", "data.target": "?/train.txt", "data.split": "sizes:99%/1%"},
}


def cases() -> dict[str, dict[str, Any]]:
    """A case for each size and form."""
    return CASES


def measure_case(gigabytes: float, form: str) -> list[dict[str, Any]]:
    """One row with the figures of each process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder / "train.txt", int(gigabytes * 1e9), seed=0)
        write_text(folder / "validation.txt", VALIDATION, seed=1)
        prepared, preparing = _call("prepare", folder, form)
        alone, _ = _call("library", folder, form)
        trained, training = _call("train", folder, form)
    row: dict[str, Any] = {"gigabytes": gigabytes, "form": form}
    row |= {"preparing_memory": preparing.peak, "training_memory": training.peak} | prepared | alone | trained
    (first,) = re.findall(r"first step after ([0-9.]+) s", training.output)
    row["first_step_seconds"] = float(first)
    row["ratio"] = row["rate"] / row["library_rate"]
    row["block_share"] = row["block_seconds"] / (row["block_steps"] * row["step_seconds"])
    return [row]


def write_text(path: Path, size: int, seed: int) -> None:
    """A text of about `size` bytes: docstrings' lines, repeated and shuffled."""
    from transformer.data.builtin import docstrings

    texts = (row.text for row in docstrings.corpus().splits["validation"])
    lines = sorted({line.strip() for text in texts for line in text.splitlines()} - {""})
    shuffled, written = random.Random(seed), 0
    with open(path, "w", encoding="utf-8") as file:
        while written < size:
            part = "\n".join(shuffled.sample(lines, len(lines))).encode()[: size - written]
            file.write(part.decode(errors="ignore") + "\n")
            written += len(part) + 1


def _call(function: str, folder: Path, form: str) -> tuple[dict[str, Any], watched.Watched]:
    """What a function of this file returns in a process of its own, and what is known of that."""
    given = f"{str(folder)!r}, {form!r}, {STEPS}, {ALONE}"
    code = f"from experiments import corpus_cost as here; here.told(here.{function}, {given})"
    ended = watched.run([sys.executable, "-c", code])
    return json.loads(ended.output.splitlines()[-1]), ended


def told(function: Any, folder: str, form: str, steps: int, alone: int) -> None:
    """Prints what a function returns as the last line."""
    found = function(Path(folder), form, steps=steps, alone=alone)
    print(f"\n{json.dumps(found)}", flush=True)


def config_of(folder: Path, form: str, steps: int) -> Any:
    """The config of the run."""
    from transformer.config import load_file, override

    def placed(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(placed, value))
        return value.replace("?", str(folder))

    own = {key: placed(value) for key, value in FORMS[form].items()}
    tokens = {"data.tokenizer": "bpe", "data.vocab_size": PIECES, "data.cache": str(folder / "cache")}
    logging = {"logging.log_every": max(1, steps // 3), "logging.checkpoint_every": steps, "steps": steps}
    logging |= {"mesh.data": 1}
    return override(load_file(FOLDER.parent / "configs" / "gpt.py"), own | tokens | logging)


def _pieces(folder: Path, form: str, steps: int) -> tuple[Any, Any, Any]:
    """The config, the source and the task; preparing what is missing."""
    from transformer.data.sources import load_source
    from transformer.data.tokenizers.training import load_or_train
    from transformer.tasks import task_class

    config = config_of(folder, form, steps)
    source, kind = load_source(config.data), task_class(config.task)
    return config, source, kind(config, load_or_train(source, config.data, kind.fields(config, source)))


def prepare(folder: Path, form: str, steps: int, alone: int) -> dict[str, Any]:
    """Seconds of reading and planning, and bytes of text a second of tokenising."""
    del alone
    from transformer.data.batches.corpus import token_shards

    began = time.monotonic()
    config, source, task = _pieces(folder, form, steps)
    read = time.monotonic()
    fields = task.fields(config, source)
    token_shards(source, "train", fields, task.tokenizer, config.data)
    made = time.monotonic()
    batches = task.batches(source, "train")
    per_epoch = batches.steps_per_epoch
    planned = time.monotonic()
    corpus = token_shards(source, "train", fields, task.tokenizer, config.data)
    begin = time.monotonic()
    kind = type(batches) if len(corpus) == 1 else batches._kind.made
    kind(corpus[0], data=config.data, seed=0)
    size = (folder / "train.txt").stat().st_size
    return {
        "reading_seconds": read - began,
        "rate": size / (made - read),
        "planning_seconds": planned - made,
        "block_seconds": time.monotonic() - begin,
        "block_steps": per_epoch / len(corpus),
        "shards": len(corpus),
    }


def library(folder: Path, form: str, steps: int, alone: int) -> dict[str, Any]:
    """Bytes of text a second of the library by itself, with a thread for each core."""
    _, _, task = _pieces(folder, form, steps)
    encode = task.tokenizer._pieces.library.encode_batch_fast
    with open(folder / "train.txt", encoding="utf-8") as file:
        lines = file.read(alone).splitlines()
    began = time.monotonic()
    for start in range(0, len(lines), 4096):
        encode(lines[start : start + 4096], add_special_tokens=False)
    return {"library_rate": sum(len(line.encode()) + 1 for line in lines) / (time.monotonic() - began)}


def train(folder: Path, form: str, steps: int, alone: int) -> dict[str, Any]:
    """How long a prepared run waits for data, and the time of a step. It prints when its first one is done."""
    del alone
    from transformer import train as verb

    verb.train(config_of(folder, form, steps), folder / "run")
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    logged = [line for line in lines if "data_share" in line][1:]  # the first one compiles
    return {
        "waiting_share": max(line["data_share"] for line in logged),
        "step_seconds": logged[-1]["seconds_per_step"],
    }


def findings(rows: list[dict[str, Any]], folder: Path) -> tuple[list[str], list[Block]]:
    """Each limit of the hypothesis in a sentence, and a table of all figures."""
    del folder  # nothing is drawn
    memory = max(max(row["preparing_memory"], row["training_memory"]) for row in rows)
    names = ("first_step_seconds", "waiting_share", "block_share")
    most = {name: max(row[name] for row in rows) for name in names}
    answer = [
        f"Preparing and training take up to {memory / 1e9:.2f} GB of memory, children included.",
        f"Tokens are made {min(row['ratio'] for row in rows):.2f} times as fast as by the library alone, or faster.",
        f"The first step of a prepared run is done after {most['first_step_seconds']:.0f} s at most.",
        f"A step waits for data {most['waiting_share']:.2%} of its time at most; opening a block takes "
        f"{most['block_share']:.2%} of the time that it lasts.",
    ]
    lines = sorted((row for row in rows if row["form"] == "lines"), key=lambda row: row["gigabytes"])
    if len(lines) > 1:
        small, large = lines[0], lines[-1]
        for name in ("preparing", "training"):
            more = (large[f"{name}_memory"] - small[f"{name}_memory"]) / (large["gigabytes"] - small["gigabytes"])
            answer.append(f"Each further gigabyte takes {more / 1e6:+.0f} MB more memory in {name}.")
    head = ["gigabytes", "form", "reading s", "tokens MB/s", "library MB/s", "planning s", "shards", "preparing MB"]
    head += ["training MB", "first step s", "waiting", "step ms", "block s"]
    body = [
        [
            f"{row['gigabytes']:g}",
            row["form"],
            f"{row['reading_seconds']:.0f}",
            f"{row['rate'] / 1e6:.2f}",
            f"{row['library_rate'] / 1e6:.2f}",
            f"{row['planning_seconds']:.1f}",
            f"{row['shards']}",
            f"{row['preparing_memory'] / 1e6:.0f}",
            f"{row['training_memory'] / 1e6:.0f}",
            f"{row['first_step_seconds']:.1f}",
            f"{row['waiting_share']:.2%}",
            f"{1000 * row['step_seconds']:.1f}",
            f"{row['block_seconds']:.2f}",
        ]
        for row in rows
    ]
    return answer, [Table(head, body, "Memory is the peak of a process and its children, mapped files included.")]
