"""Examples and batches. Each of these imports only those before it: caching, store, builder, builtin, sources,
tokenizers, batches. None of them imports models, training or TensorFlow."""
