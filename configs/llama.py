"""A small model in the style of Llama on the docstrings of the installed scientific stack.

    python -m transformer.train --config=configs/llama.py --workdir=runs/llama

Rotary positions in halves, RMSNorm, SwiGLU, grouped heads, no biases. Weights of Llama and of stories260K:
`transformer.model.pretrained.load(folder)`.
"""

from ml_collections import ConfigDict

from transformer.config import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.task = "language_model"
    config.steps = 1000
    config.label_smoothing = 0.0
    config.data.name = "docstrings"
    config.data.target = "text"
    config.data.vocab_size = 4096
    config.data.max_len = 512
    config.data.buckets = (512,)
    config.model.family = "decoder_only"
    config.model.positions = "rotary-half"
    config.model.num_layers = 4
    config.model.d_model = 128
    config.model.d_ff = 344
    config.model.num_heads = 4
    config.model.num_kv_heads = 2
    config.model.norm = "pre"
    config.model.norm_type = "rms"
    config.model.norm_eps = 1e-5
    config.model.activation = "silu"
    config.model.gated = True
    config.model.feed_forward_bias = False
    config.model.scale_embedding = False
    config.model.initialization = "depth_scaled"
    config.model.dropout = 0.0
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 100
    return config
