"""The big model of "Attention Is All You Need" (Vaswani et al. 2017, Table 3): 214,171,648 parameters.

    python -m transformer.describe --config=configs/paper_big.py

The paper trains 300,000 steps and gives 28.4 BLEU on newstest2014 of WMT14 English-German. Not trained here: two cores
are too few.
"""

from ml_collections import ConfigDict

from transformer.config import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.steps = 300_000
    config.data.name = "wmt17_translate/de-en"
    config.data.vocab_size = 37_000
    config.data.batch_tokens = 25_000
    config.model.vocab_size = 37_000
    config.model.d_model = 1024
    config.model.d_ff = 4096
    config.model.num_heads = 16
    config.model.dropout = 0.3
    config.optimizer.learning_rate = (1024 * 4000) ** -0.5
    config.logging.keep = 20
    return config
