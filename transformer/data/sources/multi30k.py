"""Multi30k: image captions in several languages, from files or downloaded from the dataset's repository."""

import hashlib
import http.client
import urllib.request
from pathlib import Path

from transformer.config import DataConfig
from transformer.data.caching import cache_root, locked, usable, writing
from transformer.data.sources.files import existing
from transformer.data.sources.parallel import languages_of, parallel_text
from transformer.data.sources.source import Source, choose
from transformer.errors import UserError

URL = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw/"
LANGUAGES = ("en", "de", "fr", "cs")
STEMS = {"train": "train", "validation": "val", "test": "test_2016_flickr"}
# Files of revision a3d2e0d, on which our figures were measured; files that are not listed are not checked.
SHA256 = {
    "test_2016_flickr.de.gz": "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
    "test_2016_flickr.en.gz": "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
    "train.de.gz": "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
    "train.en.gz": "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
    "val.de.gz": "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
    "val.en.gz": "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
}


def captions(data: DataConfig) -> Source:
    """Captions of Flickr30k images (Elliott et al., 2016): 29,000, 1,014 and 1,000 (test_2016_flickr) sentences.

    Read from `data.dir`, in the layout of the dataset's repository or with its files directly in the folder, plain or
    compressed; else downloaded from that repository. Only the languages of the config are needed.
    """
    languages = languages_of(data)
    for language in languages:
        if language not in LANGUAGES:
            raise UserError(f"multi30k has no language {language!r}: {choose(language, LANGUAGES)}.")
    folder = Path(data.dir).expanduser()
    folders = [folder / "data" / "task1" / "raw", folder]

    def path(stem: str, language: str) -> Path:
        if data.dir:
            return existing(folders, [f"{stem}.{language}"])
        return _downloaded(data, f"{stem}.{language}.gz")

    splits = {split: {language: path(stem, language) for language in languages} for split, stem in STEMS.items()}
    return parallel_text(data.name, splits, data)


def _downloaded(data: DataConfig, name: str) -> Path:
    path = usable(cache_root(data) / "downloads" / "multi30k" / name)
    if path.exists():
        return path
    with locked(path):
        if not path.exists():
            try:
                with urllib.request.urlopen(URL + name, timeout=60) as response:
                    content = response.read()
            except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
                raise UserError(
                    f"{URL}{name} could not be downloaded ({error}): clone that repository elsewhere and name its "
                    "folder in data.dir."
                ) from error
            found = hashlib.sha256(content).hexdigest()
            if found != SHA256.get(name, found):
                raise UserError(
                    f"{URL}{name} is not the file of revision a3d2e0d: clone the revision that you want and name its "
                    "folder in data.dir."
                )
            with writing(path) as temporary:
                temporary.write_bytes(content)
    return path
