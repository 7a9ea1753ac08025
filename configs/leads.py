"""Passages of docstrings to their first sentences: what configs/summarization.py begins from.

python -m transformer.train --config=configs/leads.py --workdir=runs/leads
python -m transformer.evaluate --workdir=runs/leads --baselines
"""

from ml_collections import ConfigDict

from transformer.config import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.task = "summarization"
    config.steps = 6000
    config.data.name = "leads"
    config.data.source = "body"
    config.data.target = "summary"
    config.data.vocab_size = 4096
    config.data.max_len = 128
    config.data.batch_tokens = 2048
    config.data.buckets = (32, 64, 128)
    config.model.num_layers = 3
    config.model.d_model = 128
    config.model.d_ff = 512
    config.model.num_heads = 4
    config.model.norm = "pre"
    config.model.dropout = 0.1
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 300
    config.logging.evaluate_every = 1000
    return config
