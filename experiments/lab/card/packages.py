"""What this machine lacks of what the sections need."""

import importlib.util
from pathlib import Path

from experiments.lab.card import recipe

# Module -> what it is for. A section that needs one says so in its rows, and the others are measured.
PACKAGES = {
    ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12"): "the extra `gpu` (jax[cuda13]): without it JAX sees no GPU, "
    "and everything is done at toy size on the processor, whose figures mean nothing",
    (
        "tokamax",
    ): "the extra `kernels` (tokamax, for Python 3.12 and later): no window and no full attention by it, and "
    "calls that only it takes go to our own tiles",
    ("torch",): "torch: PyTorch's GPT-2 is not timed",
}
DRIVER = Path("/proc/driver/nvidia/version")


def missing() -> list[str]:
    """A sentence for each package, driver or file that is not here."""
    found = [f"{what}." for names, what in PACKAGES.items() if not any(map(_is_there, names))]
    if not DRIVER.exists():
        found.insert(0, "an NVIDIA driver: everything is done at toy size, and its figures mean nothing.")
    if recipe.text() is None:
        found.append(
            f"Tiny Shakespeare: nanoGPT's recipe is not trained. Put it at {recipe.PLACES[0]}, or set "
            f"{recipe.VARIABLE} to its path."
        )
    return found


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # not even its package
        return False
