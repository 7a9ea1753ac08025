"""python -m transformer.describe --config=configs/quantities.py [--config.key=value ...]

Prints the parameters by module, the attention backend of each layer with the reason why, and `{"parameters": N}` as
its last line. Nothing is allocated.
"""

import json
from collections import Counter
from typing import Any, cast

from absl import flags

from transformer import command_line
from transformer.config import Config

FLAGS = flags.FLAGS


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter. A vocabulary that only training will know counts as `data.vocab_size`."""
    import jax

    from transformer.tasks import task_class

    class Vocabulary:
        vocab_size = config.model.vocab_size or config.data.vocab_size

    task = task_class(config.task)(config, cast(Any, Vocabulary()))
    tree = jax.eval_shape(task.init, jax.random.key(0))["params"]
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(str(key.key) for key in path): leaf.shape for path, leaf in flat}


def table(config: Config, depth: int = 2) -> list[tuple[str, int]]:
    """(module, parameters) for modules down to `depth`, in the order of the model."""
    import math

    counts: Counter[str] = Counter()
    for path, shape in shapes(config).items():
        counts["/".join(path.split("/")[:depth])] += math.prod(shape)
    return sorted(counts.items())


def backends(config: Config) -> list[str]:
    """Which attention backend trains each layer on this device, for the longest batch, and why; a line each."""
    import jax
    import jax.numpy as jnp

    from transformer.model.attention import choose
    from transformer.model.layers import key_heads
    from transformer.model.masks import band
    from transformer.model.stacks import windows

    model, length = config.model, max(config.data.buckets)
    if model.family.startswith("recurrent"):
        return [f"no self-attention: {model.cell} cells, one token after another"]
    rows = max(1, config.data.batch_tokens // length)

    def array(heads: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, length, heads, model.d_model // model.num_heads), jnp.float32)

    q, k = array(model.num_heads), array(key_heads(model))
    stacks = {"decoder": True} if model.family == "decoder_only" else {"encoder": False, "decoder": True}
    lines = []
    for stack, causal in stacks.items():
        for i, window in enumerate(windows(model)):
            choice = choose(q, k, k, band(causal, window), segments=True)
            kind = "full" if window is None else f"window {window}"
            lines.append(f"{stack} layer {i}: {kind}, {choice.backend}: {choice.reason}")
    return [f"self-attention of {rows} rows of {length} tokens on {jax.default_backend()}:", *lines]


def main() -> None:
    """The verb, with its flags parsed."""
    config = command_line.config_from_flags()
    rows = table(config)
    total = sum(count for _, count in rows)
    width = max(len(name) for name, _ in [*rows, ("module", 0)])
    print(f"{'module':{width}}  {'parameters':>14}   share")
    for name, count in rows:
        print(f"{name:{width}}  {count:14,}  {count / total:6.1%}")
    print(f"{'total':{width}}  {total:14,}")
    if not config.model.vocab_size:
        print(f"vocabulary: data.vocab_size={config.data.vocab_size}; a tokenizer may come out smaller")
    print("\n".join(backends(config)))
    print(json.dumps({"parameters": total}))


if __name__ == "__main__":
    command_line.define_config()
    flags.declare_key_flag("config")
    command_line.run(main)
