"""Marian's translation models (Junczys-Dowmunt et al. 2018), such as OPUS-MT: `MarianMTModel`."""

from typing import Any

from transformer.config import ModelConfig
from transformer.model.pretrained.files import Settings
from transformer.model.pretrained.rows import (
    ACTIVATION_NAMES,
    THEIR_ACTIVATIONS,
    Architecture,
    Row,
    leading,
    linear,
    norm,
)


def _to_config(settings: Settings, names: frozenset[str]) -> ModelConfig:
    layers, heads = settings.size("encoder_layers"), settings.size("encoder_attention_heads")
    inner, vocab_size = settings.size("encoder_ffn_dim"), settings.size("vocab_size")
    settings.only(
        decoder_layers=layers,
        decoder_attention_heads=heads,
        decoder_ffn_dim=inner,
        decoder_vocab_size=vocab_size,
        share_encoder_decoder_embeddings=True,
        tie_word_embeddings=True,
        static_position_embeddings=True,
        normalize_before=False,
        normalize_embedding=False,
        add_final_layer_norm=False,
        add_bias_logits=False,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
        activation_dropout=0.0,
        num_hidden_layers=layers,
        is_encoder_decoder=True,
        is_decoder=False,
    )
    return ModelConfig(
        family="encoder_decoder",
        positions="sinusoidal-half",
        vocab_size=vocab_size,
        max_positions=settings.size("max_position_embeddings", 1024),
        num_layers=layers,
        d_model=settings.size("d_model"),
        d_ff=inner,
        num_heads=heads,
        attention_bias=True,
        norm_eps=1e-5,
        activation=settings.one_of("activation_function", ACTIVATION_NAMES, "gelu"),
        scale_embedding=settings.get("scale_embedding", False),
        output_bias=True,
        dropout=settings.get("dropout", 0.1),
    )


def _to_settings(config: ModelConfig) -> dict[str, Any]:
    last = config.vocab_size - 1
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (
            ("layers", config.num_layers),
            ("attention_heads", config.num_heads),
            ("ffn_dim", config.d_ff),
        )
    }
    return {
        "architectures": ["MarianMTModel"],
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "decoder_vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "d_model": config.d_model,
        **sides,
        "activation_function": THEIR_ACTIVATIONS[config.activation],
        "scale_embedding": config.scale_embedding,
        "static_position_embeddings": True,
        "share_encoder_decoder_embeddings": True,
        "dropout": config.dropout,
        # The reference needs numbers; as in OPUS-MT, the last piece is padding and begins the output, piece 0 is EOS.
        "pad_token_id": last,
        "decoder_start_token_id": last,
        "eos_token_id": 0,
        "forced_eos_token_id": 0,
    }


def _attention(theirs: str, ours: str) -> list[Row]:
    parts = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
    return [row for their, our in parts.items() for row in linear(f"{theirs}.{their}", f"{ours}/{our}")]


def _rows(config: ModelConfig) -> list[Row]:
    rows = [
        Row("shared.weight", ("embedder/table",)),
        Row("final_logits_bias", ("embedder/output_bias",), leading(1)),
    ]
    for side in ("encoder", "decoder"):
        for i in range(config.num_layers):
            theirs, ours = f"{side}.layers.{i}", f"{side}/layer_{i}"
            rows += _attention(f"{theirs}.self_attn", f"{ours}/self_attention")
            rows += norm(f"{theirs}.self_attn_layer_norm", f"{ours}/self_attention_residual/norm")
            if side == "decoder":
                rows += _attention(f"{theirs}.encoder_attn", f"{ours}/cross_attention")
                rows += norm(f"{theirs}.encoder_attn_layer_norm", f"{ours}/cross_attention_residual/norm")
            rows += linear(f"{theirs}.fc1", f"{ours}/feed_forward/inner")
            rows += linear(f"{theirs}.fc2", f"{ours}/feed_forward/outer")
            rows += norm(f"{theirs}.final_layer_norm", f"{ours}/feed_forward_residual/norm")
    return rows


MARIAN = Architecture(
    classes=("MarianMTModel",),
    bare=(),
    prefix="model.",
    heads=("final_logits_bias", "lm_head."),
    to_config=_to_config,
    to_settings=_to_settings,
    rows=_rows,
    copies=dict.fromkeys(
        ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"), "shared.weight"
    ),
    unused="extra_pos_embeddings classif_dropout",  # released files have them, and no version of the model reads them
    ignored=r"(encoder|decoder)\.embed_positions\.weight",  # the sinusoids, which are a formula
)
