"""GPT-2 (Radford et al. 2019): `GPT2LMHeadModel`, and `GPT2Model`, whose logits are always tied."""

from typing import Any

from transformer.config import ModelConfig
from transformer.errors import UserError
from transformer.model.pretrained.files import Settings
from transformer.model.pretrained.rows import ACTIVATION_NAMES, THEIR_ACTIVATIONS, Architecture, Row, norm


def _to_config(settings: Settings, names: frozenset[str]) -> ModelConfig:
    positions, dropout = settings.size("n_positions", 1024), settings.get("resid_pdrop", 0.1)
    settings.only(scale_attn_by_inverse_layer_idx=False, n_ctx=positions, is_encoder_decoder=False)
    if settings.get("embd_pdrop", 0.1) != dropout:
        raise UserError(
            f"{settings.source} sets embd_pdrop={settings.get('embd_pdrop', 0.1)} and resid_pdrop={dropout}, and our "
            "modules have one rate: set both to it (without training, no output depends on them)"
        )
    width = settings.size("n_embd")
    return ModelConfig(
        family="decoder_only",
        positions="learned",
        vocab_size=settings.size("vocab_size"),
        max_positions=positions,
        num_layers=settings.size("n_layer"),
        d_model=width,
        d_ff=settings.size("n_inner", 4 * width),
        num_heads=settings.size("n_head"),
        scale_attention=settings.get("scale_attn_weights", True),
        attention_bias=True,
        norm="pre",
        norm_eps=settings.get("layer_norm_epsilon", 1e-5),
        activation=settings.one_of("activation_function", ACTIVATION_NAMES, "gelu_new"),
        scale_embedding=False,
        tied=settings.get("tie_word_embeddings", True),
        dropout=dropout,
        initialization="depth_scaled",
    )


def _to_settings(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab_size,
        "n_positions": config.max_positions,
        "n_layer": config.num_layers,
        "n_embd": config.d_model,
        "n_inner": config.d_ff,
        "n_head": config.num_heads,
        "scale_attn_weights": config.scale_attention,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": THEIR_ACTIVATIONS[config.activation],
        "tie_word_embeddings": config.tied,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": 0.0,
    }


def _affine(theirs: str, *ours: str) -> list[Row]:
    """GPT-2's `Conv1D`: a linear layer with a kernel [in, out] like ours; it may concatenate several of ours."""
    return [
        Row(f"{theirs}.weight", tuple(f"{name}/kernel" for name in ours)),
        Row(f"{theirs}.bias", tuple(f"{name}/bias" for name in ours)),
    ]


def _rows(config: ModelConfig) -> list[Row]:
    rows = [Row("wte.weight", ("embedder/table",)), Row("wpe.weight", ("decoder/input/positions/table",))]
    for i in range(config.num_layers):
        theirs, ours = f"h.{i}", f"decoder/layer_{i}"
        attention = f"{ours}/self_attention"
        rows += norm(f"{theirs}.ln_1", f"{ours}/self_attention_residual/norm")
        rows += _affine(f"{theirs}.attn.c_attn", *(f"{attention}/{part}" for part in ("query", "key", "value")))
        rows += _affine(f"{theirs}.attn.c_proj", f"{attention}/out")
        rows += norm(f"{theirs}.ln_2", f"{ours}/feed_forward_residual/norm")
        rows += _affine(f"{theirs}.mlp.c_fc", f"{ours}/feed_forward/inner")
        rows += _affine(f"{theirs}.mlp.c_proj", f"{ours}/feed_forward/outer")
    rows += norm("ln_f", "decoder/final_norm")
    return rows if config.tied else [*rows, Row("lm_head.weight", ("embedder/output_table",))]


GPT2 = Architecture(
    classes=("GPT2LMHeadModel", "GPT2Model"),
    bare=("GPT2Model",),
    prefix="transformer.",
    heads=("lm_head.",),
    to_config=_to_config,
    to_settings=_to_settings,
    rows=_rows,
    copies={"lm_head.weight": "wte.weight"},
    # Of a head that these classes do not have; older sizes; and scores in float32, as ours are.
    unused="summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout is_decoder "
    "reorder_and_upcast_attn",
    ignored=r"h\.\d+\.attn\.(masked_)?bias",  # causal masks, which older versions stored
)
