"""The tables of architectures: rows that map a tensor of theirs to parameters of ours."""

from collections.abc import Callable
from typing import Any, NamedTuple

from transformer.config import ModelConfig
from transformer.model.pretrained.files import Settings


class Form(NamedTuple):
    """Conversion between their layout and ours; both functions only permute or reshape."""

    read: Callable[[Any], Any]  # theirs to ours
    write: Callable[[Any], Any]  # ours to theirs


SAME = Form(lambda x: x, lambda x: x)
TRANSPOSED = Form(lambda x: x.T, lambda x: x.T)  # torch's linear layers hold [out, in], ours [in, out]


def leading(axes: int) -> Form:
    """Their array has this many leading axes of length 1."""
    return Form(lambda x: x.reshape(x.shape[axes:]), lambda x: x.reshape((1,) * axes + x.shape))


class Row(NamedTuple):
    """One tensor of theirs, and its parameter here, or several that are concatenated along the last axis."""

    theirs: str
    ours: tuple[str, ...]
    form: Form = SAME


class Architecture(NamedTuple):
    """One `model_type` of config.json."""

    classes: tuple[str, ...]  # supported `architectures`
    bare: tuple[str, ...]  # those without a head
    prefix: str  # of tensor names in a class with a head, except for the head's
    heads: tuple[str, ...]  # prefixes of the heads' tensor names
    to_config: Callable[[Settings, frozenset[str]], ModelConfig]  # from config.json and the tensors' names
    to_settings: Callable[[ModelConfig], dict[str, Any]]  # config.json of a model, without `model_type`
    rows: Callable[[ModelConfig], list[Row]]  # names without the prefix
    unused: str = ""  # keys of config.json without effect here, besides `keys.UNUSED`
    copies: dict[str, str] = {}  # name of a tensor that some files hold twice -> the name that rows use
    ignored: str = r"(?!)"  # pattern of the names of tensors that no output depends on


def linear(theirs: str, ours: str, bias: bool = True) -> list[Row]:
    """A linear layer of torch."""
    rows = [Row(f"{theirs}.weight", (f"{ours}/kernel",), TRANSPOSED)]
    return [*rows, Row(f"{theirs}.bias", (f"{ours}/bias",))] if bias else rows


def norm(theirs: str, ours: str, bias: bool = True) -> list[Row]:
    """A norm of torch; RMSNorm has no bias."""
    rows = [Row(f"{theirs}.weight", (f"{ours}/scale",))]
    return [*rows, Row(f"{theirs}.bias", (f"{ours}/bias",))] if bias else rows


ACTIVATION_NAMES = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}
# Ours to theirs, with the names that all versions support.
THEIR_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_new", "silu": "silu"}
