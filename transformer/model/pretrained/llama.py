"""Llama (Touvron et al. 2023): `LlamaForCausalLM`, with rotary pairs (i, i + K/2)."""

from typing import Any

from transformer.config import ModelConfig, head_width
from transformer.errors import UserError
from transformer.model.layers import key_heads
from transformer.model.pretrained.files import Settings
from transformer.model.pretrained.rows import (
    ACTIVATION_NAMES,
    THEIR_ACTIVATIONS,
    Architecture,
    Row,
    linear,
    norm,
)


def _theta(settings: Settings) -> float:
    """The base of the rotary angles; its key depends on the file's version. UserError: the angles are scaled."""
    settings.only(partial_rotary_factor=1.0)
    found = settings.get("rope_theta", 10_000.0)
    for group in ("rope_scaling", "rope_parameters"):
        inner = Settings(settings.get(group, {}), settings.source)
        found = inner.get("rope_theta", found)
        plain: dict[str, tuple[Any, ...]] = {
            "rope_type": ("default",),
            "type": ("default",),
            "partial_rotary_factor": (1.0,),
        }
        if inner.get("factor", 0.0) == 1.0:  # linear scaling by 1 scales nothing
            plain |= {"rope_type": ("default", "linear"), "type": ("default", "linear"), "factor": (1.0,)}
        for name, value in inner.values.items():
            if value is not None and name != "rope_theta" and value not in plain.get(name, ()):
                raise UserError(
                    f"{settings.source} sets {group}.{name}={value!r}, and our modules know only rope_type='default' "
                    "with a rope_theta"
                )
    return found


def _to_config(settings: Settings, names: frozenset[str]) -> ModelConfig:
    width, heads = settings.size("hidden_size"), settings.size("num_attention_heads")
    settings.only(is_encoder_decoder=False)
    return ModelConfig(
        family="decoder_only",
        positions="rotary-half",
        rotary_theta=_theta(settings),
        vocab_size=settings.size("vocab_size"),
        max_positions=settings.size("max_position_embeddings", 2048),
        num_layers=settings.size("num_hidden_layers"),
        d_model=width,
        d_ff=settings.size("intermediate_size"),
        num_heads=heads,
        num_kv_heads=settings.size("num_key_value_heads", heads),
        head_dim=settings.size("head_dim", width // heads),
        attention_bias=settings.get("attention_bias", False),
        norm="pre",
        norm_type="rms",
        norm_eps=settings.get("rms_norm_eps", 1e-6),
        activation=settings.one_of("hidden_act", ACTIVATION_NAMES, "silu"),
        gated=True,
        feed_forward_bias=settings.get("mlp_bias", False),
        scale_embedding=False,
        tied=settings.get("tie_word_embeddings", False),
        dropout=0.0,
    )


def _to_settings(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": key_heads(config),
        "head_dim": head_width(config),
        "attention_bias": config.attention_bias,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": THEIR_ACTIVATIONS[config.activation],
        "mlp_bias": config.feed_forward_bias,
        "tie_word_embeddings": config.tied,
        "rope_theta": config.rotary_theta,  # of older versions; the next is of newer ones
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_theta},
    }


def _rows(config: ModelConfig) -> list[Row]:
    rows = [Row("embed_tokens.weight", ("embedder/table",))]
    attention = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "out"}
    forward = {"gate_proj": "gate", "up_proj": "inner", "down_proj": "outer"}
    for i in range(config.num_layers):
        theirs, ours = f"layers.{i}", f"decoder/layer_{i}"
        rows += norm(f"{theirs}.input_layernorm", f"{ours}/self_attention_residual/norm", bias=False)
        for their, our in attention.items():
            rows += linear(f"{theirs}.self_attn.{their}", f"{ours}/self_attention/{our}", config.attention_bias)
        rows += norm(f"{theirs}.post_attention_layernorm", f"{ours}/feed_forward_residual/norm", bias=False)
        for their, our in forward.items():
            rows += linear(f"{theirs}.mlp.{their}", f"{ours}/feed_forward/{our}", config.feed_forward_bias)
    rows += norm("norm", "decoder/final_norm", bias=False)
    return rows if config.tied else [*rows, Row("lm_head.weight", ("embedder/output_table",))]


LLAMA = Architecture(
    classes=("LlamaForCausalLM",),
    bare=(),
    prefix="model.",
    heads=("lm_head.",),
    to_config=_to_config,
    to_settings=_to_settings,
    rows=_rows,
    copies={"lm_head.weight": "embed_tokens.weight"},
    unused="pretraining_tp is_decoder",  # the same products in slices; it always is one
    ignored=r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",  # the angles, which are a formula
)
