from transformer.config import defaults


def get_config():
    config = defaults()
    config.steps = 4800
    config.data.name = "multi30k"
    config.data.vocab_size = 6000
    config.data.max_len = 96
    config.data.batch_tokens = 2048
    config.data.buckets = (12, 16, 20, 24, 32, 48, 96)
    config.model.num_layers = 3
    config.model.d_model = 256
    config.model.d_ff = 512
    config.model.num_heads = 4
    config.model.norm = "pre"
    config.model.dropout = 0.2
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 500
    config.logging.checkpoint_every = 240
    config.logging.evaluate_every = 480
    config.logging.keep = 5
    return config
