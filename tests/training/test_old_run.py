"""A run that was trained and saved with Orbax's first interface (item handlers), and goes on with its second.

`old_run.tar.gz` holds what the project wrote then, of two scanned layers after four steps: config.json, the checkpoint,
and, of every array that the code of then restored from it, the type, the shape and the SHA-256 of its bytes.
"""

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.errors import UserError
from transformer.runs import read_config
from transformer.tasks import task_class
from transformer.training import optim, sharding, step
from transformer.training.checkpoint import Checkpoints


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with tarfile.open(Path(__file__).parent / "old_run.tar.gz") as file:
        file.extractall(tmp_path, filter="data")
    return tmp_path / "old_run"


def _like(old: Path) -> step.State:
    """The state that today's code makes of the old run's config, over all devices."""
    config = read_config(old)
    task = task_class(config.task)(config, None)
    layout = sharding.make_layout(config, axes=task.axes)
    create = step.make_init(task.init, optim.make_optimizer(config, task.axes), layout)
    return layout.abstract(jax.eval_shape(create, jnp.uint32(0)))


def _arrays(tree: Any) -> dict[str, list[Any]]:
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        sharding.path_of(path): [
            str(x.dtype), list(x.shape), hashlib.sha256(np.asarray(x).tobytes()).hexdigest()[:16]
        ]
        for path, x in flat
    }  # fmt: skip


def test_every_array_is_restored_bit_for_bit(old: Path) -> None:
    expected = json.loads((old / "restored.json").read_text())
    like, checkpoints = _like(old), Checkpoints(old)
    assert (checkpoints.latest, checkpoints.best) == (4, 4)
    state = checkpoints.restore(like)
    found = _arrays(state)
    assert found == expected
    assert len(found) == 72  # parameters, two moments, counters
    params = checkpoints.restore_params(like.params)
    assert _arrays({"params": params}) == {name: what for name, what in expected.items() if name.startswith("params/")}
    assert all(
        x.sharding == place.sharding for x, place in zip(*map(jax.tree.leaves, (params, like.params)), strict=True)
    )
    jax.tree.map(np.testing.assert_array_equal, checkpoints.average_params(like.params, 1), params)
    checkpoints.close()


def test_old_and_new_lie_in_one_folder(old: Path) -> None:
    """They are counted, pruned, kept as the best and averaged together."""
    like, checkpoints = _like(old), Checkpoints(old, keep=1, owner=True)
    state = checkpoints.restore(like)

    def later(number: int) -> step.State:
        return jax.tree.map(lambda x: x + number, state)._replace(step=jnp.int32(number))

    checkpoints.save(5, later(5), {})
    checkpoints.set_loss(5, 9.0)
    checkpoints.finish()
    assert checkpoints.steps == [4, 5]
    assert checkpoints.best == 4  # its loss was 0.12
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(like), later(5))
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(like, 4), state)
    mean = jax.tree.map(lambda x: ((np.float64(x) + np.float64(x + 5)) / 2).astype(x.dtype), state.params)
    jax.tree.map(np.testing.assert_array_equal, checkpoints.average_params(like.params, 2), mean)
    checkpoints.close()

    checkpoints = Checkpoints(old, keep=1, owner=True)
    assert (checkpoints.steps, checkpoints.best) == ([4, 5], 4)
    checkpoints.save(6, later(6), {})
    checkpoints.set_loss(6, 0.01)
    checkpoints.finish()
    assert checkpoints.steps == [6]
    assert [path.name for path in (old / "checkpoints").iterdir()] == ["6"]
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(like), later(6))
    checkpoints.close()


def test_one_wrong_bit_in_an_old_checkpoint_is_seen(old: Path) -> None:
    largest = max((old / "checkpoints").rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    checkpoints = Checkpoints(old)
    with pytest.raises(UserError, match=r"step 4 .* is damaged"):
        checkpoints.restore(_like(old))
    checkpoints.close()
