"""How a trained task turns lines into lines: greedily, by beam search or by sampling, in slices of fixed shape.

What a slice computes for a row does not depend on the other rows, and a length has one shape, so that an output is the
same bytes whatever the batch size, the number of devices and the other lines.
"""
