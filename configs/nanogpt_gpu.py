"""A GPT of characters on Tiny Shakespeare: nanoGPT's recipe for one GPU, which quotes a best validation loss of 1.4697.

    python -m transformer.train --config=configs/nanogpt_gpu.py --config.data.target=input.txt --workdir=runs/nanogpt

input.txt is any text; the first 90 % of its characters train, the last 10 % validate, all of them at each evaluation
(nanoGPT takes samples). Not as there: dropout is on embeddings and sublayer outputs, not on attention weights; norms
have biases; and the table has 259 rows that the text never uses (without both, 10,745,088 parameters, as there).
`python -m experiments.run accelerator` trains it beside its other sections. Not trained here: two cores are too few.
"""

from ml_collections import ConfigDict

from transformer.config import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.task = "language_model"
    config.steps = 5000
    config.label_smoothing = 0.0
    config.data.name = "text"
    config.data.source = ""
    config.data.target = "input.txt"
    config.data.tokenizer = "characters"
    config.data.vocab_size = 512
    config.data.max_len = 256
    config.data.buckets = (256,)
    config.data.batch_tokens = 16_384
    config.model.family = "decoder_only"
    config.model.positions = "learned"
    config.model.max_positions = 256
    config.model.num_layers = 6
    config.model.d_model = 384
    config.model.d_ff = 1536
    config.model.num_heads = 6
    config.model.norm = "pre"
    config.model.norm_eps = 1e-5
    config.model.activation = "gelu"
    config.model.feed_forward_bias = False
    config.model.scale_embedding = False
    config.model.initialization = "depth_scaled"
    config.model.dropout = 0.2
    config.model.dtype = "bfloat16"
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.final_rate = 0.1
    config.optimizer.b2 = 0.99
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.1
    config.logging.evaluate_every = 250
    config.logging.checkpoint_every = 1000
    return config
