"""The summary line of a docstring from its body, on what is installed here.

python -m transformer.train --config=configs/summarization.py --workdir=runs/summaries
python -m transformer.evaluate --workdir=runs/summaries --baselines
"""

from ml_collections import ConfigDict

from transformer.config import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.task = "summarization"
    config.steps = 3000
    config.data.name = "summaries"
    config.data.source = "body"
    config.data.target = "summary"
    config.data.vocab_size = 4096
    config.data.max_len = 128
    config.data.batch_tokens = 2048
    config.data.buckets = (32, 64, 128)
    config.model.positions = "rotary"
    config.model.num_layers = 3
    config.model.d_model = 128
    config.model.d_ff = 512
    config.model.num_heads = 4
    config.model.norm = "pre"
    config.model.dropout = 0.2
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 300
    return config
