"""Positions as a ramp: the position, over a length, is added to every feature."""

from transformer.model.positions import POSITIONS, NoPositions


class Ramp(NoPositions):
    def __call__(self, x, positions):  # [B, L, D], [B, L]
        return x + (positions[..., None] / self.config.extra.get("length", 100)).astype(x.dtype)


POSITIONS["ramp"] = Ramp
