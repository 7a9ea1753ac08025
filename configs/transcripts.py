"""Spoken strings of three to five digits to words, joined from the Free Spoken Digit Dataset: "three one four".

    python -m transformer.train --config=configs/transcripts.py --config.data.dir=FOLDER --workdir=runs/transcripts
    python -m transformer.evaluate --workdir=runs/transcripts

FOLDER is a clone of the dataset's repository (it holds recordings/). The decoder writes characters.

Result, seed 0: word error rate 3.8 % on 300 test strings, 87.3 % of them exact, after 2,000 steps: ten minutes on one
core that other work shared. Strings of a split are joined from recordings of that split alone.
"""

from ml_collections import ConfigDict

from transformer.config import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.task = "speech_recognition"
    config.steps = 2000
    config.data.name = "digit_strings"
    config.data.target = "text"
    config.data.tokenizer = "characters"
    config.data.vocab_size = 512
    config.data.augment = True
    config.data.max_len = 768
    config.data.batch_tokens = 8192
    config.data.buckets = (192, 256, 320, 448, 768)
    config.model.inputs = "frames"
    config.model.channels = 40
    config.model.num_layers = 3
    config.model.d_model = 96
    config.model.d_ff = 192
    config.model.num_heads = 4
    config.model.norm = "pre"
    config.model.activation = "gelu"
    config.model.dropout = 0.1
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 300
    config.optimizer.b2 = 0.98
    return config
