"""python tests/training/meshes.py [--steps=50] [--eps=1e-6] [--layers=1] [--width=16] [--mesh="tensor 8"]

Trains a tiny model with dropout to copy, on fresh ragged batches, alone and on every mesh of simulated devices, with 1
and 4 micro-batches; prints the largest relative difference of a step's loss from that of one device.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from tests.training.tiny import MESHES, copied, on, tiny, train


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--eps", type=float, default=1e-6, help="of Adam")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--mesh", choices=MESHES, action="append", help="all, where none is named")
    arguments = parser.parse_args()
    size = {"model.num_layers": arguments.layers, "model.d_model": arguments.width, "model.d_ff": 2 * arguments.width}
    config = tiny(**size, **{"optimizer.eps": arguments.eps})

    def losses(accumulate: int, **mesh: object) -> np.ndarray:
        return train(on(config, accumulate=accumulate, **mesh), arguments.steps, copied)[1]

    alone = losses(1, data=1)
    print("| mesh | whole batches | 4 micro-batches |\n| --- | ---: | ---: |")
    meshes = {name: MESHES[name] for name in arguments.mesh or MESHES}
    for name, mesh in {"one device": {"data": 1}, **meshes}.items():
        apart = [np.max(np.abs(losses(parts, **mesh) / alone - 1)) for parts in (1, 4)]
        print(f"| {name} | {apart[0]:.1e} | {apart[1]:.1e} |", flush=True)


if __name__ == "__main__":
    main()
