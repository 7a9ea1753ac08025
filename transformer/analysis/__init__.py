"""Looking inside trained models: attention of any model (attention), heads in numbers (heads), figures (plots)."""
