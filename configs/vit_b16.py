"""ViT-B/16 for ImageNet (Dosovitskiy et al. 2021): 86,567,656 parameters.

    python -m transformer.describe --config=configs/vit_b16.py

Weights of the released model: `transformer.model.pretrained.load(folder)`. Not trained here: two cores are too few;
configs/vit.py and configs/mnist.py are the same kind at sizes that they can train.
"""

from ml_collections import ConfigDict

from transformer.config import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.task = "image_classification"
    config.label_smoothing = 0.0
    config.steps = 90_000
    config.data.name = "imagenet2012"
    config.data.max_len = 197
    config.data.batch_tokens = 4096
    config.model.family = "encoder_only"
    config.model.inputs = "image"
    config.model.image_size = (224, 224)
    config.model.channels = 3
    config.model.patch_size = 16
    config.model.num_classes = 1000
    config.model.pooling = "first"
    config.model.positions = "learned"
    config.model.max_positions = 197
    config.model.num_layers = 12
    config.model.d_model = 768
    config.model.d_ff = 3072
    config.model.num_heads = 12
    config.model.norm = "pre"
    config.model.norm_eps = 1e-12
    config.model.activation = "gelu"
    config.model.attention_bias = True
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 10_000
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.3
    return config
