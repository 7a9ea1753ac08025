"""Folders in the format of Hugging Face: config.json, and model.safetensors in one file or in shards. Nothing is
unpickled, because a pickle can run any code."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from transformer.errors import UserError

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"


class Settings:
    """The values of a config.json, checked for their type; null or absent values have their default."""

    def __init__(self, values: dict[str, Any], source: str):
        self.values, self.source = values, source

    def get(self, name: str, default: Any) -> Any:
        """The value, or the default. UserError: the value is of another type than the default."""
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
            value = self.values.get(name)
            if value is not None and value != known:
                raise UserError(f"{self.source} sets {name}={value!r}, and our modules know only {name}={known!r}")


def read_settings(folder: Path) -> Settings:
    """config.json of a folder. UserError: it is missing or not a JSON object."""
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"there is no config.json in {str(folder)!r}: name a folder in Hugging Face's format, with config.json and "
            "model.safetensors"
        ) from None
    except (ValueError, OSError) as error:
        raise UserError(f"{str(path)!r} cannot be read as JSON ({error}): copy it again") from error
    if not isinstance(values, dict):
        raise UserError(f"{str(path)!r} holds {type(values).__name__}, not settings: copy it again")
    return Settings(values, str(path))


class Weights:
    """The tensors of a folder by name: shapes from the headers, values on demand."""

    def __init__(self, folder: Path):
        self._files = {path: _open(path) for path in _weight_files(folder)}
        self._file_of = {name: path for path, file in self._files.items() for name in file.keys()}  # noqa: SIM118
        self.shapes = {
            name: tuple(self._files[path].get_slice(name).get_shape()) for name, path in self._file_of.items()
        }

    def read(self, name: str) -> np.ndarray:
        """A tensor in float32, whatever floating-point type it is stored in."""
        return self._files[self._file_of[name]].get_tensor(name).astype(np.float32)


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.is_file():
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
        if pickles:
            raise UserError(
                f"{str(folder)!r} holds its weights as a pickle only ({pickles[0]}), which can run any code: load it "
                "with its own library and save_pretrained() it as model.safetensors"
            )
        raise UserError(f"there is no {WEIGHTS} in {str(folder)!r}: copy it beside config.json")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{str(index)!r} is no index of shards ({error}): copy it again") from error
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"{str(index)!r} names {name!r}, which is not there: copy all {len(names)} shards")
    return [folder / name for name in names]


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise UserError(
            f"{str(path)!r} is cut off or no safetensors file ({path.stat().st_size:,} bytes; {error}): copy it again"
        ) from error


def write_folder(folder: Path, settings: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """Writes config.json and model.safetensors, whole or not at all. UserError: the folder cannot be written."""
    parts = {name: folder / f".{name}.part" for name in (WEIGHTS, CONFIG)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # safetensors writes the raw memory, so a transposed view must be made contiguous first.
        laid_out = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
        save_file(laid_out, parts[WEIGHTS], metadata={"format": "pt"})
        parts[CONFIG].write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
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
