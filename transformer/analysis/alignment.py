"""Alignments of source and target tokens, from cross-attention in one pass over a finished output."""

from typing import Any

from jaxtyping import Array, Float, Int

from transformer.analysis.attention import attention_maps
from transformer.config import ModelConfig
from transformer.model.tokens import Tokens


def alignment_layer(config: ModelConfig) -> int:
    """The penultimate decoder layer (of one layer, that one). Its cross-attention, averaged over heads, is nearest to
    manual alignments (Garg et al. 2019, "Jointly learning to align and translate", section 4.1)."""
    return max(config.num_layers - 2, 0)


def looks(
    model: Any,
    params: Any,
    inputs: Array,
    inputs_where: Tokens,
    target_inputs: Int[Array, "B L"],
    targets_where: Tokens,
) -> Float[Array, "B L S"]:
    """The attention of the prediction after each of `target_inputs` (which begin with BOS) to each source token:
    cross-attention of the `alignment_layer` of an `EncoderDecoder`, averaged over heads. Rows sum to 1."""
    maps = attention_maps(model, params, inputs, inputs_where, target_inputs, targets_where)["decoder"]["cross"]
    return maps[alignment_layer(model.config)].mean(axis=1)


def pairs(weights: Float[Any, "L S"], source_words: list[int], target_words: list[int]) -> str:
    """Pharaoh pairs "0-0 1-2", source word to target word: each target token is linked to the word of the source token
    with the largest weight. `source_words` and `target_words` give each token's word number, from 0."""
    links = {
        (source_words[int(row[: len(source_words)].argmax())], word)
        for row, word in zip(weights, target_words, strict=False)
        if source_words
    }
    return " ".join(f"{source}-{target}" for source, target in sorted(links))
