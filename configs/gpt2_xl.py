"""GPT-2 XL (Radford et al. 2019): 1,557,611,200 parameters, in bfloat16. Layers are computed again in the backward
pass, but not attention: on `v5e:16x16` with fsdp=16, data=16 that takes 3.93 GB of work a device against 2.16 GB, by
the compiler, and its kernel runs forward once.

    python -m transformer.describe --config=configs/gpt2_xl.py
    python -m transformer.describe --config=configs/gpt2_xl.py --topology=h100:1x1x8 --mesh=fsdp=8
    python -m transformer.describe --config=configs/gpt2_xl.py --topology=v5e:16x16 --mesh=data=16,fsdp=16

Its 25 heads divide over no power of two, so it is split by fsdp. Not trained here: two cores are too few.
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
    config.model.num_layers = 48
    config.model.d_model = 1600
    config.model.d_ff = 6400
    config.model.num_heads = 25
    config.model.norm = "pre"
    config.model.norm_eps = 1e-5
    config.model.activation = "gelu_tanh"
    config.model.attention_bias = True
    config.model.scale_embedding = False
    config.model.initialization = "depth_scaled"
    config.model.dtype = "bfloat16"
    config.model.remat = "attention"
    config.model.scan_layers = True
    config.model.dropout = 0.0
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup_steps = 2000
    config.optimizer.b2 = 0.95
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.1
    return config
