"""A vocabulary whose tables are rounded up: what stands in the rows without a token has no influence anywhere."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.model.test_pretrained import SMALL, same, some_model
from tests.training.tiny import on, ragged, tiny, train
from transformer.config import Config, override
from transformer.decoding.beam import beam
from transformer.decoding.greedy import greedy
from transformer.decoding.sampling import sample, sentence_keys
from transformer.errors import UserError
from transformer.model.embedders import TABLES, TokenEmbedder, table_rows, unused_parameters
from transformer.model.pretrained import ARCHITECTURES, load, parameter_shapes, save
from transformer.model.tokens import Tokens
from transformer.tasks import TASKS
from transformer.training.losses import output_cross_entropy

ROOT = Path(__file__).parents[2]
V, ROWS = 23, 32
SIZES = {"num_layers": 1, "d_model": 12, "d_ff": 20, "num_heads": 3, "vocab_size": V}
# Task, and what the family needs: tied and untied tables, a bias, all families that read tokens.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "encoder_decoder": ("translation", {}),
    "decoder_only": ("language_model", {"tied": False, "output_bias": True}),
    "encoder_only": ("masked_language_model", {"output_transform": True, "output_bias": True, "segment_types": 2}),
    "recurrent_encoder_decoder": ("translation", {"positions": "none", "tied": False}),
    "recurrent_language_model": ("language_model", {"positions": "none", "output_bias": True}),
}


def _task(family: str, multiple: int) -> Any:
    name, changes = CASES[family]
    keys = SIZES | changes | {"family": family, "vocab_multiple": multiple}
    config = override(Config(), {"task": name} | {f"model.{key}": value for key, value in keys.items()})
    return TASKS[name](config, SimpleNamespace(vocab_size=V, bos_id=1, eos_id=2))  # type: ignore[arg-type]


def _filled(params: Any, wide: Any, seed: int = 0) -> Any:
    """The parameters with tables of as many rows as `wide` has; those beyond the vocabulary are large numbers."""
    random = np.random.default_rng(seed)

    def fill(path: Any, x: Any, like: Any) -> Any:
        more = random.normal(5, 30, (like.shape[0] - x.shape[0], *x.shape[1:])) if x.ndim else None
        return x if x.shape == like.shape else jnp.concatenate([x, jnp.asarray(more, x.dtype)])

    return jax.tree_util.tree_map_with_path(fill, params, wide)


def _pair(family: str) -> tuple[Any, Any, Any, Any]:
    """A task with 23 rows and its parameters, and the same with 32 rows, whose last nine are filled."""
    plain, wide = _task(family, 1), _task(family, 16)
    params = jax.jit(plain.init)(jax.random.key(3))
    return plain, params, wide, _filled(params, jax.eval_shape(wide.init, jax.random.key(3)))


@pytest.mark.parametrize("family", CASES)
def test_rows_with_a_token_begin_as_they_would_alone_and_the_others_are_0(family: str) -> None:
    plain, wide = (_task(family, multiple).init(jax.random.key(5))["params"] for multiple in (1, 16))
    assert jax.tree.structure(plain) == jax.tree.structure(wide)
    for path, x in jax.tree_util.tree_flatten_with_path(wide)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        alone = plain
        for key in path:
            alone = alone[key.key]
        np.testing.assert_array_equal(x[:V] if name in TABLES else x, alone, err_msg=name)
        assert not np.any(x[V:]) or name not in TABLES
        assert (len(x) == ROWS) == (name in TABLES) or len(alone) == ROWS


@pytest.mark.parametrize(("family", "smoothing"), [("decoder_only", 0.0), *((family, 0.1) for family in CASES)])
def test_losses_and_gradients_are_those_of_the_vocabulary_alone(family: str, smoothing: float) -> None:
    plain, params, wide, filled = _pair(family)
    batch = {key: jnp.asarray(value) for key, value in ragged(1, rows=6, vocabulary=V).items()}
    if family == "encoder_only":
        batch["target_weights"] = batch["target_segments"] = batch["input_segments"]

    def grown(task: Any, params: Any) -> tuple[Any, Any]:
        def loss(params: Any) -> Any:
            found = task.metrics(params, batch, None, smoothing)
            return found["loss"][0], found

        (_, found), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return found, gradients["params"]

    (expected, alone), (found, gradients) = grown(plain, params), grown(wide, filled)
    for name in expected:
        np.testing.assert_allclose(found[name][0], expected[name][0], rtol=2e-6, err_msg=name)
    for name in ("table", "output_table", "output_bias"):
        if name in gradients["embedder"]:
            assert gradients["embedder"][name].shape[0] == ROWS
            assert not np.any(gradients["embedder"][name][V:]), name
            gradients["embedder"][name] = gradients["embedder"][name][:V]
    for left, right in zip(jax.tree.leaves(gradients), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(left, right, atol=2e-5)


def test_a_target_without_a_token_gives_no_number() -> None:
    """As one beyond the table does, also if the table has a row for it."""
    x, table = jnp.ones((1, 1, 4)), jnp.ones((ROWS, 4))
    for target, finite in ((V - 1, True), (V, False), (ROWS - 1, False), (ROWS, False)):
        found = output_cross_entropy(x, table, None, jnp.array([[target]]), jnp.ones((1, 1)), 0.1, V)
        assert bool(jnp.isfinite(found["loss"][0])) == finite, target
        assert float(found["token_accuracy"][0][0]) == 1 if finite else True


def test_a_token_without_a_row_of_its_own_gives_no_number() -> None:
    embedder = TokenEmbedder(_task("decoder_only", 16).model_config)
    tokens, where = jnp.array([[V - 1, V, ROWS - 1, ROWS, -1, V]]), Tokens(lengths=jnp.array([5]))
    params = embedder.init(jax.random.key(0), tokens, where)
    finite = jnp.isfinite(embedder.apply(params, tokens, where)).all(axis=-1)  # type: ignore[union-attr]
    assert finite.tolist() == [[True, False, False, False, False, True]]  # the last is padding


WRITE = {
    "greedy": greedy,
    "beam": lambda *arguments: beam(*arguments, beams=30),  # more than there are tokens
    "sample": lambda *arguments: sample(*arguments, keys=sentence_keys(3, jnp.arange(3)), temperature=2.0),
    "top_p": lambda *arguments: sample(*arguments, keys=sentence_keys(3, jnp.arange(3)), top_k=29, top_p=0.99),
}


@pytest.mark.parametrize(
    ("family", "way"),
    [("decoder_only", way) for way in WRITE]
    + [("encoder_decoder", "beam"), ("recurrent_encoder_decoder", "greedy"), ("recurrent_language_model", "greedy")],
)
def test_what_is_written_is_the_same(family: str, way: str) -> None:
    plain, params, wide, filled = _pair(family)
    inputs, lengths = jnp.array([[4, 9, 22, 7], [5, 2, 0, 0], [22, 21, 3, 0]]), jnp.array([4, 2, 3])

    def written(task: Any, params: Any) -> Any:
        begin = task.begin(params, inputs, lengths)
        first = (begin.first_tokens, begin.first_positions)
        return WRITE[way](begin.step, begin.state, *first, 9, begin.limit, 2)  # type: ignore[operator]

    expected, found = (
        jax.jit(written, static_argnums=0)(plain, params),
        jax.jit(written, static_argnums=0)(wide, filled),
    )
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, rtol=1e-5)
    assert found.ok.all()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_files_hold_the_rows_of_tokens_only(name: str, tmp_path: Path) -> None:
    model, params = some_model(SMALL[name])
    save(tmp_path / "first", model, params)
    save(tmp_path / "plain", *load(tmp_path / "first"))
    wide, filled = load(tmp_path / "first", vocab_multiple=16)
    for path, shape in parameter_shapes(wide).items():
        assert len(shape) == 0 or path not in TABLES or shape[0] == table_rows(wide.config) == ROWS
    save(tmp_path / "cut", wide, _filled(params, filled))
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "cut" / file).read_bytes()
    same(load(tmp_path / "cut")[1], params)


def test_an_odd_vocabulary_divides_over_tensor() -> None:
    """And the losses are those of one device without the rounding."""
    config = tiny(**{"task": "language_model", "model.family": "decoder_only", "model.vocab_size": V})
    alone = train(on(config, data=1), 2, lambda seed: ragged(seed, vocabulary=V))[1]
    config = override(config, {"model.vocab_multiple": 16})
    state, lines = train(on(config, data=2, tensor=4), 2, lambda seed: ragged(seed, vocabulary=V))
    np.testing.assert_allclose(lines, alone, rtol=1e-5)
    table = state.params["params"]["embedder"]["table"]
    assert {shard.data.shape for shard in table.addressable_shards} == {(8, 16)}
    assert not np.any(np.asarray(table)[V:])  # no update has reached them


def test_described_with_and_without_the_rows_that_have_no_token() -> None:
    flags = [f"--config.model.{key}={value}" for key, value in (SIZES | {"vocab_multiple": 128}).items()]
    flags.append("--config.mesh.data=1")
    command = [sys.executable, "-m", "transformer.describe", f"--config={ROOT / 'configs' / 'gpt.py'}", *flags]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    held = json.loads(ended.stdout.splitlines()[-1])["parameters"]
    more = (128 - V) * SIZES["d_model"]
    assert f"of the total {more:,} only fill tables of the vocabulary up: {held:,} parameters" in ended.stdout
    assert any(line.split() == ["total", f"{held + more:,}"] for line in ended.stdout.splitlines())


def test_parameters_without_a_token_are_counted_in_every_table() -> None:
    for family, tables in (("encoder_decoder", 1), ("decoder_only", 2), ("recurrent_encoder_decoder", 2)):
        task = _task(family, 16)
        shapes = {path: leaf.shape for path, leaf in _leaves(jax.eval_shape(task.init, jax.random.key(0))["params"])}
        bias = (ROWS - V) * ("embedder/output_bias" in shapes)
        assert unused_parameters(task.model_config, shapes) == tables * (ROWS - V) * 12 + bias


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in found]


def test_a_multiple_below_1_is_refused() -> None:
    with pytest.raises(UserError, match=r"'model\.vocab_multiple' must be at least 1, not 0"):
        override(Config(), {"model.vocab_multiple": 0})
