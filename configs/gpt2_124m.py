"""GPT-2, 124 M parameters (Radford et al. 2019), for training from scratch on any text.

    python -m transformer.describe --config=configs/gpt2_124m.py        # 124,439,808 parameters
    python -m transformer.train --config=configs/gpt2_124m.py --config.data.name=files --config.data.source= \
      --config.data.target=corpus.txt --workdir=runs/gpt2

A batch is 512 rows, near the half million tokens of GPT-3's smallest model and a power of two, so that it divides over
1, 2, 4, 8 and 16 devices, in 4 micro-batches too. Layers are neither scanned nor computed again: by the compiler's
roofline, scanning makes a step on an H100 half as long again, because what layers keep is copied into stacked arrays.
32 rows at a time in bfloat16 take 13.3 GB of work. Where that is too much, `--config.model.scan_layers=True
--config.model.remat=dots` takes less. Weights of the released model: `transformer.model.pretrained.load(folder)`. Not
trained here: two cores are too few.
"""

from ml_collections import ConfigDict

from transformer.config import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.task = "language_model"
    config.label_smoothing = 0.0
    config.steps = 600_000
    config.data.name = "docstrings"
    config.data.target = "text"
    config.data.vocab_size = 50_257
    config.data.max_len = 1024
    config.data.buckets = (1024,)
    config.data.batch_tokens = 524_288
    config.model.family = "decoder_only"
    config.model.positions = "learned"
    config.model.max_positions = 1024
    config.model.vocab_size = 50_257
    config.model.num_layers = 12
    config.model.d_model = 768
    config.model.d_ff = 3072
    config.model.num_heads = 12
    config.model.norm = "pre"
    config.model.norm_eps = 1e-5
    config.model.activation = "gelu_tanh"
    config.model.attention_bias = True
    config.model.scale_embedding = False
    config.model.initialization = "depth_scaled"
    config.model.dropout = 0.0
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 6e-4
    config.optimizer.warmup_steps = 2000
    config.optimizer.b2 = 0.95
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.1
    config.optimizer.max_spike = 10.0
    return config
