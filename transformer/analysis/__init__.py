"""Looking at trained models: figures from arrays."""
