"""The first parameters of a run, from what `init_from` names: another run, or a folder in Hugging Face's format.

The trunk (embeddings, stacks, what embeds an input) is taken, and must be equal. A head (HEADS) is taken where it is
equal, and otherwise is as from the seed. STACKS says which stack a stack of another family begins from. A learned
position table is cut, or on request (`init_positions`) interpolated. What was taken, what is fresh and what is left of
the old model is told in one line, and recorded in data.json.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from transformer import runs
from transformer.config import Config, DataConfig, ModelConfig, head_width
from transformer.data.tokenizers import Tokenizer
from transformer.data.tokenizers.training import is_path
from transformer.errors import UserError
from transformer.model import pretrained
from transformer.model.embedders import TABLES, table_rows
from transformer.model.layers import key_heads, value_width
from transformer.model.resizing import Resized, filled_up, of_images, of_sequences
from transformer.model.stacks import stacked, unstacked
from transformer.plugins import check_named
from transformer.tasks import Task, task_class
from transformer.training.sharding import Layout, make_layout, shapes

Shapes = Mapping[str, tuple[int, ...]]

# Family -> how the paths of its head begin: what turns the vectors of the last layer into logits, classes or forecasts.
_OUTPUT = ("embedder/output_table", "embedder/output_bias", "embedder/output_dense/", "embedder/output_norm/")
HEADS: dict[str, tuple[str, ...]] = {
    "encoder_decoder": _OUTPUT,
    "decoder_only": _OUTPUT,
    "encoder_only": (*_OUTPUT, "pooler/", "head/"),
    "forecaster": ("head/",),
    "recurrent_encoder_decoder": _OUTPUT,
    "recurrent_language_model": _OUTPUT,
}

# (family there, family here) -> stack here -> the stack there that it begins from, with cross-attention as from the
# seed (Rothe et al. 2020, "Leveraging Pre-trained Checkpoints for Sequence Generation Tasks").
STACKS: dict[tuple[str, str], dict[str, str]] = {
    ("decoder_only", "encoder_decoder"): {"encoder": "decoder", "decoder": "decoder"},
    ("encoder_only", "encoder_decoder"): {"encoder": "encoder", "decoder": "encoder"},
    ("encoder_decoder", "encoder_only"): {"encoder": "encoder"},
    ("encoder_decoder", "decoder_only"): {"decoder": "decoder"},
}

# Keys of the model that decide what its trunk computes, and those of what it reads. The attention pattern and the base
# of rotary angles are not among them: a run may give a trunk another window or a longer context.
_TRUNK = """
    positions num_layers d_model d_ff num_heads num_kv_heads head_dim value_dim scale_attention attention_bias norm
    norm_type norm_eps activation gated feed_forward_bias embedding_norm
""".split()
_RECURRENT = ("num_layers", "d_model", "cell", "recurrent_attention")
_READ = {
    "tokens": ("vocab_size", "scale_embedding", "segment_types"),
    "image": ("channels", "patch_size"),
    "frames": ("channels",),
    "series": ("patch_size", "patch_stride"),
}
_POSITIONS, _CROSS = "/input/positions/table", "/cross_attention"


class Origin(NamedTuple):
    """Where parameters come from: a folder, with what it holds in words."""

    folder: str
    what: str
    model: ModelConfig
    shapes: Shapes  # by paths of layers that are not scanned
    classes: tuple[str, ...]  # their names; empty where they are not known
    read: Callable[[], Any]  # the parameters there, sharded


def data_of(config: Config) -> DataConfig:
    """The config of the data, with the tokenizer that `init_from` gives: that of the run, or, unless `data.tokenizer`
    is a path, that of the folder in Hugging Face's format."""
    if not config.init_from or (is_pretrained(config.init_from) and is_path(config.data.tokenizer)):
        return config.data
    own = "" if is_pretrained(config.init_from) else "tokenizer.json"
    return dataclasses.replace(config.data, tokenizer=str(Path(config.init_from).absolute() / own))


def is_pretrained(folder: str) -> bool:
    """Whether a folder is in Hugging Face's format, and no run: its config.json names a `model_type`."""
    try:
        return "model_type" in json.loads((Path(folder) / "config.json").read_bytes())
    except (OSError, ValueError):
        return False


def check(config: Config) -> None:
    """UserError: `init_from` names neither a run nor a folder in Hugging Face's format, or a run with a plugin that the
    config does not name."""
    if not is_pretrained(config.init_from):
        check_named(runs.read_config(Path(config.init_from)), config.plugins, config.init_from, train=True)


def origin(config: Config, layout: Layout) -> Origin:
    """What `config.init_from` names. The parameters are read onto the mesh of `layout`, each device its shard.
    UserError: it holds neither a run nor a model in Hugging Face's format that we know."""
    folder = Path(config.init_from)
    if is_pretrained(config.init_from):
        model, params = pretrained.read(folder)
        place = functools.partial(_placed, params, dataclasses.replace(layout, axes=pretrained.axes(model)))
        what, names = f"a pretrained {model.config.family}", json.loads(model.config.told).get("id2label", {})
        return Origin(config.init_from, what, model.config, _shapes(params, model.config), tuple(names.values()), place)
    old, tokenizer = runs.read_config(folder), None
    kind = task_class(old.task)
    if kind.reads_text:
        tokenizer = Tokenizer.load(folder / "tokenizer.json")
    task = kind(old, tokenizer)
    there = make_layout(dataclasses.replace(old, mesh=config.mesh, model=task.model_config), axes=task.axes)
    read = lambda: runs.read_params(folder, task.init, there)[0]  # noqa: E731
    made = _shapes(jax.eval_shape(task.init, jax.random.key(0)), task.model_config)
    classes = tuple(runs.read_data(folder).get("facts", {}).get("classes", ()))
    return Origin(config.init_from, f"a run of {old.task}", task.model_config, made, classes, read)


def _placed(params: Any, layout: Layout) -> Any:
    """Arrays of the host, of which each device gets its shard."""
    return jax.tree.map(
        lambda x, place: jax.make_array_from_callback(x.shape, place, lambda index: x[index]),
        params,
        layout.shardings(params),
    )


def _shapes(params: Any, model: ModelConfig) -> Shapes:
    """Path -> shape, by paths of layers that are not scanned."""
    return shapes(jax.eval_shape(functools.partial(_apart, model), params)["params"])


def _apart(model: ModelConfig, params: Any) -> Any:
    """The parameters of single layers."""
    return unstacked(params, model.num_layers) if model.scan_layers else params


# --- What is taken


class Plan(NamedTuple):
    """What a model takes of an origin, by paths of layers that are not scanned."""

    origin: Origin
    model: ModelConfig  # of the run that begins
    taken: dict[str, str]  # path here -> path there
    fresh: list[str]
    left: list[str]  # paths there
    tables: dict[str, Resized]  # path here of a position table of another length there

    @property
    def note(self) -> dict[str, Any]:
        """For data.json."""
        return {
            "from": self.origin.folder,
            "what": self.origin.what,
            "taken": len(self.taken),
            "fresh": _modules(self.fresh),
            "left": _modules(self.left),
            "positions": {path: str(table) for path, table in self.tables.items()},
        }

    def __str__(self) -> str:
        said = [f"{len(self.taken)} parameters are those of {self.origin.what} in {self.origin.folder!r}"]
        said += [f"{', '.join(_modules(self.fresh))} as from the seed"] if self.fresh else []
        said += [f"{', '.join(_modules(self.left))} left there"] if self.left else []
        said += [f"{path} {self.tables[path]}" for path in sorted(self.tables)]
        return "; ".join(said)


def plan(config: Config, task: Task, origin: Origin, classes: Sequence[str] = ()) -> Plan:
    """What the model of a task takes; `classes` are the names of its classes, and the head of others is not taken.
    UserErrors: the trunk there is another one, by its keys or shapes; a position table is shorter there, and
    `init_positions` does not ask for interpolation."""
    ours, theirs = task.model_config, origin.model
    others = bool(origin.classes and classes) and origin.classes != tuple(classes)
    _check_family(origin, ours)
    taken, fresh, wrong = dict[str, str](), list[str](), list[str]()
    for path, shape in _shapes(jax.eval_shape(task.init, jax.random.key(0)), ours).items():
        there = _there(path, ours, theirs)
        found = origin.shapes.get(there)
        rows = path in TABLES or path.endswith(_POSITIONS)  # of these the number of rows may differ
        if path.startswith("head/") and others:
            fresh.append(path)
        elif found is not None and (found[1:] == shape[1:] if rows else found == shape):
            taken[path] = there
        elif _is_head(path, ours) or not there:
            fresh.append(path)
        else:
            wrong.append(f"{path} is {found or 'not there'} in it and {shape} here")
    used = set(taken.values())
    left = [path for path in origin.shapes if path not in used]
    wrong += [
        f"{path} is {origin.shapes[path]} in it and not there here"
        for path in left
        if not _may_stay(path, ours, theirs)
    ]
    _check_trunk(origin, task, wrong)
    tables = dict[str, Resized]()
    for path in taken:
        if path.endswith(_POSITIONS) and ours.positions == "learned":
            image = ours.inputs == "image" and path.startswith("encoder/")
            table = (of_images if image else of_sequences)(theirs, ours)
            if table is not None and table.invents and not config.init_positions:
                raise UserError(
                    f"init_from={origin.folder!r} has a {path} of {table.there}, and there are {table.here} here: set "
                    f"{table.way}, or init_positions='interpolate'"
                )
            if table is not None:
                tables[path] = table
    return Plan(origin, ours, taken, fresh, left, tables)


def _there(path: str, ours: ModelConfig, theirs: ModelConfig) -> str:
    """The path there of a parameter here; empty where a stack of another family has none for it: cross-attention, and
    the table of T5, whose buckets are of one direction or of both."""
    stack, _, rest = path.partition("/")
    if ours.family == theirs.family or stack not in ("encoder", "decoder"):
        return path
    other = STACKS[theirs.family, ours.family][stack]
    turned = ours.positions == "t5" and other != stack and path.endswith(_POSITIONS)
    return "" if _CROSS in rest or turned else f"{other}/{rest}"


def _is_head(path: str, model: ModelConfig) -> bool:
    return path.startswith(HEADS[model.family])


def _may_stay(path: str, ours: ModelConfig, theirs: ModelConfig) -> bool:
    """Whether a parameter there is of no use here: of a head, of a stack that none begins from, of cross-attention, of
    the pooled position of an image, or T5's table for another direction."""
    if _is_head(path, theirs) or path == "front/first":
        return True
    if ours.family == theirs.family:
        return False
    stack, of = path.partition("/")[0], STACKS[theirs.family, ours.family]
    return (stack in ("encoder", "decoder") and stack not in of.values()) or _CROSS in path or path.endswith(_POSITIONS)


def _check_family(origin: Origin, ours: ModelConfig) -> None:
    theirs = origin.model
    known = [theirs.family, *(here for there, here in STACKS if there == theirs.family)]
    if ours.family not in known or theirs.inputs != ours.inputs:
        raise UserError(
            f"init_from={origin.folder!r} is {origin.what}, of model.family={theirs.family!r} with model.inputs="
            f"{theirs.inputs!r}, and model.family={ours.family!r} with model.inputs={ours.inputs!r} cannot begin from "
            f"it: with its inputs, {' or '.join(map(repr, known))} can"
        )


def _check_trunk(origin: Origin, task: Task, wrong: list[str]) -> None:
    """UserError: keys of the trunk differ, or there is a `wrong` parameter; it says which keys to set."""
    ours, theirs = (_trunk(model) for model in (task.model_config, origin.model))
    other = {
        key: value
        for key, value in theirs.items()
        if key in ours and value != ours[key] and getattr(origin.model, key) != getattr(task.model_config, key)
    }
    if origin.model.inputs == "image" and origin.model.pooling == "mean" != task.model_config.pooling:
        other["pooling"] = "mean"  # there is no vector before the patches
    if not wrong and not other:
        return
    here = vars(task.model_config) | ours
    listed = ", ".join(f"model.{key} is {value!r} in it and {here[key]!r} here" for key, value in other.items())
    way = " ".join(f"--config.model.{key}={value}" for key, value in other.items())
    pieces = task.tokenizer.vocab_size if task.reads_text else 0
    if pieces > theirs.get("vocab_size", pieces):
        way = f"leave out data.tokenizer, whose {pieces} pieces are more than the {theirs['vocab_size']} of the model"
    else:
        way = f"set {way}" if way else "name one of the same model"
    what = "; ".join(filter(None, [wrong[0] if wrong else "", listed]))
    raise UserError(f"init_from={origin.folder!r} is of another model ({what}): {way}")


def _trunk(model: ModelConfig) -> dict[str, Any]:
    """The keys that decide what a trunk computes, with their values where they follow from others."""
    recurrent = model.family.startswith("recurrent")
    keys = [*(_RECURRENT if recurrent else _TRUNK), *_READ[model.inputs]]
    if model.family not in ("encoder_only", "forecaster"):
        keys += [key for key in _READ["tokens"] if key not in keys]
    values = {key: getattr(model, key) for key in keys}
    if not recurrent:
        values |= {"num_kv_heads": key_heads(model), "head_dim": head_width(model), "value_dim": value_width(model)}
    if "patch_stride" in values:
        values["patch_stride"] = model.patch_stride or model.patch_size
    if model.num_classes == 0 and "vocab_size" in values:
        values["output_scale"] = model.output_scale
    return values


def _modules(paths: Iterable[str]) -> list[str]:
    """The modules of parameters, each once, layers together."""
    found = dict[str, None]()
    for path in paths:
        parts = ["layer_*" if re.fullmatch(r"layer_\d+", part) else part for part in path.split("/")]
        found["/".join((parts[:-1] if parts[-1] in ("kernel", "bias", "scale") else parts)[:3])] = None
    return list(found)


# --- How it is taken


def begin(plan: Plan, params: Any, layout: Layout) -> Any:
    """The parameters of a run from the seed, with those that the plan takes; sharded as `layout` says."""
    ours, theirs = plan.model, plan.origin.model

    def take(source: Any) -> Any:
        flat = flatten_dict(_apart(theirs, source)["params"], sep="/")
        made = {}
        for here, there in plan.taken.items():
            value = flat[there]
            if here in TABLES:  # rows beyond the vocabulary are 0
                value = filled_up(value[: theirs.vocab_size], table_rows(ours))
            made[here] = plan.tables[here].make(value) if here in plan.tables else value
        tree = {"params": unflatten_dict(made, sep="/")}
        return stacked(tree, len(ours.attention)) if ours.scan_layers else tree

    source = plan.origin.read()
    taken = jax.jit(take, out_shardings=layout.shardings(jax.eval_shape(take, source)))(source)
    return unflatten_dict(flatten_dict(params) | flatten_dict(taken))
