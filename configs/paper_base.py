"""The base model of "Attention Is All You Need" (Vaswani et al. 2017, Table 3), on WMT17 English-German of TFDS.

    python -m transformer.describe --config=configs/paper_base.py       # 63,045,632 parameters
    python -m transformer.train --config=configs/paper_base.py --workdir=runs/base

The paper trains 100,000 steps of 25,000 source and 25,000 target tokens on eight P100 and gives 27.3 BLEU on
newstest2014 (beam 4, length penalty 0.6, the last five checkpoints averaged). Not trained here: two cores are too few.
It says 65 M parameters; 37,000 shared pieces, one table for both languages and the output, and no biases in attention
give 63.0 M.
"""

from ml_collections import ConfigDict

from transformer.config import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.steps = 100_000
    config.data.name = "wmt17_translate/de-en"
    config.data.vocab_size = 37_000
    config.data.batch_tokens = 25_000
    config.model.vocab_size = 37_000
    config.optimizer.learning_rate = (512 * 4000) ** -0.5
    config.logging.keep = 5
    return config
