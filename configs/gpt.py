"""A GPT of characters on Tiny Shakespeare: the size and the tokens of nanoGPT's recipe for a CPU.

    python -m transformer.train --config=configs/gpt.py --config.data.target=input.txt --workdir=runs/gpt
    python -m transformer.evaluate --workdir=runs/gpt --split=validation

input.txt is any text; the first 90 % of its characters train, the last 10 % validate.

Result, seed 0: 1.758 nats a character over all 111,539 of validation, after 2,000 steps of 12 x 64 characters: four
minutes on one core that other work shared. With nanoGPT's own settings (--config.optimizer.learning_rate=1e-3
--config.optimizer.final_rate=0.1 --config.model.norm_type=layer) 1.877; nanoGPT quotes 1.88 from a sample, and a
PyTorch run of its recipe gives 1.910 over the whole part. Characters' frequencies alone give 3.348. 804,096 parameters
as there, and 33,152 in rows of the vocabulary that this text never uses (the bytes that spell unseen characters).
"""

from ml_collections import ConfigDict

from transformer.config import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.task = "language_model"
    config.steps = 2000
    config.label_smoothing = 0.0
    config.data.name = "text"
    config.data.source = ""
    config.data.target = "input.txt"
    config.data.tokenizer = "characters"
    config.data.vocab_size = 512
    config.data.max_len = 64
    config.data.buckets = (64,)
    config.data.batch_tokens = 768
    config.data.row_multiple = 4
    config.model.family = "decoder_only"
    config.model.positions = "learned"
    config.model.max_positions = 64
    config.model.num_layers = 4
    config.model.d_model = 128
    config.model.d_ff = 512
    config.model.num_heads = 4
    config.model.norm = "pre"
    config.model.norm_type = "rms"
    config.model.norm_eps = 1e-5
    config.model.activation = "gelu"
    config.model.feed_forward_bias = False
    config.model.scale_embedding = False
    config.model.initialization = "depth_scaled"
    config.model.dropout = 0.0
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 4e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.final_rate = 0.01
    config.optimizer.b2 = 0.99
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.1
    config.logging.checkpoint_every = 1000
    return config
