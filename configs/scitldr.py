"""One-line summaries of scientific abstracts (SciTLDR, Cachola et al. 2020), from scratch on its 1,992 pairs.

python -m transformer.train --config=configs/scitldr.py --config.data.dir=FOLDER --workdir=runs/scitldr
python -m transformer.evaluate --workdir=runs/scitldr --baselines
"""

from ml_collections import ConfigDict

from transformer.config import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.task = "summarization"
    config.steps = 800
    config.data.name = "scitldr"
    config.data.source = "abstract"
    config.data.target = "summary"
    config.data.vocab_size = 4096
    config.data.max_len = 384
    config.data.batch_tokens = 3072
    config.data.buckets = (192, 256, 320, 384)
    config.model.positions = "rotary"
    config.model.num_layers = 3
    config.model.d_model = 128
    config.model.d_ff = 512
    config.model.num_heads = 4
    config.model.norm = "pre"
    config.model.dropout = 0.3
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 100
    return config
