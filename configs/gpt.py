"""A GPT of characters on Tiny Shakespeare: nanoGPT's recipe for a CPU.

    python -m transformer.train --config=configs/gpt.py --config.data.target=input.txt --workdir=runs/gpt
    python -m transformer.evaluate --workdir=runs/gpt --split=validation

input.txt is any text; the first 90 % of its characters train, the last 10 % validate.
"""

from ml_collections import ConfigDict

from transformer.config import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.task = "language_model"
    config.steps = 2000
    config.label_smoothing = 0.0
    config.data.name = "text"
    config.data.source = ""
    config.data.target = "input.txt"
    config.data.tokenizer = "characters"
    config.data.vocab_size = 512
    config.data.max_len = 64
    config.data.buckets = (64,)
    config.data.batch_tokens = 768
    config.data.row_multiple = 4
    config.model.family = "decoder_only"
    config.model.positions = "learned"
    config.model.max_positions = 64
    config.model.num_layers = 4
    config.model.d_model = 128
    config.model.d_ff = 512
    config.model.num_heads = 4
    config.model.norm = "pre"
    config.model.norm_eps = 1e-5
    config.model.activation = "gelu"
    config.model.feed_forward_bias = False
    config.model.scale_embedding = False
    config.model.initialization = "depth_scaled"
    config.model.dropout = 0.0
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.99
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.1
    config.logging.checkpoint_every = 1000
    return config
