"""Which language is it? Names of territories, languages, currencies, months and days, from Babel's CLDR.

python -m transformer.train --config=configs/languages.py --workdir=runs/languages
python -m transformer.evaluate --workdir=runs/languages --baselines
echo "donderdag" | python -m transformer.generate --workdir=runs/languages

Result, seed 0: 83.4 % of 3,960 unseen names in 32 languages after 1,500 steps, two minutes on one core.
Logistic regression on one to three characters reaches 92.3 %, on words and pairs of them 58.4 %, the most frequent
class 4.4 %.
"""

from ml_collections import ConfigDict

from transformer.config import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.task = "text_classification"
    config.steps = 1500
    config.label_smoothing = 0.0
    config.data.name = "languages"
    config.data.target = "text"
    config.data.tokenizer = "characters"
    config.data.vocab_size = 4096
    config.data.max_len = 64
    config.data.batch_tokens = 2048
    config.data.buckets = (16, 32, 64)
    config.model.family = "encoder_only"
    config.model.num_layers = 2
    config.model.d_model = 64
    config.model.d_ff = 256
    config.model.num_heads = 4
    config.model.norm = "pre"
    config.model.dropout = 0.1
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 100
    return config
