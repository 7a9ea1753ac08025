"""The summary line of a docstring from its body, on what is installed here.

    python -m transformer.train --config=configs/leads.py --workdir=runs/leads
    python -m transformer.train --config=configs/summarization.py --config.init_from=runs/leads --workdir=runs/summaries
    python -m transformer.evaluate --workdir=runs/summaries --baselines

Without init_from it begins from nothing, and the first command is left out.

Result, seed 0, 11 minutes of one core of an AMD EPYC after 45 minutes of leads: ROUGE-1/2/L 14.4 / 2.0 / 13.5 on the
300 test pairs; below the first sentence of the body (20.6 / 5.7 / 17.2), above the whole body in ROUGE-L (12.8 / 5.1 /
10.3), and above a run from nothing (10.7 / 0.8 / 9.7, 2,000 steps). It learns how summaries sound before it learns
what they keep of the body: 2,600 steps at a rate of 1.5e-3 have a lower loss (4.86 against 5.20 nats) and a lower
ROUGE-L (12.6; by beam search, 4 wide, 11.8), 400 steps at 1e-4 have lost the copying and not found the style (11.2,
validation).
"""

from ml_collections import ConfigDict

from transformer.config import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.task = "summarization"
    config.steps = 1200
    config.data.name = "summaries"
    config.data.source = "body"
    config.data.target = "summary"
    config.data.vocab_size = 4096
    config.data.max_len = 256
    config.data.batch_tokens = 2048
    config.data.buckets = (32, 64, 128, 256)
    config.model.num_layers = 3
    config.model.d_model = 128
    config.model.d_ff = 512
    config.model.num_heads = 4
    config.model.norm = "pre"
    config.model.dropout = 0.2
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 100
    config.logging.evaluate_every = 200
    config.logging.checkpoint_every = 200
    return config
