"""Every configuration key, with its default, its type and one comment. A config file (`configs/<name>.py`) returns the
`ConfigDict` of `defaults()` with its changes; `from_config_dict` converts it to frozen dataclasses, strictly."""

import dataclasses
import difflib
import importlib.util
import json
import re
import typing
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from transformer import checks, paths
from transformer.errors import UserError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    family: str = "encoder_decoder"  # a row of transformer.model.families.FAMILIES
    inputs: str = "tokens"  # what the encoder reads: a row of transformer.model.embedders.EMBEDDERS
    positions: str = "sinusoidal"  # a row of transformer.model.positions.POSITIONS
    rotary_theta: float = 10_000.0  # base of the rotary angles (Llama 3: 500000)
    attention: tuple[str, ...] = ("full",)  # self-attention pattern, cycled over the layers: "full" or "window:16"
    num_layers: int = 6  # N, in the encoder and again in the decoder
    d_model: int = 512  # D
    d_ff: int = 2048  # F, inner width of the feed-forward layers; 0 = there are none
    num_heads: int = 8  # H
    num_kv_heads: int = 0  # G, heads of keys and values, each for H / G heads of queries; 0 = H
    head_dim: int = 0  # K, of queries and keys; 0 = d_model / num_heads
    value_dim: int = 0  # M, of the values of a head; 0 = head_dim
    scale_attention: bool = True  # scores are divided by sqrt(K); False: unscaled (T5)
    attention_bias: bool = False  # the projections of attention have biases (GPT-2, BERT, ViT, Marian)
    norm: str = "post"  # "post" (the paper) or "pre" (normalise before each sublayer, and once at the end)
    norm_type: str = "layer"  # "layer" (LayerNorm) or "rms" (RMSNorm: no mean, no bias; T5, Llama)
    norm_eps: float = 1e-6  # added to the variance
    activation: str = "relu"  # of the feed-forward: a row of transformer.model.layers.ACTIVATIONS
    gated: bool = False  # the feed-forward is gated: act(x W_g) * (x W_1) (GLU; with "silu", SwiGLU)
    feed_forward_bias: bool = True  # the feed-forward has biases
    scale_embedding: bool = True  # token embeddings are multiplied by sqrt(d_model) (the paper)
    embedding_norm: bool = False  # the embeddings are normalised before the first layer (BERT)
    segment_types: int = 0  # rows of a segment embedding, for pairs of texts (BERT: 2); 0 = none
    tied: bool = True  # the output table is the embedding table
    output_bias: bool = False  # the logits have a bias (Marian; BERT's masked language model)
    output_transform: bool = False  # dense, activation and norm before the logits (BERT's masked language model)
    output_scale: float = 1.0  # the logits are multiplied by it (T5, tied: d_model ** -0.5)
    pooling: str = "mean"  # how an encoder's outputs become one vector: a row of transformer.model.families.POOLINGS
    num_classes: int = 0  # outputs of the head: classes (0 = those of the data), or steps of a forecast (data.horizon)
    image_size: tuple[int, ...] = (28, 28)  # height and width of images
    channels: int = 1  # of images and frames (mel bands); variables of a series are forecast one by one
    patch_size: int = 4  # side of an image's patches, or length of a series' patches
    patch_stride: int = 0  # from patch to patch of a series; 0 = patch_size
    initialization: str = "xavier"  # "xavier", or "depth_scaled": normal(0.02), residual outputs / sqrt(2 N) (GPT-2)
    dropout: float = 0.1  # on embeddings and sublayer outputs
    dtype: str = "float32"  # of activations and products, or "bfloat16"; weights, softmax and loss are float32
    max_positions: int = 512  # rows of a learned position table; the longest sequence that it can take
    vocab_size: int = 0  # V; 0 = the size of the tokenizer that was trained
    vocab_multiple: int = 1  # tables have V rounded up to a multiple of it (128 suits accelerators); the rest stays 0
    cell: str = "lstm"  # of the recurrent families: "lstm" or "gru"
    recurrent_attention: bool = True  # the recurrent encoder-decoder has additive attention
    scan_layers: bool = False  # one compiled layer, scanned over stacked weights: compile time does not grow with N
    remat: str = "none"  # computed again in the backward pass: "none", "full" or all but "attention" or "dots" (and it)
    extra: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)  # of plugins, for modules of the model


@dataclasses.dataclass(frozen=True)
class ColumnsConfig:
    """Columns of the user's own files, by what they hold. "" = the column of that name, where there is one. Those of a
    file without a header are numbered from 1; one inside of another is written with a point: "translation.en"."""

    text: str = ""  # of a language model or a classifier
    source: str = ""  # to translate or to summarise
    target: str = ""  # its translation or its summary
    label: str = ""  # the class
    reference: str = ""  # further references of a summary: a list of texts
    image: str = ""  # path of an image, relative to the file that names it
    audio: str = ""  # path of a recording, likewise
    time: str = ""  # of a series; "" = the first column that holds dates
    series: tuple[str, ...] = ()  # variables of a series; () = all columns of numbers


@dataclasses.dataclass(frozen=True)
class DataConfig:
    name: str = "quantities"  # a row of transformer.data.sources.SOURCES, or the name of any TFDS dataset
    dir: str = ""  # folder of the raw files or of prepared TFDS datasets; "" = generated or downloaded
    files: tuple[str, ...] = ()  # own files, folders or globs; "train=a.csv", "test=b.csv" say the split
    mix: tuple[str, ...] = ()  # in place of files, a mixture with weights: "books/*.txt=0.7", "wiki.jsonl=0.3"
    columns: ColumnsConfig = ColumnsConfig()
    split: str = ""  # "hash:90/5/5", "sizes:80%/10%/10%", "sizes:9000/500/500"; "" = by the files' names, or hash
    documents: str = "line"  # an example of a text file: "line", or the whole "file"
    cache: str = ""  # where prepared data, vocabularies and tokens are kept; "" = ~/.cache/transformer
    validation: str = ""  # the split to validate on; "" = `validation`, which TFDS datasets without one cut from train
    source: str = "en"  # field (language) to translate from; for `files` it may be the path of a text file
    target: str = "de"  # field (language) to translate into; the only text field of a language model
    tokenizer: str = "bpe"  # a row of transformer.data.tokenizers.TOKENIZERS, or a tokenizer.json, vocab.txt or folder
    vocab_size: int = 8000  # most pieces, special tokens included
    max_len: int = 256  # tokens of a sequence, special tokens included; context of a language model
    too_long: str = ""  # beyond max_len, in all splits: "drop", "cut", "chunk", "refuse"; "": see batches/too_long.py
    batch_tokens: int = 4096  # positions of a batch, padding included: rows x bucket length of the longer side
    buckets: tuple[int, ...] = (16, 32, 64, 128, 256)  # padded lengths of a side; the last one is at least max_len
    row_multiple: int = 8  # the rows of a batch are a multiple of this
    horizon: int = 96  # steps of a series to forecast, from max_len steps before them
    season: int = 0  # steps of a season, for the seasonal baseline; 0 = by the frequency: 24 of hours, 12 of months
    resize: str = ""  # images of other sizes than model.image_size: "crop", "squash", "pad"; "" = refused
    sample_rate: int = 8000  # hertz, to which recordings are resampled
    augment: bool = False  # images are shifted by up to a 14th of their side; recordings shifted, stretched, noisy
    corruption: float = 0.15  # share of the tokens that a masked language model or span corruption hides
    extra: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)  # of plugins, for sources


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
    max_spike: float = 0.0  # updates with a gradient norm above this multiple of the recent mean are skipped; 0 = none
    max_skipped: int = 5  # most consecutive skipped updates (not finite, or a spike) before the run ends


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    data: int = -1  # devices that split the rows of a batch; one of the four sizes may be -1: the remaining devices
    fsdp: int = 1  # devices that split rows, parameters and optimizer state
    sequence: int = 1  # devices that split the positions of each row
    tensor: int = 1  # devices that split heads, inner features of the feed-forward and the vocabulary
    accumulate: int = 1  # micro-batches of a batch, computed one after another to save memory
    dcn: int = 1  # groups of devices, with a slow network between them, that data is split over first


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
    log_every: int = 50  # steps between training lines in metrics.jsonl
    evaluate_every: int = 0  # steps between losses on the validation split; 0 = at the end only
    checkpoint_every: int = 500  # steps
    checkpoint_minutes: float = 0.0  # also after this many minutes; 0 = by steps only
    keep: int = 2  # newest checkpoints kept on disk, besides that of the best validation loss


@dataclasses.dataclass(frozen=True)
class Config:
    task: str = "translation"  # a row of transformer.tasks.TASKS
    steps: int = 1000  # optimizer steps in all
    seed: int = 0  # of the parameters, the data order and the dropout masks
    init_from: str = ""  # a run, or a folder of Hugging Face's format: tokenizer and first parameters; "" = of the seed
    init_positions: str = ""  # where its position table is shorter: "interpolate"; "" = that is refused
    label_smoothing: float = 0.1  # epsilon, spread over the whole vocabulary
    plugins: tuple[str, ...] = ()  # modules that add rows to the registries: see transformer.plugins
    extra: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)  # of plugins, for tasks
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    logging: LoggingConfig = LoggingConfig()


# Groups and keys that may differ when a run resumes: except for rounding, a step computes the same (but `steps` changes
# a cosine schedule, which is reported). All other keys define the run. The fingerprint guards the data in `data.dir`.
RUNTIME = ("steps", "mesh", "logging", "data.dir", "data.cache", "data.season", "model.remat", "optimizer.max_skipped")

# Paths: `~` is expanded where a config is made, so that a run records the folder. FOLDERS hold checkpoints or a cache.
PATHS = ("data.dir", "data.source", "data.target", "data.tokenizer")
FOLDERS = ("init_from", "data.cache")
MAY_BE_EMPTY = ("plugins", "data.files", "data.mix", "data.columns.series")  # of the keys that are tuples

# Removed keys, and what to do instead. They are dropped from stored configs of runs and sweeps.
RETIRED = {"mesh.strategy": "what is split follows from mesh.fsdp and mesh.tensor, so leave it out"}


def defaults() -> ConfigDict:
    """All keys with their defaults, for a config file to change."""
    return to_config_dict(Config())


def to_config_dict(config: Config) -> ConfigDict:
    """The `ConfigDict` that flags can change."""
    return ConfigDict(dataclasses.asdict(config))


def from_config_dict(config: ConfigDict) -> Config:
    """Strict conversion. UserError: an unknown key, a wrong type or an impossible value."""
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config() returned {type(config).__name__}, not the ConfigDict of defaults()")
    return from_dict(config.to_dict())


def from_dict(values: dict[str, Any]) -> Config:
    """Strict conversion of nested plain values, as in `config.json`; missing keys take their defaults."""
    config = _build(Config, values, "")
    check_model(config.model)
    checks.check(flatten(config), config.plugins)
    return config


def from_stored(values: dict[str, Any]) -> Config:
    """`from_dict` for the stored config of a run or a sweep, which may have RETIRED keys."""
    kept = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    for key in RETIRED:
        group, _, name = key.rpartition(".")
        if isinstance(kept.get(group), dict):
            kept[group].pop(name, None)
    return from_dict(kept)


def to_dict(config: Config) -> dict[str, Any]:
    """Plain lists and scalars, as in `config.json`."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def flatten(config: Config) -> dict[str, Any]:
    """Dotted key -> value."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        group = flatten(typing.cast(Any, value)) if dataclasses.is_dataclass(value) else value
        if isinstance(group, dict):
            flat |= {f"{field.name}.{key}": item for key, item in group.items()}
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


def is_texts(key: str) -> bool:
    """Whether a dotted key holds several texts."""
    value = flatten(Config()).get(key)
    return isinstance(value, tuple) and (key in MAY_BE_EMPTY or isinstance(value[0], str))


def check_key(key: str) -> str:
    """Returns the key. UserError, naming the nearest key: it does not exist."""
    if key not in flatten(Config()) and not checks.EXTRA.fullmatch(key):
        raise UserError(_unknown(key))
    return key


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ: key -> (old, new). A key of a plugin that is not there counts as None."""
    before, after = flatten(old), flatten(new)
    pairs = {key: (before.get(key), after.get(key)) for key in before | after}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def is_runtime(key: str) -> bool:
    """Whether a dotted key may differ when a run resumes."""
    return key in RUNTIME or key.split(".")[0] in RUNTIME


def load_file(path: str | Path) -> Config:
    """Runs `get_config()` of a config file."""
    given, path = str(path), paths.local(path, "--config")
    if not path.is_file():
        raise UserError(f"there is no config file {given!r}: name one of configs/*.py")
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


def _unknown(key: str) -> str:
    if key in RETIRED:
        return f"config key {key!r} is no more: {RETIRED[key]}"
    if any(name.startswith(f"{key}.") for name in flatten(Config())) or checks.EXTRA.fullmatch(f"{key}.key"):
        return f"config key {key!r} is a group of keys: set one of its keys"
    # For "model.postions" or just "positions": compare whole keys, and last parts.
    known = list(flatten(Config()))
    by_last = [name for name in known if name.split(".")[-1] == key.split(".")[-1]]
    near = by_last[:1] or difflib.get_close_matches(key, known, 1, 0.4)
    hint = f"did you mean {near[0]!r}?" if near else "see transformer/config.py for all keys"
    return f"unknown config key {key!r}: {hint}"


def _build(cls: type, values: dict[str, Any], prefix: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    built = {}
    for name, value in values.items():
        key = prefix + name
        if name not in fields:
            raise UserError(_unknown(key))
        group = dataclasses.is_dataclass(hints[name])
        if (group or name == "extra") and not isinstance(value, dict):
            raise UserError(f"config key {key!r} is a group of keys, not {value!r}: set one of its keys")
        if group:
            built[name] = _build(typing.cast(type, hints[name]), value, f"{key}.")
        elif name == "extra":
            built[name] = {own: _plain(item, check_key(f"{key}.{own}")) for own, item in value.items()}
        else:
            built[name] = _convert(value, hints[name], key)
    return cls(**built)


def _plain(value: Any, key: str) -> Any:
    """The value as config.json holds it, so that a run that resumes has the same."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UserError(f"config key {key!r} takes numbers, texts and lists of them, not {value!r}") from error


def _convert(value: Any, kind: Any, key: str) -> Any:
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        value = [value] if isinstance(value, item) else value
        if (
            isinstance(value, (list, tuple))
            and (value or key in MAY_BE_EMPTY)
            and all(isinstance(v, item) for v in value)
        ):
            return tuple(value)
        raise UserError(f"config key {key!r} takes a tuple of {item.__name__}, not {value!r}")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"config key {key!r} takes {kind.__name__}, not {value!r}")
    if key in FOLDERS and value:
        paths.for_checkpoints(value, key)
    return paths.expanded(value, key) if key in (*PATHS, *FOLDERS) else value


def check_model(model: ModelConfig) -> None:
    """UserError: a value that no model can have."""
    checks.check_model(model)
    for pattern in model.attention:
        parse_pattern(pattern)


def head_width(model: ModelConfig) -> int:
    """K, the width of a head's queries and keys."""
    return model.head_dim or model.d_model // model.num_heads


def parse_pattern(pattern: str) -> int | None:
    """One entry of `model.attention`: "full" -> None, "window:16" -> 16."""
    if pattern == "full":
        return None
    kind, _, width = pattern.partition(":")
    if kind == "window" and width.isdecimal():
        return int(width)
    raise UserError(f"model.attention has {pattern!r}: write 'full', or 'window:16' for 16 visible neighbours a side")
