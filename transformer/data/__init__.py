"""Examples and batches. Each of these imports only those before it: caching, builder, builtin, sources, tokenizers,
batches. None of them imports models, training or TensorFlow."""
