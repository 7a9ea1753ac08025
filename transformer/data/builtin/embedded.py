"""The defaults that need no download, as TFDS builders: for translation, language models, summaries and classes."""

from pathlib import Path

from transformer.data.builtin import languages, leads, prompts, summaries
from transformer.data.builtin.docstrings import Docstrings
from transformer.data.builtin.quantities import Quantities
from transformer.data.sources.records import RecordDataset

__all__ = ["Docstrings", "Languages", "Leads", "Prompts", "Quantities", "Summaries"]


def Summaries(data_dir: Path) -> RecordDataset:
    """Bodies and summaries of docstrings."""
    return RecordDataset(summaries.records(), data_dir=data_dir)


def Leads(data_dir: Path) -> RecordDataset:
    """Passages of docstrings and their first sentences."""
    return RecordDataset(leads.records(), data_dir=data_dir)


def Languages(data_dir: Path) -> RecordDataset:
    """Names from CLDR, labelled by language."""
    return RecordDataset(languages.records(), data_dir=data_dir)


def Prompts(data_dir: Path) -> RecordDataset:
    """Sums and number words, with their answers."""
    return RecordDataset(prompts.records(), data_dir=data_dir)
