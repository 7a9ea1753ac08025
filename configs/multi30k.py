from transformer.config import defaults


def get_config():
    config = defaults()
    config.steps = 6400
    config.label_smoothing = 0.1
    config.data.name = "multi30k"
    config.data.vocab_size = 6000
    config.data.max_len = 96
    config.data.buckets = (12, 16, 20, 24, 32, 48, 96)
    config.model.num_layers = 4
    config.model.d_model = 128
    config.model.d_ff = 256
    config.model.num_heads = 4
    config.model.dropout = 0.3
    config.optimizer.learning_rate = 5e-3
    config.optimizer.warmup_steps = 2000
    config.logging.checkpoint_every = 160
    config.logging.evaluate_every = 800
    config.logging.keep = 10
    return config
