"""One budget for all variants of a sweep: how many steps each may take to spend what the reference spends."""

import math
from collections.abc import Mapping

from transformer.config import Config, override
from transformer.errors import UserError

# What is shared out equally -> how a report names it.
BUDGETS = {
    "steps": "steps",
    "tokens": "positions of all batches, padding included",
    "bytes": "bytes of training text",
    "flops": "training FLOPs, by formula",
    "seconds": "training time, by the steps timed in pilot runs",
}
MEASURED = ("bytes", "seconds")  # those whose price of a step is no formula


def step_bytes(config: Config) -> float:
    """Bytes of text (UTF-8, all sides) of a mean training step, by the tokenizer that the run would train.

    Texts that `data.max_len` leaves out do not count; those that it cuts count whole. UserError: the task reads no
    text.
    """
    from transformer.data.sources import load_source
    from transformer.data.tokenizers.training import load_or_train
    from transformer.tasks import task_class

    kind = task_class(config.task)
    if not kind.reads_text:
        raise UserError(f"task {config.task!r} reads no text: use another --budget than bytes")
    source = load_source(config.data)
    fields = kind.fields(config, source)
    tokenizer = load_or_train(source, config.data, fields, kind.extra_pieces(config))
    batches = kind(config, tokenizer).batches(source, "train")
    if batches.report["dropped"]:  # of pairs, `evaluated` has what training leaves out, but for this rule
        batches = kind(override(config, {"data.too_long": "drop"}), tokenizer).batches(source, "train")
    names = [source.field(field) for field in fields]
    texts, chosen = source.split("train"), batches.evaluated.tolist()
    chunks = (texts.many(chosen[start : start + 4096]) for start in range(0, len(chosen), 4096))
    whole = sum(len(text[name].encode()) for chunk in chunks for text in chunk for name in names)
    return whole / batches.steps_per_epoch


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


def with_steps(config: Config, steps: int) -> Config:
    """The config with other steps, and as large a share of them for the warm-up; schedules end with the steps."""
    warmup = max(1, round(config.optimizer.warmup_steps * steps / config.steps))
    return override(config, {"steps": steps, "optimizer.warmup_steps": warmup})


def equalise(
    configs: Mapping[str, Config], reference: str, budget: str, measured: Mapping[str, float] | None = None
) -> dict[str, Config]:
    """The variants with as many steps as the reference's budget buys them, rounded, and at least one.

    Args:
        configs: variant -> its config.
        reference: whose `steps` set the budget.
        budget: a row of BUDGETS.
        measured: variant -> seconds or bytes a step, for the budgets of MEASURED.
    """
    if budget == "steps":
        return dict(configs)
    if budget in MEASURED:
        assert measured is not None, "it is measured first"
        price = dict(measured)
    elif budget == "flops":
        price = {variant: step_flops(config) for variant, config in configs.items()}
    else:
        price = {variant: float(config.data.batch_tokens) for variant, config in configs.items()}
    whole = configs[reference].steps * price[reference]
    return {name: with_steps(config, max(1, round(whole / price[name]))) for name, config in configs.items()}
