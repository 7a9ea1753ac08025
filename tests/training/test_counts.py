"""A whole run by `transformer.train`, counted: what its loop compiles, what comes back from the devices and when, and
what goes to them. The counts are the same on every machine.

Counted are compilations (JAX's own events), calls of the step's program, calls of `Layout.place`,
`jax.block_until_ready`, and each time that the value of a device's array is asked for: `jax.device_get`, `float`,
`int`, `bool`, `np.asarray` and printing all read `_value`, and so do those of any library."""

import collections
import itertools
import random
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer import train as verb
from transformer.config import Config, DataConfig, LoggingConfig, MeshConfig, ModelConfig, OptimizerConfig
from transformer.training.profiling import Program
from transformer.training.sharding import Layout

STEPS, EVERY = 36, 6
COMPILATION = "/jax/core/compile/backend_compile_duration"


class Event(NamedTuple):
    what: str  # "dispatched", "compiled", "read", "waited", "placed"
    of: Any  # the shapes of a batch, the name of a function, the number and size of an array


class Counted:
    """What happened in a run, in order; and the arrays of each step's metrics, by the step's index."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.metrics: list[list[Any]] = []  # held, so that no array of another step is taken for one of them
        self.unplaced: list[str] = []

    def add(self, what: str, of: Any) -> None:
        self.events.append(Event(what, of))

    @property
    def loop(self) -> list[list[Event]]:
        """What followed the dispatch of each step but the last, until that of the next, which is not included."""
        at = [index for index, event in enumerate(self.events) if event.what == "dispatched"]
        return [self.events[one:other] for one, other in itertools.pairwise(at)]


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Counted:
    """36 steps of a tiny translation model in two buckets, logged every sixth, on one device."""
    folder, drawn, found = tmp_path_factory.mktemp("data"), random.Random(1), Counted()
    for split, count in (("train", 240), ("validation", 9), ("test", 9)):
        lines = ["".join(drawn.choices("abcdef", k=drawn.choice((8, 25)))) for _ in range(count)]
        (folder / f"{split}.en").write_text("".join(f"{line}\n" for line in lines))
        (folder / f"{split}.de").write_text("".join(f"{line[::-1]}\n" for line in lines))
    config = Config(
        steps=STEPS,
        model=ModelConfig(num_layers=1, d_model=8, d_ff=12, num_heads=2, dropout=0.2),
        data=DataConfig(
            name="files", dir=str(folder), cache=str(folder / "cache"), vocab_size=280, max_len=32, batch_tokens=128,
            buckets=(16, 32),
        ),
        optimizer=OptimizerConfig(warmup_steps=5, learning_rate=1e-2),
        logging=LoggingConfig(log_every=EVERY, checkpoint_every=10 * STEPS),
        mesh=MeshConfig(data=1),
    )  # fmt: skip
    array: Any = type(jnp.zeros(()))
    run, place, value, block = Program.__call__, Layout.place, array._value.fget, jax.block_until_ready

    def dispatched(self: Program, state: Any, batch: Any, seed: Any) -> Any:
        found.add("dispatched", batch["inputs"].shape)
        found.unplaced += [name for name, x in batch.items() if not isinstance(x, jax.Array) or not x.committed]
        state, metrics = run(self, state, batch, seed)
        found.metrics.append(jax.tree.leaves(metrics))
        return state, metrics

    def placed(self: Layout, batch: Any) -> Any:
        found.add("placed", batch["inputs"].shape)
        return place(self, batch)

    def read(self: Any) -> np.ndarray:
        found.add("read", self)  # the array itself, so that no later one has its id
        return value(self)

    def waited(tree: Any) -> Any:
        found.add("waited", None)
        return block(tree)

    def heard(event: str, _: float, fun_name: str = "", **__: Any) -> None:
        if event == COMPILATION:
            found.add("compiled", fun_name)

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Program, "__call__", dispatched)
            patch.setattr(Layout, "place", placed)
            patch.setattr(array, "_value", property(read))
            patch.setattr(jax, "block_until_ready", waited)
            verb.train(config, folder / "run", quiet=True)
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    return found


def test_the_step_is_compiled_once_a_bucket_and_nothing_else_is(counted: Counted) -> None:
    """From the first step to the last; what a line and the start need is compiled before."""
    shapes = collections.Counter(event.of for event in counted.events if event.what == "dispatched")
    assert shapes.keys() == {(8, 16), (8, 32)}
    assert min(shapes.values()) >= STEPS // 3
    compiled = [event.of for part in counted.loop for event in part if event.what == "compiled"]
    assert compiled == ["jit(train_step)"] * len(shapes)


def test_only_metrics_come_back_and_only_of_the_step_before(counted: Counted) -> None:
    """So that the device has work while the host reads. Where a line is written, the metrics of its own step come as
    well, and the scalars that its learning rate is computed from; the host waits for nothing else, but after the first
    step, whose time is shown."""
    assert len(counted.loop) == STEPS - 1
    of_step = {id(x): (step, x) for step, metrics in enumerate(counted.metrics, start=1) for x in metrics}
    each = len(counted.metrics[0])
    for step, part in enumerate(counted.loop, start=1):
        read = [event.of for event in part if event.what == "read"]
        fetched = collections.Counter(of_step[id(x)][0] for x in read if id(x) in of_step)
        others = [x.size for x in read if id(x) not in of_step]
        wanted = {at for at, due in ((step - 1, (step - 1) % EVERY > 0), (step, step % EVERY == 0)) if due}
        assert fetched == dict.fromkeys(wanted, each), f"after step {step}"
        assert others == ([1, 1] if step % EVERY == 0 else []), f"after step {step}"
        assert sum(event.what == "waited" for event in part) == (step == 1)


def test_each_batch_goes_to_the_device_once(counted: Counted) -> None:
    """In the order of the steps, ahead of them, and the step finds all its arrays there. Evaluation comes later."""
    assert not counted.unplaced
    placed = [event.of for event in counted.events if event.what == "placed"]
    dispatched = [event.of for event in counted.events if event.what == "dispatched"]
    assert placed[:STEPS] == dispatched
    last = max(index for index, event in enumerate(counted.events) if event.what == "dispatched")
    assert sum(event.what == "placed" for event in counted.events[:last]) == STEPS
