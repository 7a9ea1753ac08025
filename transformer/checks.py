"""Values that no config can have, told in one sentence each. The functions read keys and values, and no classes."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformer.errors import UserError

EXTRA = re.compile(r"((model|data)\.)?extra\.\w+")  # the keys of plugins


def check(flat: Mapping[str, Any], plugins: Sequence[str]) -> None:
    """The keys outside of the model; `flat`: dotted key -> value. UserError: an impossible value."""
    if not plugins and (key := next(filter(EXTRA.fullmatch, flat), "")):
        raise UserError(f"config key {key!r} is for plugins, and `plugins` names none: add plugins=('my_module',)")
    _least(flat, 1, "", "steps mesh.accumulate mesh.dcn")
    _least(flat, 1, "data.", "horizon max_len batch_tokens row_multiple")
    _least(flat, 1, "optimizer.", "warmup_steps max_skipped")
    _least(flat, 1, "logging.", "log_every checkpoint_every keep")
    for key in ("label_smoothing", "optimizer.b1", "optimizer.b2"):
        if not 0 <= flat[key] < 1:
            raise UserError(f"{key} must be at least 0 and below 1, not {flat[key]}")
    if not 0 < (rate := flat["optimizer.learning_rate"]) < math.inf:
        raise UserError(f"optimizer.learning_rate must be above 0 and finite, not {rate}")
    rules = ("", "drop", "cut", "chunk", "refuse")
    _choices(flat, {"data.too_long": rules, "init_positions": ("", "interpolate")})
    if flat["init_positions"] and not flat["init_from"]:
        raise UserError("init_positions says what becomes of the positions of init_from, which is empty: name a run")
    _choices(flat, {"data.resize": ("", "crop", "squash", "pad")})
    if not 4000 <= (rate := flat["data.sample_rate"]) <= 192_000:
        raise UserError(f"data.sample_rate={rate} is no rate of recordings: give 8000, 16000 or another, in hertz")
    if not plugins:  # which may add rows to these tables; a name without a row is refused where it is looked up
        schedules, remat = ("inverse_sqrt", "cosine"), ("none", "full", "attention", "dots")
        _choices(flat, {"optimizer.schedule": schedules, "model.cell": ("lstm", "gru"), "model.remat": remat})
    if not 0 < flat["data.corruption"] < 1:
        raise UserError(f"data.corruption must be above 0 and below 1, not {flat['data.corruption']}")
    _least(flat, 0, "optimizer.", "eps weight_decay clip_norm max_spike final_rate")
    _least(flat, 0, "data.", "season")
    _least(flat, 0, "logging.", "evaluate_every checkpoint_minutes")
    buckets, longest = flat["data.buckets"], flat["data.max_len"]
    if min(buckets) < 1:
        raise UserError(f"data.buckets={buckets} has a length below 1: give lengths in tokens")
    if not 0 <= flat["seed"] < 2**31:
        raise UserError(f"seed must be a whole number from 0 to 2147483647, not {flat['seed']}")
    if max(buckets) < longest:
        raise UserError(f"data.buckets ends at {max(buckets)}, below data.max_len={longest}: add a longer bucket")


def check_model(model: Any) -> None:
    """`model`: a ModelConfig. UserError: an impossible value."""
    flat = {f"model.{key}": value for key, value in vars(model).items()}
    _least(flat, 1, "model.", "num_layers d_model num_heads max_positions channels patch_size vocab_multiple")
    _least(flat, 0, "model.", "d_ff head_dim value_dim segment_types num_classes patch_stride vocab_size")
    recurrent = model.family.startswith("recurrent")  # it has no heads
    if model.d_model % model.num_heads and not (model.head_dim or recurrent):
        raise UserError(
            f"model.d_model={model.d_model} does not divide by model.num_heads={model.num_heads}: change one of them, "
            "or set model.head_dim"
        )
    if model.num_kv_heads < 0 or model.num_heads % (model.num_kv_heads or model.num_heads):
        raise UserError(
            f"model.num_kv_heads={model.num_kv_heads} does not divide model.num_heads={model.num_heads}: change one of "
            "them, or set it to 0 for as many"
        )
    width = model.head_dim or model.d_model // model.num_heads
    if model.positions.startswith("rotary") and width % 2:
        raise UserError(
            f"model.positions={model.positions!r} rotates pairs of features, and a head has {width}: make it even"
        )
    if not 0 <= model.dropout < 1:
        raise UserError(f"model.dropout must be at least 0 and below 1, not {model.dropout}")
    for key in ("model.rotary_theta", "model.norm_eps"):
        if not 0 < flat[key] < math.inf:
            raise UserError(f"{key} must be above 0 and finite, not {flat[key]}")
    choices = {
        "model.norm": ("post", "pre"),
        "model.norm_type": ("layer", "rms"),
        "model.initialization": ("xavier", "depth_scaled"),
        "model.dtype": ("float32", "bfloat16"),
    }
    _choices(flat, choices)
    if len(model.image_size) != 2 or min(model.image_size) < 1:
        raise UserError(f"model.image_size={model.image_size} must be a height and a width, in pixels")
    if model.inputs == "image" and any(side % model.patch_size for side in model.image_size):
        raise UserError(
            f"model.patch_size={model.patch_size} does not divide model.image_size={model.image_size}: change one"
        )
    if model.scan_layers and model.num_layers % len(model.attention):
        raise UserError(
            f"model.scan_layers stacks layers by their pattern, and {len(model.attention)} patterns of model.attention "
            f"do not divide {model.num_layers} layers: change either, or set scan_layers to False"
        )


def _least(flat: Mapping[str, Any], least: int, group: str, names: str) -> None:
    for key in (group + name for name in names.split()):
        if not least <= flat[key] < math.inf:
            said = "at least 1" if least else "0 or more"
            raise UserError(f"config key {key!r} must be {said}, not {flat[key]}")


def _choices(flat: Mapping[str, Any], choices: Mapping[str, tuple[str, ...]]) -> None:
    for key, names in choices.items():
        if flat[key] not in names:
            listed = " or ".join(map(repr, names)) if len(names) == 2 else f"one of {', '.join(map(repr, names))}"
            raise UserError(f"{key} must be {listed}, not {flat[key]!r}")
