"""A research codebase for Transformers in JAX and Flax.

Axis legend, used in every signature and docstring:
B batch · L query length · S key length · D d_model · H heads · G key/value heads · K head_dim ·
M value dim of a head · F d_ff · V vocabulary · N layers
"""

__version__ = "0.1.0"
