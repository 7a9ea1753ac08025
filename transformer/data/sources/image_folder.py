"""Images of the user's own: folders of classes, or a table of paths and classes.

The files stay where they are. They are all decoded once, which finds those that cannot be, and the mean and deviation
of the training pixels. Fields: `image`, uint8 [H, W, 3] of any size (batches read it in the channels of the model), and
`label`. The fact `scales` has for each number of channels that a model may take ("1", "3", "4") the `mean` and
`deviation` of each of them, of pixels / 255 of the training split in their own size.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from transformer.config import DataConfig
from transformer.data.caching import Key, cache_root, cached
from transformer.data.sources import pictures
from transformer.data.sources.images import moments
from transformer.data.sources.listing import Medium, listed
from transformer.data.sources.side_by_side import in_threads
from transformer.data.sources.source import Source
from transformer.data.sources.stored import from_store
from transformer.data.store import INTEGER, TEXT, Store, StoreWriter

IMAGES = Medium("image", "image", pictures.ENDINGS)
TOGETHER = 256  # rows


def image_folder(data: DataConfig) -> Source:
    """The images of `data.dir`, as CLASS/*.png or as train/CLASS/*.png, validation/..., test/..., or those that
    `data.files` names: folders and globs of the same form, or tables with the columns `image` and `label`.

    UserErrors: see `listed` and `read_image`.
    """
    listing, root = listed(data, IMAGES)
    inputs, code = [listing.fingerprint, str(root)], (pictures, sys.modules[__name__])
    key = Key(cache_root(data) / "prepared" / data.name, inputs, code, ("pillow",))
    store = Store(cached(key, lambda folder: _survey(folder, listing, root)))
    source = from_store(data.name, store, {"image": lambda name: pictures.read_image(Path(name), 3)})
    return dataclasses.replace(source, fingerprint=listing.fingerprint)  # that of the files' bytes, wherever they lie


def _survey(folder: Path, listing: Source, root: Path) -> None:
    """Decodes all images, and writes the store of their paths and classes."""
    writer = StoreWriter(folder, {"image": TEXT, "label": INTEGER}, listing.splits)
    counts: dict[int, np.ndarray] = {count: np.zeros((count, 256), np.int64) for count in pictures.MODES}
    total = sum(len(listing.split(split)) for split in listing.splits)
    with tqdm(total=total, desc="decoding images", unit="image", disable=None, leave=False) as bar:
        for split in listing.splits:
            examples = listing.split(split)
            for start in range(0, len(examples), TOGETHER):
                rows = examples.many(range(start, min(start + TOGETHER, len(examples))))
                names = [str(root / row["image"]) for row in rows]
                for found in in_threads(pictures.histograms, map(Path, names)):
                    if split == "train":
                        counts = {count: held + found[count] for count, held in counts.items()}
                    bar.update()
                writer.add(split, {"image": names, "label": [row["label"] for row in rows]})
    scales: dict[str, Any] = {str(count): moments(held) for count, held in counts.items()}
    writer.close(facts={**listing.facts, "scales": scales})
