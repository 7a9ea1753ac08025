"""How long a program's longest chain of loops is, which no number of devices shortens."""

from typing import Any


def loops(jaxpr: Any) -> int:
    """Iterations of the longest chain of loops in a program, of which each needs what the one before gives.

    Loops side by side count once, loops inside loops as often as they run. ValueError: a loop whose length the program
    does not know.
    """
    chain: dict[Any, int] = {}
    for equation in jaxpr.eqns:
        if equation.primitive.name == "while":
            raise ValueError(f"a loop without a length: {equation}")
        inner = [loops(getattr(p, "jaxpr", p)) for p in _programs(equation.params)]
        own = max(inner, default=0)
        if equation.primitive.name == "scan":
            own = equation.params["length"] * max(1, own)
        before = max((chain.get(v, 0) for v in equation.invars if not hasattr(v, "val")), default=0)
        chain |= dict.fromkeys(equation.outvars, before + own)
    return max((chain.get(v, 0) for v in jaxpr.outvars if not hasattr(v, "val")), default=0)


def _programs(params: dict[str, Any]) -> list[Any]:
    """The programs inside an equation: bodies of loops, branches, calls."""
    each = [p for value in params.values() for p in (value if isinstance(value, (tuple, list)) else [value])]
    return [p for p in each if hasattr(p, "eqns")]
