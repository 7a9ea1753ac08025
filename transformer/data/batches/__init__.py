"""How examples become batches, one file per kind; every batch is a pure function of (seed, step)."""
