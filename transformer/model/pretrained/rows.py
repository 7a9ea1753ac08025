"""What a table of an architecture is made of: rows that say which tensor of theirs is which parameter of ours."""

from collections.abc import Callable
from typing import Any, NamedTuple

from transformer.config import ModelConfig
from transformer.model.pretrained.files import Settings


class Form(NamedTuple):
    """How a tensor lies there and here; both functions only move numbers."""

    read: Callable[[Any], Any]  # theirs to ours
    write: Callable[[Any], Any]  # ours to theirs


SAME = Form(lambda x: x, lambda x: x)
TRANSPOSED = Form(lambda x: x.T, lambda x: x.T)  # torch's linear layers hold [out, in], ours [in, out]


def leading(axes: int) -> Form:
    """Theirs has so many axes of length 1 before ours."""
    return Form(lambda x: x.reshape(x.shape[axes:]), lambda x: x.reshape((1,) * axes + x.shape))


class Row(NamedTuple):
    """One tensor of theirs; of ours several where they lie side by side along the last axis of the form."""

    theirs: str
    ours: tuple[str, ...]
    form: Form = SAME


class Architecture(NamedTuple):
    """One `model_type` of config.json."""

    classes: tuple[str, ...]  # its `architectures` that we have
    bare: tuple[str, ...]  # those of them without a head
    prefix: str  # of the names of all tensors but the heads', in a class that has a head
    heads: tuple[str, ...]  # how the names of heads begin
    to_config: Callable[[Settings, frozenset[str]], ModelConfig]  # of config.json and the tensors' names
    to_settings: Callable[[ModelConfig], dict[str, Any]]  # config.json of a model, without `model_type`
    rows: Callable[[ModelConfig], list[Row]]  # names without the prefix
    copies: dict[str, str] = {}  # name of a tensor that some files hold twice -> the name we know it by
    ignored: str = r"(?!)"  # pattern of the names of what no output depends on


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
# Ours to theirs, by the name that all versions know.
THEIR_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_new", "silu": "silu"}
