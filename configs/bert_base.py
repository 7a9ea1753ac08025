"""BERT base, uncased (Devlin et al. 2019): 109,482,240 parameters, the pooler included.

    python -m transformer.describe --config=configs/bert_base.py

Weights of the released model: `transformer.model.pretrained.load(folder)`. Not trained here: two cores are too few;
configs/bert.py is the same kind at a size that they can train.
"""

from ml_collections import ConfigDict

from transformer.config import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.task = "masked_language_model"
    config.label_smoothing = 0.0
    config.steps = 1_000_000
    config.data.name = "docstrings"
    config.data.target = "text"
    config.data.tokenizer = "wordpiece"
    config.data.vocab_size = 30_522
    config.data.max_len = 512
    config.data.buckets = (512,)
    config.data.batch_tokens = 131_072
    config.model.family = "encoder_only"
    config.model.positions = "learned"
    config.model.max_positions = 512
    config.model.vocab_size = 30_522
    config.model.num_layers = 12
    config.model.d_model = 768
    config.model.d_ff = 3072
    config.model.num_heads = 12
    config.model.norm_eps = 1e-12
    config.model.activation = "gelu"
    config.model.attention_bias = True
    config.model.scale_embedding = False
    config.model.embedding_norm = True
    config.model.segment_types = 2
    config.model.pooling = "pooler"
    config.model.initialization = "depth_scaled"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 10_000
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-6
    config.optimizer.weight_decay = 0.01
    return config
