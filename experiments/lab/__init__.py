"""The engine of the experiments: sweeps, budgets, workers, statistics and reports."""
