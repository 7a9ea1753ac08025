from transformer.config import defaults


def get_config():
    config = defaults()
    config.steps = 400
    config.data.name = "quantities"
    config.data.vocab_size = 1024
    config.data.max_len = 64
    config.data.batch_tokens = 2048
    config.data.buckets = (32, 48, 64)
    config.model.num_layers = 2
    config.model.d_model = 128
    config.model.d_ff = 512
    config.model.num_heads = 4
    config.model.max_positions = 64
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 100
    config.logging.checkpoint_every = 400
    return config
