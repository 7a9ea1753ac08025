"""The defaults that need no download, as TFDS builders: one translation corpus, one for language models."""

from transformer.data.docstrings import Docstrings
from transformer.data.quantities import Quantities

__all__ = ["Docstrings", "Quantities"]
