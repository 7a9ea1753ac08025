"""A small language model of the docstrings of the installed scientific stack, context 512.

    python -m transformer.train --config=configs/docstrings.py --workdir=runs/docstrings
    python -m transformer.evaluate --workdir=runs/docstrings

Figures compare only within one fingerprint of the data (`data.json` in the workdir): it follows the installed versions.
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
    config.data.batch_tokens = 4096
    config.model.family = "decoder_only"
    config.model.norm = "pre"
    config.model.num_layers = 4
    config.model.d_model = 128
    config.model.d_ff = 512
    config.model.num_heads = 4
    config.model.dropout = 0.0
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 100
    return config
