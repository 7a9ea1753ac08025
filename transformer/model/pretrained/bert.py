"""BERT (Devlin et al. 2019): `BertModel` with its pooler, and `BertForMaskedLM`."""

from typing import Any

from transformer.config import ModelConfig
from transformer.model.pretrained.files import Settings
from transformer.model.pretrained.rows import (
    ACTIVATION_NAMES,
    THEIR_ACTIVATIONS,
    Architecture,
    Row,
    linear,
    norm,
)


def _to_config(settings: Settings, names: frozenset[str]) -> ModelConfig:
    settings.only(
        position_embedding_type="absolute",
        is_decoder=False,
        is_encoder_decoder=False,
        tie_word_embeddings=True,
        directionality="bidi",
    )
    masked = settings.get("architectures", []) == ["BertForMaskedLM"]
    return ModelConfig(
        family="encoder_only",
        positions="learned",
        vocab_size=settings.size("vocab_size"),
        max_positions=settings.size("max_position_embeddings", 512),
        segment_types=settings.size("type_vocab_size", 2),
        num_layers=settings.size("num_hidden_layers"),
        d_model=settings.size("hidden_size"),
        d_ff=settings.size("intermediate_size"),
        num_heads=settings.size("num_attention_heads"),
        attention_bias=True,
        norm_eps=settings.get("layer_norm_eps", 1e-12),
        activation=settings.one_of("hidden_act", ACTIVATION_NAMES, "gelu"),
        scale_embedding=False,
        embedding_norm=True,
        output_bias=masked,
        output_transform=masked,
        # A model saved without its pooler is used by its vectors, or by the first one.
        pooling="pooler" if not masked and "pooler.dense.weight" in names else "first",
        dropout=settings.get("hidden_dropout_prob", 0.1),
    )


def _to_settings(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["BertForMaskedLM" if config.output_transform else "BertModel"],
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": config.segment_types,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_attention_heads": config.num_heads,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": THEIR_ACTIVATIONS[config.activation],
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": 0.0,
        "position_embedding_type": "absolute",
    }


def _rows(config: ModelConfig) -> list[Row]:
    rows = [
        Row("embeddings.word_embeddings.weight", ("embedder/table",)),
        Row("embeddings.token_type_embeddings.weight", ("embedder/segments",)),
        Row("embeddings.position_embeddings.weight", ("encoder/input/positions/table",)),
        *norm("embeddings.LayerNorm", "encoder/input/norm"),
    ]
    for i in range(config.num_layers):
        theirs, ours = f"encoder.layer.{i}", f"encoder/layer_{i}"
        for part in ("query", "key", "value"):
            rows += linear(f"{theirs}.attention.self.{part}", f"{ours}/self_attention/{part}")
        rows += linear(f"{theirs}.attention.output.dense", f"{ours}/self_attention/out")
        rows += norm(f"{theirs}.attention.output.LayerNorm", f"{ours}/self_attention_residual/norm")
        rows += linear(f"{theirs}.intermediate.dense", f"{ours}/feed_forward/inner")
        rows += linear(f"{theirs}.output.dense", f"{ours}/feed_forward/outer")
        rows += norm(f"{theirs}.output.LayerNorm", f"{ours}/feed_forward_residual/norm")
    if config.pooling == "pooler":
        rows += linear("pooler.dense", "pooler")
    if config.output_transform:
        rows += linear("cls.predictions.transform.dense", "embedder/output_dense")
        rows += norm("cls.predictions.transform.LayerNorm", "embedder/output_norm")
        rows += [Row("cls.predictions.bias", ("embedder/output_bias",))]
    return rows


BERT = Architecture(
    classes=("BertModel", "BertForMaskedLM"),
    bare=("BertModel",),
    prefix="bert.",
    heads=("cls.",),
    to_config=_to_config,
    to_settings=_to_settings,
    rows=_rows,
    copies={
        "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    # Of the first release in TensorFlow; no version of the model reads them.
    unused="pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type",
    # Position numbers, and the next-sentence prediction head in released files of the masked language model.
    ignored=r"embeddings\.position_ids|cls\.seq_relationship\..*|pooler\.dense\..*",
)
