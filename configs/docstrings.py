from transformer.config import defaults


def get_config():
    config = defaults()
    config.task = "language_model"
    config.steps = 1000
    config.label_smoothing = 0.0
    config.data.name = "docstrings"
    config.data.target = "text"
    config.data.vocab_size = 4096
    config.data.max_len = 512
    config.data.buckets = (512,)
    config.data.batch_tokens = 4096
    config.model.family = "decoder_only"
    config.model.norm = "pre"
    config.model.num_layers = 4
    config.model.d_model = 128
    config.model.d_ff = 512
    config.model.num_heads = 4
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 100
    return config
