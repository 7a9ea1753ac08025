"""A small BERT on the docstrings of the installed scientific stack: 15 % of the tokens are hidden, and guessed.

python -m transformer.train --config=configs/bert.py --workdir=runs/bert
python -m transformer.evaluate --workdir=runs/bert
"""

from ml_collections import ConfigDict

from transformer.config import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.task = "masked_language_model"
    config.steps = 1500
    config.label_smoothing = 0.0
    config.data.name = "docstrings"
    config.data.target = "text"
    config.data.tokenizer = "wordpiece"
    config.data.vocab_size = 4096
    config.data.max_len = 128
    config.data.buckets = (128,)
    config.model.family = "encoder_only"
    config.model.positions = "learned"
    config.model.max_positions = 128
    config.model.num_layers = 4
    config.model.d_model = 128
    config.model.d_ff = 512
    config.model.num_heads = 4
    config.model.norm_eps = 1e-12
    config.model.activation = "gelu"
    config.model.attention_bias = True
    config.model.scale_embedding = False
    config.model.embedding_norm = True
    config.model.segment_types = 2
    config.model.output_transform = True
    config.model.output_bias = True
    config.model.initialization = "depth_scaled"
    config.model.dropout = 0.0
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 200
    config.optimizer.b2 = 0.98
    config.optimizer.eps = 1e-6
    config.optimizer.weight_decay = 0.01
    return config
