"""A language model that solves tasks: "37+48=" goes on with "85", "twenty-four -> " with "vierundzwanzig".

python -m transformer.train --config=configs/prompts.py --workdir=runs/prompts
python -m transformer.evaluate --workdir=runs/prompts
echo "37+48=" | python -m transformer.generate --workdir=runs/prompts

Result, seed 0: 97.9 % of 2,634 unseen sums to 999 and all of 93 unseen number words, letter for letter, after 2,200
steps: 13 minutes on one core that other work shared.
"""

from ml_collections import ConfigDict

from transformer.config import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.task = "prompts"
    config.steps = 2200
    config.label_smoothing = 0.0
    config.data.name = "prompts"
    config.data.source = ""
    config.data.target = "text"
    config.data.tokenizer = "characters"
    config.data.vocab_size = 512
    config.data.max_len = 128
    config.data.buckets = (128,)
    config.data.batch_tokens = 4096
    config.model.family = "decoder_only"
    config.model.positions = "rotary"
    config.model.num_layers = 3
    config.model.d_model = 128
    config.model.d_ff = 512
    config.model.num_heads = 4
    config.model.norm = "pre"
    config.model.activation = "gelu"
    config.model.dropout = 0.0
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 200
    config.optimizer.final_rate = 0.01
    return config
