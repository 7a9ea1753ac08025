"""T5 small (Raffel et al. 2020), version 1.0: 60,506,624 parameters.

    python -m transformer.describe --config=configs/t5_small.py

Weights of the released model: `transformer.model.pretrained.load(folder)`. Not trained here: two cores are too few;
configs/t5.py is the same kind at a size that they can train.
"""

from ml_collections import ConfigDict

from transformer.config import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.task = "span_corruption"
    config.label_smoothing = 0.0
    config.steps = 524_288
    config.data.name = "docstrings"
    config.data.target = "text"
    config.data.tokenizer = "unigram"
    config.data.vocab_size = 32_128
    config.data.max_len = 512
    config.data.buckets = (512,)
    config.data.batch_tokens = 65_536
    config.model.positions = "t5"
    config.model.vocab_size = 32_128
    config.model.num_layers = 6
    config.model.d_model = 512
    config.model.d_ff = 2048
    config.model.num_heads = 8
    config.model.norm = "pre"
    config.model.norm_type = "rms"
    config.model.feed_forward_bias = False
    config.model.scale_attention = False
    config.model.scale_embedding = False
    config.model.output_scale = 512**-0.5
    config.optimizer.learning_rate = 1e-2
    config.optimizer.warmup_steps = 10_000
    config.optimizer.b2 = 0.999
    return config
