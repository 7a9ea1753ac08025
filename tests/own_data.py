"""python -m tests.own_data FOLDER

Makes small files of every kind that docs/your_data.md reads: the same on every machine, since all is drawn from a seed.
"""

import csv
import json
import math
import random
import sys
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import soundfile
from PIL import Image, ImageDraw

COLOURS = {
    "red": "rot",
    "blue": "blau",
    "green": "grün",
    "small": "klein",
    "old": "alt",
    "new": "neu",
    "slow": "langsam",
}
THINGS = {"car": "Auto", "house": "Haus", "boat": "Boot", "dog": "Hund", "horse": "Pferd", "cat": "Katze"}
ALIVE = ("dog", "horse", "cat")
VERBS = {"waits": "wartet", "moves": "fährt", "sleeps": "schläft", "shines": "glänzt"}


def sentence(draw: random.Random) -> tuple[str, str, str]:
    """An English sentence, its German translation, and whether its subject is alive."""
    thing, verb = draw.choice(list(THINGS)), draw.choice(list(VERBS))
    words = draw.sample(list(COLOURS), draw.randint(1, 3))
    english = f"the {' '.join(words)} {thing} {verb}"
    german = f"das ist {', '.join(COLOURS[word] for word in words)}: {THINGS[thing]} {VERBS[verb]}"
    return english, german, "alive" if thing in ALIVE else "thing"


def make(folder: Path) -> None:
    """Writes all files into a folder, which is created if necessary."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(7)
    rows = [sentence(draw) for _ in range(1200)]
    english = [row[0] for row in rows]
    _texts(folder, english)
    _tables(folder, rows)
    _saved(folder / "saved", rows)
    _pictures(folder / "pictures", draw)
    _recordings(folder / "recordings", draw)
    _series(folder / "sales.csv", draw)


def _texts(folder: Path, lines: list[str]) -> None:
    (folder / "notes.txt").write_text("".join(f"{line}.\n" for line in lines))
    for name, first in (("notes", 0), ("corpus", 600)):
        (folder / name).mkdir(exist_ok=True)
        for number in range(30):
            part = lines[first + 20 * number : first + 20 * (number + 1)]
            if name == "notes":
                (folder / name / f"day_{number:02d}.txt").write_text("".join(f"{line}.\n" for line in part))
            else:
                content = "".join(json.dumps({"text": f"{line}."}) + "\n" for line in part).encode()
                path = folder / name / f"web_{number:02d}.jsonl.zst"
                path.write_bytes(pyarrow.compress(content, "zstd", asbytes=True))
    (folder / "corpus" / "books.txt").write_text("".join(f"{line.upper()}.\n" for line in lines[:300]))


def _tables(folder: Path, rows: list[tuple[str, str, str]]) -> None:
    with open(folder / "mine.jsonl", "w") as file:
        for number, (text, _, kind) in enumerate(rows):
            file.write(json.dumps({"id": number, "body": text, "meta": {"kind": kind}}) + "\n")
    with open(folder / "mine.csv", "w", newline="") as file:
        csv.writer(file).writerows([("id", "review", "category"), *((i, r[0], r[2]) for i, r in enumerate(rows))])
    (folder / "mine.tsv").write_text("".join(f"{text}\t{kind}\n" for text, _, kind in rows))
    (folder / "pairs.tsv").write_text("en\tde\n" + "".join(f"{text}\t{german}\n" for text, german, _ in rows))
    table = pyarrow.table({"text": [row[0] for row in rows], "id": list(range(len(rows)))})
    pyarrow.parquet.write_table(table, folder / "mine.parquet")


def _saved(folder: Path, rows: list[tuple[str, str, str]]) -> None:
    """As `datasets.DatasetDict.save_to_disk` writes them."""
    features = {"label": {"names": ["alive", "thing"], "_type": "ClassLabel"}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    for split, part in (("train", rows[:900]), ("validation", rows[900:1050]), ("test", rows[1050:])):
        (folder / split).mkdir(parents=True, exist_ok=True)
        labels = [("alive", "thing").index(kind) for _, _, kind in part]
        table = pyarrow.table({"text": [row[0] for row in part], "label": labels}).replace_schema_metadata(about)
        name = "data-00000-of-00001.arrow"
        with (
            pyarrow.OSFile(str(folder / split / name), "wb") as sink,
            pyarrow.ipc.new_stream(sink, table.schema) as out,
        ):
            out.write_table(table)
        (folder / split / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation", "test"]}))


def _pictures(folder: Path, draw: random.Random) -> None:
    """Discs and boxes of any colour on images of several sizes, JPEG and PNG."""
    for shape in ("box", "disc"):
        (folder / shape).mkdir(parents=True, exist_ok=True)
        for number in range(120):
            width, height = draw.randint(40, 90), draw.randint(40, 90)
            image = Image.new("RGB", (width, height), tuple(draw.randrange(90) for _ in range(3)))
            side = draw.randint(18, 30)
            left, top = draw.randrange(width - side), draw.randrange(height - side)
            colour = tuple(draw.randrange(140, 256) for _ in range(3))
            pen = ImageDraw.Draw(image)
            place = (left, top, left + side, top + side)
            pen.ellipse(place, colour) if shape == "disc" else pen.rectangle(place, colour)
            image.save(folder / shape / f"{number:03d}.{'jpg' if number % 2 else 'png'}")


def _recordings(folder: Path, draw: random.Random) -> None:
    """Strings of low and high tones, in WAV and FLAC of two rates, and a table of what is heard."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(150):
        words = [draw.choice(("low", "high")) for _ in range(draw.randint(1, 3))]
        rate = draw.choice((8_000, 16_000))
        time = np.arange(int(0.12 * rate)) / rate
        tones = [0.4 * np.sin(2 * math.pi * (300 if word == "low" else 900) * time) for word in words]
        pause = np.zeros(int(0.05 * rate))
        noise = np.random.default_rng(number).normal(size=sum(map(len, tones)) + len(pause) * len(tones)) / 100
        name = f"{number:03d}.{draw.choice(('wav', 'flac'))}"
        soundfile.write(folder / name, np.concatenate([x for tone in tones for x in (tone, pause)]) + noise, rate)
        rows.append((name, " ".join(words)))
    with open(folder / "heard.csv", "w", newline="") as file:
        csv.writer(file).writerows([("audio", "text"), *rows])


def _series(path: Path, draw: random.Random) -> None:
    """Two years of daily sales, with a week's rhythm."""
    day, rows = date(2023, 1, 2), []
    for number in range(730):
        week = (1.0, 1.1, 1.2, 1.3, 1.8, 2.2, 0.4)[number % 7]
        sold = 100 * week * (1 + number / 2000) + draw.gauss(0, 6)
        rows.append((day.isoformat(), f"{sold:.1f}", f"{3 * sold + draw.gauss(0, 20):.0f}"))
        day += timedelta(days=1)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("day", "sold", "visitors"), *rows])


if __name__ == "__main__":
    make(Path(sys.argv[1]))
