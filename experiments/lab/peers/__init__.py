"""Training loops that a user would write instead: short, and at their best settings. All train the same `Model`."""

from typing import NamedTuple


class Model(NamedTuple):
    """A decoder, or an encoder and a decoder, with pre-norm layers, and the batch that it is trained on."""

    layers: int  # of the decoder, and of an encoder
    width: int
    inner: int
    heads: int
    length: int  # of the rows, on both sides
    rows: int
    vocabulary: int
    dropout: float
    smoothing: float
    encoder: bool
    bias: bool  # of the feed-forward maps; attention has none
