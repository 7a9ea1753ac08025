"""A research codebase for Transformers in JAX and Flax.

    run = transformer.load_run("runs/first")
    run.generate(["four hours"], beam=4), run.predict(["four hours"]), run.evaluate("test"), run.attention("four hours")

Axis legend, used in every signature and docstring:
B batch · L query length · S key length · D d_model · H heads · G key/value heads · K head_dim ·
M value dim of a head · F d_ff · V vocabulary · N layers
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformer.runs import load_run

__all__ = ["load_run"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name != "load_run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Imported here because it imports JAX, and errors on a command line should come at once.
    from transformer.runs import load_run

    return load_run
