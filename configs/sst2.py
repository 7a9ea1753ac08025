"""Sentiment of movie reviews, sentence by sentence (SST-2, Socher et al. 2013), from scratch on its 6,920 sentences.

python -m transformer.train --config=configs/sst2.py --config.data.dir=FOLDER --workdir=runs/sst2
python -m transformer.evaluate --workdir=runs/sst2 --baselines
"""

from ml_collections import ConfigDict

from transformer.config import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.task = "text_classification"
    config.steps = 600
    config.label_smoothing = 0.1
    config.data.name = "sst2"
    config.data.target = "text"
    config.data.tokenizer = "words"
    config.data.vocab_size = 16_000
    config.data.max_len = 64
    config.data.batch_tokens = 2048
    config.data.buckets = (16, 24, 32, 64)
    config.model.family = "encoder_only"
    config.model.num_layers = 1
    config.model.d_model = 128
    config.model.d_ff = 128
    config.model.num_heads = 4
    config.model.norm = "pre"
    config.model.positions = "none"
    config.model.dropout = 0.5
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 50
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.1
    return config
