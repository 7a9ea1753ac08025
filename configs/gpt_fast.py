"""A GPT of characters on Tiny Shakespeare, of the size of configs/gpt.py, that learns from a sixth of the tokens.

    python -m transformer.train --config=configs/gpt_fast.py --config.data.target=input.txt --workdir=runs/gpt_fast
    python -m transformer.evaluate --workdir=runs/gpt_fast --split=validation

TABLE
"""

from ml_collections import ConfigDict

from transformer.config import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.task = "language_model"
    config.steps = 1000
    config.label_smoothing = 0.0
    config.data.name = "text"
    config.data.source = ""
    config.data.target = "input.txt"
    config.data.tokenizer = "characters"
    config.data.vocab_size = 512
    config.data.max_len = 64
    config.data.buckets = (64,)
    config.data.batch_tokens = 256
    config.data.row_multiple = 4
    config.model.family = "decoder_only"
    config.model.positions = "rotary"
    config.model.attention = ("window:2", "window:4", "window:16", "full")
    config.model.num_layers = 4
    config.model.d_model = 128
    config.model.d_ff = 344
    config.model.num_heads = 4
    config.model.norm = "pre"
    config.model.norm_eps = 1e-5
    config.model.activation = "silu"
    config.model.gated = True
    config.model.feed_forward_bias = False
    config.model.dropout = 0.0
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 2.5e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.b2 = 0.99
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.1
    config.logging.checkpoint_every = 1000
    return config
