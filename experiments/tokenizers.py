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
REFERENCE = "bpe"
PRIMARY = "test/bits_per_byte"
MATTERS = 0.02  # bits a byte: what is less does not matter
TUNE = "optimizer.learning_rate"
SETTINGS = {
    "steps": 200,
    "model.num_layers": 2,
    "data.vocab_size": 2048,
    "data.max_len": 256,
    "data.buckets": (256,),
    "data.batch_tokens": 2048,
    "optimizer.warmup_steps": 40,
}
MAIN_METRICS = ["test/bytes_per_token", "test/token_accuracy"]
FEWEST = 300  # pieces that byte-level BPE can have with some merges: 256 are bytes, and some are special


def variants(base: Config) -> dict[str, dict[str, Any]]:
    """Byte-level BPE with as many pieces as the base, a quarter and four times of them; unigram pieces, characters and
    bytes. All are lossless. A quarter only where that is enough for BPE."""
    size = base.data.vocab_size
    quarter = {"bpe-quarter": size // 4} if size // 4 >= FEWEST else {}
    bpe = {REFERENCE: size, **quarter, "bpe-fourfold": 4 * size}
    return {name: {"data.tokenizer": "bpe", "data.vocab_size": pieces} for name, pieces in bpe.items()} | {
        "unigram": {"data.tokenizer": "unigram", "data.vocab_size": size},
        "characters": {"data.tokenizer": "characters", "data.vocab_size": size},
        "bytes": {"data.tokenizer": "bytes"},
    }
