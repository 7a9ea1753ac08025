"""T5 (Raffel et al. 2020), version 1.0 and the gated, untied 1.1: `T5ForConditionalGeneration`."""

from typing import Any

from transformer.config import ModelConfig, head_width
from transformer.model.positions import T5_BUCKETS, T5_FARTHEST
from transformer.model.pretrained.files import Settings
from transformer.model.pretrained.rows import (
    ACTIVATION_NAMES,
    THEIR_ACTIVATIONS,
    Architecture,
    Row,
    linear,
    norm,
)

# Names of the input table.
_TABLES = {"shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}


def _to_config(settings: Settings, names: frozenset[str]) -> ModelConfig:
    layers, width = settings.size("num_layers"), settings.size("d_model")
    settings.only(
        num_decoder_layers=layers,
        relative_attention_num_buckets=T5_BUCKETS,
        relative_attention_max_distance=T5_FARTHEST,
        is_encoder_decoder=True,
        is_decoder=False,
    )
    # "gated-gelu" is the tanh form.
    forward = {f"{gate}{name}": name for gate in ("", "gated-") for name in ACTIVATION_NAMES}
    forward["gated-gelu"] = "gelu_new"
    inner = settings.one_of("feed_forward_proj", forward, "relu")
    gated = settings.get("feed_forward_proj", "relu").startswith("gated-")
    settings.only(is_gated_act=gated, dense_act_fn=inner)  # newer files say it again
    tied = settings.get("tie_word_embeddings", True)
    # Tied logits are scaled. Newer files have a separate key for that; there, the tensors show whether they are tied.
    scaled = settings.get("scale_decoder_outputs", tied)
    if "scale_decoder_outputs" in settings.values:
        tied = "lm_head.weight" not in names or not names & _TABLES
    return ModelConfig(
        family="encoder_decoder",
        positions="t5",
        vocab_size=settings.size("vocab_size"),
        num_layers=layers,
        d_model=width,
        d_ff=settings.size("d_ff"),
        num_heads=settings.size("num_heads"),
        head_dim=settings.size("d_kv"),
        scale_attention=False,
        norm="pre",
        norm_type="rms",
        norm_eps=settings.get("layer_norm_epsilon", 1e-6),
        activation=ACTIVATION_NAMES[inner],
        gated=gated,
        feed_forward_bias=False,
        scale_embedding=False,
        tied=tied,
        output_scale=width**-0.5 if scaled else 1.0,
        dropout=settings.get("dropout_rate", 0.1),
    )


def _to_settings(config: ModelConfig) -> dict[str, Any]:
    activation = THEIR_ACTIVATIONS[config.activation]
    gated = "gated-" + activation.removesuffix("_new")
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "num_layers": config.num_layers,
        "num_decoder_layers": config.num_layers,
        "d_model": config.d_model,
        "d_ff": config.d_ff,
        "num_heads": config.num_heads,
        "d_kv": head_width(config),
        "layer_norm_epsilon": config.norm_eps,
        "feed_forward_proj": gated if config.gated else activation,
        "relative_attention_num_buckets": T5_BUCKETS,
        "relative_attention_max_distance": T5_FARTHEST,
        "tie_word_embeddings": config.tied,
        "dropout_rate": config.dropout,
    }


def _attention(theirs: str, ours: str) -> list[Row]:
    parts = {"q": "query", "k": "key", "v": "value", "o": "out"}
    return [row for their, our in parts.items() for row in linear(f"{theirs}.{their}", f"{ours}/{our}", bias=False)]


def _stack(side: str, config: ModelConfig) -> list[Row]:
    first = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    rows = [Row(first, (f"{side}/input/positions/table",))]
    forward = {"wi_0": "gate", "wi_1": "inner", "wo": "outer"} if config.gated else {"wi": "inner", "wo": "outer"}
    last = 1 if side == "encoder" else 2
    for i in range(config.num_layers):
        theirs, ours = f"{side}.block.{i}.layer", f"{side}/layer_{i}"
        rows += _attention(f"{theirs}.0.SelfAttention", f"{ours}/self_attention")
        rows += norm(f"{theirs}.0.layer_norm", f"{ours}/self_attention_residual/norm", bias=False)
        if side == "decoder":
            rows += _attention(f"{theirs}.1.EncDecAttention", f"{ours}/cross_attention")
            rows += norm(f"{theirs}.1.layer_norm", f"{ours}/cross_attention_residual/norm", bias=False)
        for their, our in forward.items():
            rows += linear(f"{theirs}.{last}.DenseReluDense.{their}", f"{ours}/feed_forward/{our}", bias=False)
        rows += norm(f"{theirs}.{last}.layer_norm", f"{ours}/feed_forward_residual/norm", bias=False)
    return rows + norm(f"{side}.final_layer_norm", f"{side}/final_norm", bias=False)


def _rows(config: ModelConfig) -> list[Row]:
    rows = [Row("shared.weight", ("embedder/table",)), *_stack("encoder", config), *_stack("decoder", config)]
    return rows if config.tied else [*rows, Row("lm_head.weight", ("embedder/output_table",))]


T5 = Architecture(
    classes=("T5ForConditionalGeneration",),
    bare=(),
    prefix="",
    heads=(),
    to_config=_to_config,
    to_settings=_to_settings,
    rows=_rows,
    copies=dict.fromkeys(
        ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"), "shared.weight"
    ),
    unused="n_positions",  # of the first files; positions are relative
    # A table in the first released files that no version of the model reads.
    ignored=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
)
