"""Generation: greedily, by beam search or by sampling, in slices of fixed shape. A row does not depend on the other
rows of its slice, and every length has one shape, so that an output is the same whatever the batch size, the number of
devices and the other lines."""
