"""One budget for all variants of a sweep: how many steps each may take to spend what the reference spends."""

import math
from collections.abc import Mapping

from transformer.config import Config, override
from transformer.errors import UserError

# What is shared out equally -> how a report names it. Schedules end with the steps, whatever their number.
BUDGETS = {
    "steps": "steps",
    "tokens": "positions of all batches, padding included",
    "flops": "training FLOPs, by formula",
    "seconds": "training time, by the steps timed in pilot runs",
}


def step_flops(config: Config, shapes: Mapping[str, tuple[int, ...]] | None = None) -> float:
    """FLOPs of one training step on a batch of the longest bucket, by the formula of `training.flops`.

    Models that it does not count (recurrent ones, images, series) get 6 a parameter and position (Kaplan et al. 2020).
    A vocabulary that only training will know counts as `data.vocab_size`; `result.json` has the FLOPs of the real one.

    Args:
        config: of the run.
        shapes: path -> shape of every parameter; found by abstract evaluation, a second, where it is left out.
    """
    from transformer.tasks.untrained import longest_batch
    from transformer.training import flops

    if not config.model.vocab_size:  # only training will know it; at most so many
        config = override(config, {"model.vocab_size": config.data.vocab_size})
    if shapes is None:
        from transformer.describe import shapes as evaluated

        shapes = evaluated(config)
    length, rows = longest_batch(config)
    try:
        return flops.step_flops(config, dict(shapes), rows, length)
    except UserError:
        return 6.0 * sum(math.prod(shape) for shape in shapes.values()) * config.data.batch_tokens


def equalise(
    configs: Mapping[str, Config], reference: str, budget: str, seconds: Mapping[str, float] | None = None
) -> dict[str, Config]:
    """The variants with as many steps as the reference's budget buys them, rounded, and at least one.

    Args:
        configs: variant -> its config.
        reference: whose `steps` set the budget.
        budget: a row of BUDGETS.
        seconds: variant -> measured seconds a step, for the budget "seconds".
    """
    if budget == "steps":
        return dict(configs)
    if budget == "seconds":
        assert seconds is not None, "time is measured first"
        price = dict(seconds)
    elif budget == "flops":
        price = {variant: step_flops(config) for variant, config in configs.items()}
    else:
        price = {variant: float(config.data.batch_tokens) for variant, config in configs.items()}
    whole = configs[reference].steps * price[reference]
    return {
        variant: override(config, {"steps": max(1, round(whole / price[variant]))})
        for variant, config in configs.items()
    }
