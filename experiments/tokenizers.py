"""What do pieces cost: characters, bytes, or subwords, and how many of them?

Hypothesis: more pieces mean fewer tokens a byte, so more text in one context and fewer steps to write it; bits a byte
fall with the vocabulary and then level off, as rare pieces are seen too rarely to be learned.

Source: Sennrich et al. 2016, "Neural machine translation of rare words with subword units" (arXiv 1508.07909); Kudo
2018, "Subword regularization" (arXiv 1804.10959). Losses a token cannot be compared between tokenizers; bits a byte
can.
"""

from typing import Any

from transformer.config import Config

BASE = "configs/docstrings.py"
REFERENCE = "bpe-4096"
SETTINGS = {"steps": 300, "model.num_layers": 2, "data.batch_tokens": 2048, "optimizer.warmup_steps": 50}
MAIN_METRICS = ["test/bits_per_byte", "test/bytes_per_token", "test/token_accuracy"]


def variants(base: Config) -> dict[str, dict[str, Any]]:
    """Byte-level BPE of three sizes, unigram pieces, characters and bytes; all lossless."""
    sizes = (1024, 4096, 16384)
    return {f"bpe-{size}": {"data.tokenizer": "bpe", "data.vocab_size": size} for size in sizes} | {
        "unigram-4096": {"data.tokenizer": "unigram", "data.vocab_size": 4096},
        "characters": {"data.tokenizer": "characters", "data.vocab_size": 4096},
        "bytes": {"data.tokenizer": "bytes"},
    }
