"""Hourly transformer temperatures (ETTh1, Zhou et al. 2021), the next 96 hours of seven variables: PatchTST/42.

    python -m transformer.train --config=configs/ett.py --config.data.dir=FOLDER --workdir=runs/ett
    python -m transformer.evaluate --workdir=runs/ett --baselines

FOLDER holds ETTh1.csv.

Result, seed 0: 0.381 MSE and 0.402 MAE on the test part after 1,200 steps of 128
windows. A linear map (least squares, ridge chosen on validation) has 0.370 / 0.391, the last value repeated 1.294 /
0.713; published are 0.375 (PatchTST/42, DLinear), 0.370 (PatchTST/64) and 1.295 for the last value.
"""

from ml_collections import ConfigDict

from transformer.config import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.task = "forecasting"
    config.steps = 1200
    config.label_smoothing = 0.0
    config.data.name = "ett"
    config.data.max_len = 336
    config.data.horizon = 96
    config.data.batch_tokens = 128
    config.data.buckets = (336,)
    config.model.family = "forecaster"
    config.model.inputs = "series"
    config.model.patch_size = 16
    config.model.patch_stride = 8
    config.model.positions = "learned"
    config.model.max_positions = 64
    config.model.num_layers = 3
    config.model.d_model = 16
    config.model.d_ff = 128
    config.model.num_heads = 4
    config.model.norm = "pre"
    config.model.activation = "gelu"
    config.model.attention_bias = True
    config.model.dropout = 0.3
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.logging.evaluate_every = 100
    return config
