"""Experiments: one file a question, and the runner, statistics and report that they share. See README.md here."""
