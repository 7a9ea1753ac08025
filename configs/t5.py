"""A small T5 on the docstrings of the installed scientific stack: spans are cut out of the text, and written.

python -m transformer.train --config=configs/t5.py --workdir=runs/t5
python -m transformer.evaluate --workdir=runs/t5
"""

from ml_collections import ConfigDict

from transformer.config import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.task = "span_corruption"
    config.steps = 1500
    config.label_smoothing = 0.0
    config.data.name = "docstrings"
    config.data.target = "text"
    config.data.tokenizer = "sentencepiece_bpe"
    config.data.vocab_size = 4096
    config.data.max_len = 128
    config.data.buckets = (128,)
    config.model.positions = "t5"
    config.model.num_layers = 3
    config.model.d_model = 128
    config.model.d_ff = 512
    config.model.num_heads = 4
    config.model.norm = "pre"
    config.model.norm_type = "rms"
    config.model.feed_forward_bias = False
    config.model.scale_attention = False
    config.model.scale_embedding = False
    config.model.output_scale = 128**-0.5
    config.model.dropout = 0.0
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 200
    return config
