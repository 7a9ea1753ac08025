"""Recordings of the user's own: a table of paths with transcripts or classes, or folders of classes.

They may have any format, rate, type of sample and number of channels, and are stored as samples of one form, so that
batches read them without decoding. Fields: `audio`, int16 [T] at `data.sample_rate`, and `text` or `label`, or both.
"""

import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from transformer.config import DataConfig
from transformer.data.caching import Key, cache_root, cached
from transformer.data.sources import recordings
from transformer.data.sources.listing import Medium, listed
from transformer.data.sources.side_by_side import in_threads
from transformer.data.sources.source import Source
from transformer.data.sources.stored import from_store
from transformer.data.store import INTEGER, TEXT, Kind, Store, StoreWriter

ENDINGS = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aiff", ".aif", ".au", ".caf", ".w64", ".rf64")
RECORDINGS = Medium("audio", "recording", ENDINGS, ("text",))
SAMPLES = Kind("int16", (None,))


def audio_table(data: DataConfig) -> Source:
    """The recordings of the tables `data.files`, with the columns `audio` (a path) and `text` or `label`, or of folders
    of classes in `data.dir` or `data.files`, as CLASS/*.wav or train/CLASS/*.wav.

    UserErrors: see `listed` and `read_audio`.
    """
    listing, root = listed(data, RECORDINGS)
    inputs, code = [listing.fingerprint, data.sample_rate], (recordings, sys.modules[__name__])
    key = Key(cache_root(data) / "prepared" / data.name, inputs, code, ("soundfile", "soxr"))
    store = Store(cached(key, lambda folder: _read(folder, listing, root, data.sample_rate)))
    return from_store(data.name, store, aliases={data.target: "text"} if data.target != "text" else {})


def _read(folder: Path, listing: Source, root: Path, rate: int) -> None:
    """Reads all recordings side by side, and writes the store."""

    def read(row: dict[str, Any]) -> dict[str, Any]:
        return row | {"audio": recordings.read_recording(root / row["audio"], rate)}

    splits = {split: listing.split(split) for split in listing.splits}
    kinds = {"audio": SAMPLES, "text": TEXT, "label": INTEGER}
    kept = {name: kind for name, kind in kinds.items() if name in splits["train"][0]}
    writer = StoreWriter(folder, kept, list(splits))
    total = sum(map(len, splits.values()))
    with tqdm(total=total, desc="reading recordings", disable=None, leave=False) as bar:
        for split, rows in splits.items():
            for row in in_threads(read, rows):
                writer.add(split, {name: [row[name]] for name in kept})
                bar.update()
    writer.close(facts=listing.facts, names=listing.facts)
