"""Weights from and to folders in the format of Hugging Face. ARCHITECTURES, by `model_type`.

    model, params = load("bert-base-uncased")  # config.json and model.safetensors
    save("somewhere", model, params)           # a folder that the reference implementation reads

Both use one table per architecture (`rows`), in either direction. Every key of config.json is followed, or known to
have no effect here (`keys`), or refused.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from transformer.config import ModelConfig, from_dict, head_width
from transformer.errors import UserError
from transformer.model.embedders import TABLES, table_rows
from transformer.model.families import build, logical_axes
from transformer.model.layers import key_heads, value_width
from transformer.model.parameters import Names
from transformer.model.pretrained.bert import BERT
from transformer.model.pretrained.files import (
    GENERATION,
    Settings,
    Weights,
    listed,
    read_json,
    read_settings,
    write_folder,
)
from transformer.model.pretrained.gpt2 import GPT2
from transformer.model.pretrained.keys import NAMES, NEEDED, SPECIAL_IDS, UNUSED
from transformer.model.pretrained.llama import LLAMA
from transformer.model.pretrained.marian import MARIAN
from transformer.model.pretrained.rows import Architecture, Row
from transformer.model.pretrained.t5 import T5
from transformer.model.pretrained.vit import VIT
from transformer.model.stacks import unstacked
from transformer.model.tokens import Tokens

ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": GPT2,
    "bert": BERT,
    "t5": T5,
    "vit": VIT,
    "marian": MARIAN,
    "llama": LLAMA,
}


@dataclasses.dataclass(frozen=True)
class LoadedConfig(ModelConfig):
    """The configuration of a loaded model, with what its folder says besides. `save` writes that again."""

    told: str = "{}"  # the keys SPECIAL_IDS and NAMES of config.json, as JSON
    generation: str = ""  # the text of generation_config.json


def load(folder: str | Path, vocab_multiple: int = 1) -> tuple[nn.Module, Any]:
    """The module that config.json describes, and its parameters in float32 from model.safetensors or its shards; its
    configuration keeps the special tokens' ids. With `vocab_multiple`, tables of the vocabulary are filled up with rows
    of 0 (`ModelConfig.vocab_multiple`); `save` cuts them off. UserError, before any weight is read: no config.json or
    safetensors, an unsupported or unknown setting, a truncated file, or tensors that are missing, unexpected, of
    another shape or quantised; and a tensor with NaN."""
    model, params = read(folder, vocab_multiple)
    return model, jax.tree.map(jnp.asarray, params)


def read(folder: str | Path, vocab_multiple: int = 1) -> tuple[nn.Module, Any]:
    """As `load`, with the parameters as NumPy arrays, on no device."""
    folder = Path(folder)
    settings = read_settings(folder)
    name, architecture = _architecture(settings)
    weights = Weights(folder)
    theirs = {_known_as(architecture, name): name for name in weights.shapes}
    config = _config(settings, architecture, frozenset(theirs))
    rows = architecture.rows(config)
    needed = {row.theirs for row in rows}
    for copy, original in architecture.copies.items():  # of tied tables, a file may hold either name
        if needed & theirs.keys() and original in needed - theirs.keys() and copy in theirs.keys() - needed:
            theirs[original] = theirs.pop(copy)
    told, generation = _told(settings, folder)
    _check(name, architecture, rows, parameter_shapes(build(config)), weights, theirs, folder)
    config = dataclasses.replace(config, vocab_multiple=vocab_multiple)
    model: Any = build(LoadedConfig(**vars(config), told=told, generation=generation))
    params: dict[tuple[str, ...], Any] = {}
    for row in rows:
        whole = row.form.read(weights.read(theirs[row.theirs]))
        parts = np.split(whole, len(row.ours), axis=-1)
        more = {path: table_rows(config) - config.vocab_size for path in TABLES}
        for path, part in zip(row.ours, parts, strict=True):
            filling = [(0, more.get(path, 0)), *[(0, 0)] * (part.ndim - 1)]
            params[tuple(path.split("/"))] = np.pad(part, filling)
    return model, {"params": unflatten_dict(params)}


def save(folder: str | Path, model: Any, params: Any, special_ids: Mapping[str, Any] | None = None) -> None:
    """Writes config.json and model.safetensors in the format that `load` and the reference implementation read.
    `special_ids`: such as {"eos_token_id": 2}; default: those that the model was loaded with, otherwise none is named
    (a Marian has those of OPUS-MT). UserError: no architecture of ARCHITECTURES supports the model's configuration; it
    names the keys."""
    config: ModelConfig = model.config
    name, architecture = _fitting(config)
    if config.scan_layers:
        params = unstacked(params, config.num_layers)
    flat = flatten_dict(jax.tree.map(np.asarray, params["params"]), sep="/")
    flat |= {path: flat[path][: config.vocab_size] for path in TABLES if path in flat}
    told, generation = dict[str, Any](), ""
    settings = {"model_type": name, **architecture.to_settings(config), "dtype": "float32"}
    if isinstance(config, LoadedConfig):
        told, generation = json.loads(config.told), config.generation
        if len(told.get("id2label", ())) != config.num_classes:
            told = {key: value for key, value in told.items() if key not in NAMES}
    elif config.inputs == "tokens":  # null: otherwise the reference assumes ids of the released models
        settings = dict.fromkeys(SPECIAL_IDS[:3]) | settings
    if special_ids is not None:
        given, generation = Settings(dict(special_ids), "special_ids"), ""
        given.finish(SPECIAL_IDS)
        told |= _checked_ids(given)
    settings |= told
    prefix = "" if settings["architectures"][0] in architecture.bare else architecture.prefix
    tensors = {}
    for row in architecture.rows(config):
        own = row.theirs.startswith(architecture.heads)
        whole = row.form.write(_joined([flat[path] for path in row.ours]))
        tensors[row.theirs if own else prefix + row.theirs] = whole
    write_folder(Path(folder), settings, tensors, generation)


def model_config(values: dict[str, Any], names: frozenset[str] = frozenset()) -> ModelConfig:
    """The configuration that the values of a config.json describe. `names` are the tensors' names without prefix; they
    show whether there is a pooler (BERT, ViT) or a separate output table (newer T5). UserError: an unsupported
    or unknown setting."""
    settings = Settings(values, "config.json")
    return _config(settings, _architecture(settings)[1], names)


def _config(settings: Settings, architecture: Architecture, names: frozenset[str]) -> ModelConfig:
    """The configuration, after every key has been looked at."""
    settings.only(**NEEDED)
    config = architecture.to_config(settings, names)
    settings.finish({"model_type", "architectures", *SPECIAL_IDS, *NAMES, *UNUSED, *architecture.unused.split()})
    try:
        from_dict({"model": dataclasses.asdict(config)})
    except UserError as error:
        raise UserError(f"{settings.source} describes a model that cannot be: {error}") from error
    return config


def _told(settings: Settings, folder: Path) -> tuple[str, str]:
    """The fields of LoadedConfig."""
    ids = _checked_ids(settings)
    names = {key: value for key in NAMES if (value := settings.get(key, {}))}
    if all(name == f"LABEL_{number}" for number, name in names.get("id2label", {}).items()):
        names = {}  # made up for classes without names
    path = folder / GENERATION
    if path.is_file():
        _checked_ids(read_json(path))
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return json.dumps(ids | names, sort_keys=True), text


def _checked_ids(settings: Settings) -> dict[str, Any]:
    """The ids of special tokens. UserError: a value is neither an id, nor a list of ids, nor null."""
    ids = {key: value for key, value in settings.values.items() if key in SPECIAL_IDS}
    for key, value in ids.items():
        if not all(type(each) is int for each in (value if isinstance(value, list) else [value])) and value is not None:
            raise UserError(f"{settings.source} sets {key}={value!r}: it must be the id of a token, or a list of ids")
    return ids


def parameter_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Path, such as "decoder/layer_0/feed_forward/inner/kernel", to shape; no array is allocated."""
    made = jax.eval_shape(model.init, jax.random.key(0), *_arguments(model.config))
    return {path: leaf.shape for path, leaf in flatten_dict(made["params"], sep="/").items()}


def axes(model: Any) -> dict[str, Names]:
    """Path of each parameter to its logical axes (`transformer.model.parameters`)."""
    return logical_axes(model, *_arguments(model.config))


def _arguments(config: ModelConfig) -> tuple[Any, ...]:
    """The least that a model can be called with."""
    one = jnp.zeros((1, 1), jnp.int32)
    inputs: Any = jnp.zeros((1, *config.image_size, config.channels)) if config.inputs == "image" else one
    return (inputs, Tokens(one, one)) * (2 if config.family == "encoder_decoder" else 1)


def _architecture(settings: Settings) -> tuple[str, Architecture]:
    name = settings.values.get("model_type")
    if name not in ARCHITECTURES:
        raise UserError(f"{settings.source} sets model_type={name!r}, and we have only {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[name]
    for cls in settings.values.get("architectures") or ():
        if cls not in architecture.classes:
            raise UserError(
                f"{settings.source} sets architectures={[cls]}, and of {name} we have only "
                f"{', '.join(architecture.classes)}"
            )
    return name, architecture


def _known_as(architecture: Architecture, name: str) -> str:
    """A tensor's name without the prefix; norms' gamma and beta, TensorFlow's names, become weight and bias."""
    name = name.removeprefix(architecture.prefix)
    return re.sub(r"LayerNorm\.(gamma|beta)$", lambda m: f"LayerNorm.{_SINCE[m[1]]}", name)


_SINCE = {"gamma": "weight", "beta": "bias"}


def _joined(parts: list[Any]) -> Any:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def _check(
    name: str,
    architecture: Architecture,
    rows: list[Row],
    ours: dict[str, tuple[int, ...]],
    weights: Weights,
    theirs: dict[str, str],
    folder: Path,
) -> None:
    """UserError: names or shapes of the tensors do not match the table."""
    needed = {row.theirs: row for row in rows}
    held = {known for known in theirs if not re.fullmatch(architecture.ignored, known) or known in needed}
    missing, extra = needed.keys() - held, held - needed.keys() - architecture.copies.keys()
    if not needed.keys() & held:
        raise UserError(
            f"{str(folder)!r} holds weights of another architecture than {name}, as its config.json says: it has "
            f"{listed(extra)}, and none of {listed(needed)}"
        )
    if missing or extra:
        found = [f"{what} {listed(names)}" for what, names in (("lacks", missing), ("has besides", extra)) if names]
        raise UserError(f"{str(folder)!r} does not hold what its config.json describes: it {' and '.join(found)}")
    for known, row in needed.items():
        weights.check_type(theirs[known])
        # The expected shapes come from writing a broadcast zero, which takes no memory.
        blank = [np.broadcast_to(np.float32(0), ours[path]) for path in row.ours]
        shape, stored = row.form.write(_joined(blank)).shape, weights.shapes[theirs[known]]
        if shape != stored:
            raise UserError(
                f"{str(folder)!r} holds {theirs[known]} of shape {list(stored)}, and config.json makes it "
                f"{list(shape)}: one of the two files is of another model"
            )
    for copy, original in architecture.copies.items():
        if copy in held - needed.keys() and not np.array_equal(
            weights.read(theirs[copy]), weights.read(theirs[original])
        ):
            raise UserError(
                f"{str(folder)!r} holds a {theirs[copy]} that differs from {theirs[original]}, and config.json ties "
                "them: set tie_word_embeddings to false there, where the model has that"
            )


# Keys that files do not hold, because a trained model's function does not depend on them but for rounding.
_NOT_HELD = (
    "initialization",
    "dropout",
    "remat",
    "scan_layers",
    "cell",
    "recurrent_attention",
    "patch_stride",
    "dtype",
    "vocab_multiple",
)
_TOLD = ("told", "generation")  # of LoadedConfig


def _function(config: ModelConfig) -> dict[str, Any]:
    """The keys that decide what a model computes, in a normal form."""
    values = dataclasses.asdict(config)
    values |= {"head_dim": head_width(config), "value_dim": value_width(config), "num_kv_heads": key_heads(config)}
    values["attention"] = tuple(dict.fromkeys(config.attention))
    unused = {*_NOT_HELD, *_TOLD}
    if config.positions != "learned":
        unused |= {"max_positions"}
    if config.inputs != "image":
        unused |= {"image_size", "channels", "patch_size"}
    if config.inputs != "tokens":
        unused |= {"vocab_size", "tied", "scale_embedding"}
    if config.family != "encoder_only":
        unused |= {"pooling", "num_classes"}
    return {key: value for key, value in values.items() if key not in unused}


def _fitting(config: ModelConfig) -> tuple[str, Architecture]:
    """The architecture whose settings express the whole configuration: written and read back, it is the same."""
    wanted = _function(config)
    nearest, fewest = "", dict(wanted)
    refusals = []
    for name, architecture in ARCHITECTURES.items():
        names = frozenset(row.theirs for row in architecture.rows(config))
        written = Settings(architecture.to_settings(config), name)
        try:
            again = _function(_config(written, architecture, names))
        except UserError as error:  # a value that it cannot express
            refusals.append(str(error))
            continue
        other = {key: again.get(key) for key in wanted if again.get(key) != wanted[key]}
        if not other:
            return name, architecture
        if len(other) < len(fewest):
            nearest, fewest = name, other
    if not nearest:
        raise UserError(f"no architecture that we can save is this model: {'; '.join(refusals)}")
    listing = ", ".join(f"model.{key}={value!r} (not {wanted[key]!r})" for key, value in fewest.items())
    raise UserError(f"no architecture that we can save is this model: {nearest} comes nearest, and has {listing}")
