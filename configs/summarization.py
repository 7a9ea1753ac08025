"""The summary line of a docstring from its body, on what is installed here.

python -m transformer.train --config=configs/summarization.py --workdir=runs/summaries
python -m transformer.evaluate --workdir=runs/summaries --baselines

Result, seed 0, 2,000 steps (half an hour of one core that other work shared): ROUGE-1/2/L 10.7 / 0.8 / 9.7 on the 300
test pairs, far below the first sentence of the body (20.6 / 5.7 / 17.2) and the whole body (12.8 / 5.1 / 10.3). Trained
on 7,903 pairs from nothing, it writes the sentences of a docstring and not of this one: validation loss 5.5 against 3.6
on training batches. It would take pretraining on running text, which was not tried.
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
