"""Spelled-out quantities, English to German: the default, generated on the spot.

    python -m transformer.train --config=configs/quantities.py --workdir=runs/quantities
    python -m transformer.evaluate --workdir=runs/quantities

0.3 M parameters, post-norm as in the paper. No dropout and no label smoothing: two passes over the data leave nothing
to regularise. Sized on seeds 101 and up, which no report uses.
"""

from ml_collections import ConfigDict

from transformer.config import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.steps = 1000
    config.label_smoothing = 0.0
    config.data.name = "quantities"
    config.data.vocab_size = 1536
    config.data.max_len = 40  # the longest training pair has 25 tokens; `longer` goes past twice that
    config.data.batch_tokens = 1024
    config.data.buckets = (16, 24, 40)
    config.model.num_layers = 2
    config.model.d_model = 64
    config.model.d_ff = 256
    config.model.num_heads = 2
    config.model.dropout = 0.0
    config.model.max_positions = 40
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 5e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.final_rate = 0.01
    config.logging.log_every = 100
    config.logging.checkpoint_every = 1000
    config.logging.keep = 1
    return config
