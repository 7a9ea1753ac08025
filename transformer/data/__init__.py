"""Examples and batches: sources (TFDS builders), tokenizers, and batches as a pure function of (seed, step).

Knows nothing of models or training. No TensorFlow is imported.
"""
