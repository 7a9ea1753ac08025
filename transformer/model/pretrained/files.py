"""Folders in the format of Hugging Face: config.json, and model.safetensors in one file or in shards. Nothing is
unpickled, because a pickle can run any code."""

import json
import shutil
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from transformer.errors import UserError

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
GENERATION = "generation_config.json"
TYPES = ("F64", "F32", "F16", "BF16")  # of safetensors; whole numbers and 8-bit floats come with scales


class Settings:
    """The values of a JSON file, checked for their type; null or absent values have their default. It notes which keys
    were asked for, so that `finish` finds the others."""

    def __init__(self, values: dict[str, Any], source: str):
        self.values, self.source = values, source
        self._known: set[str] = set()

    def get(self, name: str, default: Any) -> Any:
        """The value, or the default. UserError: the value is of another type than the default."""
        self._known.add(name)
        value = self.values.get(name)
        if value is None:
            return default
        kinds = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(value, kinds) or (isinstance(value, bool) and not isinstance(default, bool)):
            kind = type(default).__name__
            raise UserError(f"{self.source} sets {name}={value!r}, which is no {kind}: it is not of this architecture")
        return float(value) if isinstance(default, float) else value

    def size(self, name: str, default: int | None = None) -> int:
        """A positive number. UserError: it is not positive, or it is absent and has no default."""
        if default is None and self.values.get(name) is None:
            raise UserError(f"{self.source} has no {name}: copy the whole file from where the weights came from")
        value = self.get(name, default or 1)
        if value < 1:
            raise UserError(f"{self.source} sets {name}={value}: it must be 1 or more")
        return value

    def one_of(self, name: str, known: dict[str, str], default: str) -> str:
        """Our name for the value. UserError: it is not supported."""
        value = self.get(name, default)
        if value not in known:
            raise UserError(f"{self.source} sets {name}={value!r}, and of that we have only {', '.join(known)}")
        return known[value]

    def only(self, **needed: Any) -> None:
        """UserError: a key has another value than the only supported one, which is also that of an absent key."""
        for name, known in needed.items():
            self._known.add(name)
            value = self.values.get(name)
            if value is not None and value != known:
                raise UserError(f"{self.source} sets {name}={value!r}, and our modules know only {name}={known!r}")

    def finish(self, unused: Container[str]) -> None:
        """UserError: a key has a value, was not asked for, and is not one of the `unused`."""
        for name, value in self.values.items():
            if value is not None and name not in self._known and name not in unused:
                raise UserError(
                    f"{self.source} sets {name}={str(value)[:60]}, which we do not know: take it out if no output "
                    "of the model depends on it"
                )


def read_settings(folder: Path) -> Settings:
    """config.json of a folder. UserError: it is missing or not a JSON object."""
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"there is no config.json in {str(folder)!r}: name a folder in Hugging Face's format, with config.json and "
            "model.safetensors"
        )
    return read_json(folder / CONFIG)


def read_json(path: Path) -> Settings:
    """A file of settings. UserError: it cannot be read, or is not a JSON object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{str(path)!r} cannot be read as JSON ({error}): copy it again") from error
    if not isinstance(values, dict):
        raise UserError(f"{str(path)!r} holds {type(values).__name__}, not settings: copy it again")
    return Settings(values, str(path))


class Weights:
    """The tensors of a folder by name: shapes from the headers, values on demand."""

    def __init__(self, folder: Path):
        whole = folder / WEIGHTS
        self._file_of = dict.fromkeys(_open(whole).keys(), whole) if whole.is_file() else _indexed(folder)
        self._files = {path: _open(path) for path in set(self._file_of.values())}
        slices = {name: self._files[path].get_slice(name) for name, path in self._file_of.items()}
        self.shapes = {name: tuple(each.get_shape()) for name, each in slices.items()}
        self._types = {name: each.get_dtype() for name, each in slices.items()}

    def check_type(self, name: str) -> None:
        """UserError: the tensor is stored in a type that is none of `TYPES`."""
        if self._types[name] not in TYPES:
            raise UserError(
                f"{str(self._file_of[name])!r} holds {name} in {self._types[name]}, as quantised weights are stored: "
                "save the model in float32, float16 or bfloat16"
            )

    def read(self, name: str) -> np.ndarray:
        """A tensor in float32, whatever type of `TYPES` it is stored in. UserError: it holds NaN."""
        tensor = self._files[self._file_of[name]].get_tensor(name).astype(np.float32)
        if np.isnan(tensor).any():
            raise UserError(
                f"{str(self._file_of[name])!r} holds NaN in {name}, as after a training run that diverged: take "
                "earlier weights"
            )
        return tensor


def _indexed(folder: Path) -> dict[str, Path]:
    """Name of each tensor -> the shard that the index assigns it to; what else a shard holds is stale. UserError: there
    are no weights, the index is none, or a shard or a tensor in it is missing."""
    index = folder / INDEX
    if not index.is_file():
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
        if pickles:
            raise UserError(
                f"{str(folder)!r} holds its weights as a pickle only ({pickles[0]}), which can run any code: load it "
                "with its own library and save_pretrained() it as model.safetensors"
            )
        if any(folder.glob("model-*-of-*.safetensors")):
            raise UserError(f"{str(folder)!r} holds shards without {INDEX}, which assigns the tensors: copy it too")
        raise UserError(f"there is no {WEIGHTS} in {str(folder)!r}: copy it beside config.json")
    shard_of = read_json(index).get("weight_map", {})
    for name, shard in shard_of.items():
        if not isinstance(shard, str) or shard != Path(shard).name:
            raise UserError(
                f"{str(index)!r} assigns {name} to {shard!r}, which is no file of the folder: copy the index again"
            )
    if not shard_of:
        raise UserError(f"{str(index)!r} is no index of shards (its weight_map is empty): copy it again")
    shards = sorted(set(shard_of.values()))
    for shard in shards:
        if not (folder / shard).is_file():
            raise UserError(f"{str(index)!r} names {shard!r}, which is not there: copy all {len(shards)} shards")
    held = {shard: set(_open(folder / shard).keys()) for shard in shards}
    for name, shard in shard_of.items():
        if name not in held[shard]:
            raise UserError(f"{str(index)!r} assigns {name} to {shard!r}, which does not hold it: copy both again")
    return {name: folder / shard for name, shard in shard_of.items()}


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise UserError(
            f"{str(path)!r} is cut off or no safetensors file ({path.stat().st_size:,} bytes; {error}): copy it again"
        ) from error


def write_folder(folder: Path, settings: dict[str, Any], tensors: dict[str, np.ndarray], generation: str = "") -> None:
    """Writes config.json, model.safetensors and, where there is one, generation_config.json, each whole or not at all.
    UserError: the folder cannot be written."""
    texts = {CONFIG: json.dumps(settings, indent=2) + "\n"} | ({GENERATION: generation} if generation else {})
    parts = {name: folder / f".{name}.part" for name in (WEIGHTS, *texts)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # safetensors writes the raw memory, so a transposed view must be made contiguous first.
        laid_out = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
        save_file(laid_out, parts[WEIGHTS], metadata={"format": "pt"})
        for name, text in texts.items():
            parts[name].write_text(text, encoding="utf-8")
        shutil.copymode(parts[CONFIG], parts[WEIGHTS])  # safetensors makes it readable by its owner only
        for name, part in parts.items():
            part.replace(folder / name)
    except OSError as error:
        raise UserError(f"cannot write to {str(folder)!r}: {error.strerror}") from error


def listed(names: Iterable[str], most: int = 6) -> str:
    """The first few names, and how many more there are."""
    ordered = sorted(names)
    rest = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + rest
