"""Every configuration key: its default, its type and one comment.

A config file (`configs/<name>.py`) returns the `ConfigDict` of `defaults()` with what differs;
`from_config_dict` turns it back into frozen dataclasses and refuses what they do not have.
"""

import dataclasses
import difflib
import importlib.util
import json
import math
import re
import typing
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict


class UserError(Exception):
    """A mistake of the user's: one sentence that says what to do. The verbs print it without a traceback."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    family: str = "encoder_decoder"  # a row of transformer.model.families.FAMILIES
    positions: str = "sinusoidal"  # a row of transformer.model.positions.POSITIONS
    attention: tuple[str, ...] = ("full",)  # self-attention pattern, cycled over the layers: "full" or "window:16"
    num_layers: int = 6  # N, in the encoder and again in the decoder
    d_model: int = 512  # D
    d_ff: int = 2048  # F, inner width of the feed-forward layers
    num_heads: int = 8  # H; head_dim K = d_model / num_heads
    num_kv_heads: int = 0  # G, heads of keys and values, each for H / G heads of queries; 0 = H
    norm: str = "post"  # "post" (the paper) or "pre" (normalise before each sublayer, and once at the end)
    dropout: float = 0.1  # on embeddings and sublayer outputs
    max_positions: int = 512  # rows of a learned position table; the longest sequence that it can take
    vocab_size: int = 0  # V; 0 = the size of the tokenizer that was trained


@dataclasses.dataclass(frozen=True)
class DataConfig:
    name: str = "quantities"  # a row of transformer.data.sources.SOURCES, or the name of any TFDS dataset
    dir: str = ""  # folder of the raw files or of prepared TFDS datasets; "" = generated or downloaded
    cache: str = ""  # where prepared data, vocabularies and tokens are kept; "" = ~/.cache/transformer
    source: str = "en"  # field (language) to translate from; for `files` it may be the path of a text file
    target: str = "de"  # field (language) to translate into; the only text field of a language model
    vocab_size: int = 8000  # at most so many byte-level BPE pieces, special tokens included
    max_len: int = 256  # tokens of a sequence, special tokens included; context of a language model
    batch_tokens: int = 4096  # positions of a batch, padding included: rows x bucket length
    buckets: tuple[int, ...] = (16, 32, 64, 128, 256)  # padded lengths; the last one is at least max_len
    row_multiple: int = 8  # rows of a batch are a multiple of this, whatever the number of devices


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    schedule: str = "inverse_sqrt"  # after warm-up: "inverse_sqrt" (the paper) or "cosine" (to final_rate at `steps`)
    learning_rate: float = 7e-4  # peak, reached at warmup_steps; the paper's is (d_model * warmup_steps) ** -0.5
    warmup_steps: int = 4000
    final_rate: float = 0.1  # where the cosine ends, as a share of the peak
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-9
    weight_decay: float = 0.0  # decoupled (AdamW), on matrices only
    clip_norm: float = 1.0  # global gradient norm; 0 = no clipping


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    data: int = -1  # devices on the data axis; -1 = all


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
    log_every: int = 50  # steps between training lines in metrics.jsonl
    evaluate_every: int = 0  # steps between losses on the validation split; 0 = at the end only
    checkpoint_every: int = 500  # steps
    keep: int = 2  # newest checkpoints that stay on disk


@dataclasses.dataclass(frozen=True)
class Config:
    task: str = "translation"  # a row of transformer.tasks.TASKS
    steps: int = 1000  # optimizer steps in all
    seed: int = 0  # of the parameters, the data order and the dropout masks
    label_smoothing: float = 0.1  # epsilon, spread over the whole vocabulary
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    logging: LoggingConfig = LoggingConfig()


# What may differ when a workdir is resumed; any other changed key is an error that names it.
MAY_CHANGE = ("steps", "mesh", "logging")


def defaults() -> ConfigDict:
    """All keys with their defaults, for a config file to change."""
    return to_config_dict(Config())


def to_config_dict(config: Config) -> ConfigDict:
    """The form that flags can change."""
    return ConfigDict(dataclasses.asdict(config))


def from_config_dict(config: ConfigDict) -> Config:
    """Strict conversion: an unknown key, a wrong type or an impossible value is a `UserError`."""
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config() returned {type(config).__name__}, not the ConfigDict of defaults()")
    return from_dict(config.to_dict())


def from_dict(values: dict[str, Any]) -> Config:
    """Strict conversion of nested plain values, as `config.json` holds them; missing keys take their defaults."""
    config = _build(Config, values, "")
    _check(config)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """Plain lists and scalars, as `config.json` holds them."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def flatten(config: Config) -> dict[str, Any]:
    """Dotted key -> value."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat |= {f"{field.name}.{key}": item for key, item in flatten(typing.cast(Any, value)).items()}
        else:
            flat[field.name] = value
    return flat


def override(config: Config, changes: dict[str, Any]) -> Config:
    """The config with dotted keys changed: `override(config, {"model.positions": "learned"})`."""
    values = to_dict(config)
    for key, value in changes.items():
        *parents, last = check_key(key).split(".")
        node = values
        for parent in parents:
            node = node[parent]
        node[last] = value
    return from_dict(values)


def check_key(key: str) -> str:
    """The key itself, or a `UserError` that names the nearest one."""
    known = list(flatten(Config()))
    if key not in known:
        raise UserError(f"unknown config key {key!r}: {_nearest(key, known)}")
    return key


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ: key -> (old, new)."""
    before, after = flatten(old), flatten(new)
    return {key: (before[key], after[key]) for key in after if before[key] != after[key]}


def load_file(path: str | Path) -> Config:
    """Runs `get_config()` of a config file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no config file {str(path)!r}: name one of configs/*.py")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{str(path)!r} is not a Python config file: name one of configs/*.py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        made = module.get_config() if hasattr(module, "get_config") else None
    except UserError:
        raise
    except Exception as error:  # a config file is Python, so it can raise anything
        reason = re.sub(r"\s+", " ", str(error).split("Traceback")[0] or str(error))
        raise UserError(f"{str(path)!r} cannot be run: {type(error).__name__}: {reason}") from error
    if made is None:
        raise UserError(f"{str(path)!r} has no get_config() that returns a config: see configs/quantities.py")
    return from_config_dict(made)


def _nearest(key: str, known: list[str]) -> str:
    # Typed "model.postions" or just "positions": compare whole keys, and last parts.
    by_last = [name for name in known if name.split(".")[-1] == key.split(".")[-1]]
    near = by_last[:1] or difflib.get_close_matches(key, known, 1, 0.4)
    return f"did you mean {near[0]!r}?" if near else "see transformer/config.py for all keys"


def _build(cls: type, values: dict[str, Any], prefix: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    built = {}
    for name, value in values.items():
        key = prefix + name
        if name not in fields:
            known = list(flatten(Config()))
            raise UserError(f"unknown config key {key!r}: {_nearest(key, known)}")
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, dict):
                raise UserError(f"config key {key!r} is a group of keys, not {value!r}: set one of its keys")
            built[name] = _build(typing.cast(type, hints[name]), value, f"{key}.")
        else:
            built[name] = _convert(value, hints[name], key)
    return cls(**built)


def _convert(value: Any, kind: Any, key: str) -> Any:
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        value = [value] if isinstance(value, item) else value
        if isinstance(value, (list, tuple)) and value and all(isinstance(v, item) for v in value):
            return tuple(value)
        raise UserError(f"config key {key!r} takes a tuple of {item.__name__}, not {value!r}")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"config key {key!r} takes {kind.__name__}, not {value!r}")
    return value


def _check(config: Config) -> None:
    model, data, optimizer = config.model, config.data, config.optimizer
    positive = {
        "steps": config.steps,
        "model.num_layers": model.num_layers,
        "model.d_model": model.d_model,
        "model.d_ff": model.d_ff,
        "model.num_heads": model.num_heads,
        "model.max_positions": model.max_positions,
        "data.max_len": data.max_len,
        "data.batch_tokens": data.batch_tokens,
        "data.row_multiple": data.row_multiple,
        "optimizer.warmup_steps": optimizer.warmup_steps,
        "logging.log_every": config.logging.log_every,
        "logging.checkpoint_every": config.logging.checkpoint_every,
        "logging.keep": config.logging.keep,
    }
    for key, value in positive.items():
        if value < 1:
            raise UserError(f"config key {key!r} must be at least 1, not {value}")
    if model.d_model % model.num_heads:
        raise UserError(
            f"model.d_model={model.d_model} does not divide by model.num_heads={model.num_heads}: change one of them"
        )
    if model.num_kv_heads < 0 or model.num_heads % (model.num_kv_heads or model.num_heads):
        raise UserError(
            f"model.num_kv_heads={model.num_kv_heads} does not divide model.num_heads={model.num_heads}: change one of "
            "them, or set it to 0 for as many"
        )
    if model.positions.startswith("rotary") and model.d_model // model.num_heads % 2:
        raise UserError(
            f"model.positions={model.positions!r} turns pairs of features, and d_model / num_heads is "
            f"{model.d_model // model.num_heads}: make it even"
        )
    if not 0 <= model.dropout < 1:
        raise UserError(f"model.dropout must be at least 0 and below 1, not {model.dropout}")
    if not 0 <= config.label_smoothing < 1:
        raise UserError(f"label_smoothing must be at least 0 and below 1, not {config.label_smoothing}")
    if not 0 < optimizer.learning_rate < math.inf:
        raise UserError(f"optimizer.learning_rate must be above 0 and finite, not {optimizer.learning_rate}")
    for key in ("b1", "b2"):
        if not 0 <= getattr(optimizer, key) < 1:
            raise UserError(f"optimizer.{key} must be at least 0 and below 1, not {getattr(optimizer, key)}")
    not_negative = {
        "optimizer.eps": optimizer.eps,
        "optimizer.weight_decay": optimizer.weight_decay,
        "optimizer.clip_norm": optimizer.clip_norm,
        "optimizer.final_rate": optimizer.final_rate,
        "model.vocab_size": model.vocab_size,
        "logging.evaluate_every": config.logging.evaluate_every,
    }
    for key, number in not_negative.items():
        if not 0 <= number < math.inf:
            raise UserError(f"config key {key!r} must be 0 or more, not {number}")
    if min(data.buckets) < 1:
        raise UserError(f"data.buckets={data.buckets} has a length below 1: give lengths in tokens")
    if not 0 <= config.seed < 2**31:
        raise UserError(f"seed must be a whole number from 0 to 2147483647, not {config.seed}")
    if model.norm not in ("post", "pre"):
        raise UserError(f"model.norm must be 'post' or 'pre', not {model.norm!r}")
    if optimizer.schedule not in ("inverse_sqrt", "cosine"):
        raise UserError(f"optimizer.schedule must be 'inverse_sqrt' or 'cosine', not {optimizer.schedule!r}")
    if max(data.buckets) < data.max_len:
        raise UserError(
            f"data.buckets ends at {max(data.buckets)}, below data.max_len={data.max_len}: add a longer bucket"
        )
    for pattern in model.attention:
        parse_pattern(pattern)


def parse_pattern(pattern: str) -> int | None:
    """One entry of `model.attention`: "full" -> None, "window:16" -> 16."""
    if pattern == "full":
        return None
    kind, _, width = pattern.partition(":")
    if kind == "window" and width.isdecimal():
        return int(width)
    raise UserError(f"model.attention has {pattern!r}: write 'full', or 'window:16' for 16 visible neighbours a side")
