"""Examples and batches: where examples come from, how texts become tokens, and what a batch is.

Each of these imports only those before it: caching, builder, builtin, sources, tokenizers, batches. None of them knows
models or training, and none imports TensorFlow.
"""
