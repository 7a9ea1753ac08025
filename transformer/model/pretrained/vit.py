"""The Vision Transformer (Dosovitskiy et al. 2021): `ViTForImageClassification`, and `ViTModel` with its pooler."""

from typing import Any

from transformer.config import ModelConfig
from transformer.errors import UserError
from transformer.model.pretrained.files import Settings
from transformer.model.pretrained.rows import (
    ACTIVATION_NAMES,
    THEIR_ACTIVATIONS,
    Architecture,
    Form,
    Row,
    leading,
    linear,
    norm,
)


def _to_config(settings: Settings, names: frozenset[str]) -> ModelConfig:
    settings.only(qkv_bias=True, pooler_act="tanh", pooler_output_size=settings.size("hidden_size"))
    settings.only(is_encoder_decoder=False, is_decoder=False)
    side, patch = settings.size("image_size", 224), settings.size("patch_size", 16)
    if side % patch:
        raise UserError(f"{settings.source} sets image_size={side}, which patch_size={patch} does not divide")
    classifier = settings.get("architectures", []) == ["ViTForImageClassification"]
    return ModelConfig(
        family="encoder_only",
        inputs="image",
        positions="learned",
        max_positions=(side // patch) ** 2 + 1,
        image_size=(side, side),
        patch_size=patch,
        channels=settings.size("num_channels", 3),
        num_layers=settings.size("num_hidden_layers"),
        d_model=settings.size("hidden_size"),
        d_ff=settings.size("intermediate_size"),
        num_heads=settings.size("num_attention_heads"),
        attention_bias=True,
        norm="pre",
        norm_eps=settings.get("layer_norm_eps", 1e-12),
        activation=settings.one_of("hidden_act", ACTIVATION_NAMES, "gelu"),
        pooling="pooler" if not classifier and "pooler.dense.weight" in names else "first",
        num_classes=_classes(settings) if classifier else 0,
        dropout=settings.get("hidden_dropout_prob", 0.0),
    )


def _classes(settings: Settings) -> int:
    """config.json lists the classes by name if there are other than two."""
    return len(settings.get("id2label", {})) or settings.size("num_labels", 2)


def _to_settings(config: ModelConfig) -> dict[str, Any]:
    labels = {str(i): f"LABEL_{i}" for i in range(config.num_classes)}
    return {
        "architectures": ["ViTForImageClassification" if labels else "ViTModel"],
        "image_size": config.image_size[0],
        "patch_size": config.patch_size,
        "num_channels": config.channels,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.d_model,
        "pooler_output_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_attention_heads": config.num_heads,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": THEIR_ACTIVATIONS[config.activation],
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": 0.0,
        **({"id2label": labels, "label2id": {name: int(i) for i, name in labels.items()}} if labels else {}),
    }


def _patches(config: ModelConfig) -> Form:
    """A convolution [D, channels, row, column] there, the matrix [row column channel, D] of flattened patches here."""
    side, channels = config.patch_size, config.channels
    return Form(
        lambda x: x.transpose(2, 3, 1, 0).reshape(side * side * channels, -1),
        lambda x: x.reshape(side, side, channels, -1).transpose(3, 2, 0, 1),
    )


def _rows(config: ModelConfig) -> list[Row]:
    rows = [
        Row("embeddings.cls_token", ("front/first",), leading(2)),
        Row("embeddings.position_embeddings", ("encoder/input/positions/table",), leading(1)),
        Row("embeddings.patch_embeddings.projection.weight", ("front/patches/kernel",), _patches(config)),
        Row("embeddings.patch_embeddings.projection.bias", ("front/patches/bias",)),
    ]
    for i in range(config.num_layers):
        theirs, ours = f"encoder.layer.{i}", f"encoder/layer_{i}"
        rows += norm(f"{theirs}.layernorm_before", f"{ours}/self_attention_residual/norm")
        for part in ("query", "key", "value"):
            rows += linear(f"{theirs}.attention.attention.{part}", f"{ours}/self_attention/{part}")
        rows += linear(f"{theirs}.attention.output.dense", f"{ours}/self_attention/out")
        rows += norm(f"{theirs}.layernorm_after", f"{ours}/feed_forward_residual/norm")
        rows += linear(f"{theirs}.intermediate.dense", f"{ours}/feed_forward/inner")
        rows += linear(f"{theirs}.output.dense", f"{ours}/feed_forward/outer")
    rows += norm("layernorm", "encoder/final_norm")
    if config.pooling == "pooler":
        rows += linear("pooler.dense", "pooler")
    return rows + linear("classifier", "head") if config.num_classes else rows


VIT = Architecture(
    classes=("ViTForImageClassification", "ViTModel"),
    bare=("ViTModel",),
    prefix="vit.",
    heads=("classifier.",),
    to_config=_to_config,
    to_settings=_to_settings,
    rows=_rows,
    unused="encoder_stride tie_word_embeddings",  # of masked images; it has no tokens
    ignored=r"pooler\.dense\..*|embeddings\.mask_token",  # of a classifier, which does not use them
)
