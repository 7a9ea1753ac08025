"""How examples become batches: each kind a pure function of (seed, step). One file a kind."""
