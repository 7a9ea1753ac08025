"""Analysis of trained models: attention maps (attention), statistics of heads (heads), figures (plots)."""
