"""Rules of the house that hold for every file, and every config built as far as shapes."""

import ast
import math
import re
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import transformer
from transformer.config import Config, load_file, override
from transformer.model.families import build
from transformer.model.layers import Tokens

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for room in ("transformer", "configs", "experiments") for path in (ROOT / room).rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
LEGEND = "B L S D H G K M F V N".split()


def _parameters(config: Config) -> Any:
    """The parameters' shapes, by abstract evaluation: no array is made."""
    model = build(config.model)
    length = min(8, config.data.max_len)
    tokens = jnp.ones((2, length), jnp.int32)
    where = Tokens(jnp.broadcast_to(jnp.arange(length), (2, length)), tokens)
    sides = 2 if config.model.family.endswith("encoder_decoder") else 1
    return jax.eval_shape(model.init, jax.random.key(0), *(tokens, where) * sides)["params"]


def test_the_legend_stands_in_one_place() -> None:
    legend = (transformer.__doc__ or "").split("docstring:")[1]
    named = re.findall(r"(?:^|· ?|:)\s*([A-Z]) ", legend)
    assert named == LEGEND


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_one_concern(path: Path) -> None:
    assert path.stem not in ("utils", "util", "helpers", "helper", "misc", "common"), "give each piece to its concern"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 450, "more than one concern?"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_pmap(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert "pmap" not in names, "arrays are sharded by jit and NamedSharding"


def test_the_configs_of_the_readme_exist() -> None:
    assert {"quantities", "docstrings", "multi30k"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds(path: Path) -> None:
    config = load_file(path)
    config = override(config, {"model.vocab_size": config.model.vocab_size or config.data.vocab_size})
    model = config.model
    shapes = _parameters(config)
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))

    # One table, and for each layer four projections of D x D per attention and two of the feed-forward: the matrices
    # by the paper, counted here without the model's help. Biases, norms and learned positions are what may be more.
    if model.family == "recurrent_encoder_decoder":
        # Gates take 4 (D + input) x D; a bridge 2D x D for each of c and h; attention 3 D x D and D; the output 3D x D.
        assert (model.cell, model.num_layers, model.recurrent_attention) == ("lstm", 1, True)
        matrices = model.vocab_size * model.d_model + (2 * 8 + 16 + 4 + 3 + 3) * model.d_model**2 + model.d_model
        biases = (2 * 4 + 4 + 2 + 1) * model.d_model
        assert total == matrices + biases
        return
    attentions = 3 if model.family == "encoder_decoder" else 1
    forwards = 2 if model.family == "encoder_decoder" else 1
    table = model.vocab_size * model.d_model
    layer = 4 * attentions * model.d_model**2 + 2 * forwards * model.d_model * model.d_ff
    matrices = table + model.num_layers * layer
    learned = model.max_positions * model.d_model * forwards
    assert matrices < total < 1.02 * matrices + learned
    assert config.data.buckets[-1] >= config.data.max_len


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "none"])
@pytest.mark.parametrize("family", ["encoder_decoder", "decoder_only"])
def test_parameters_by_formula(family: str, positions: str) -> None:
    """The closed form: post-norm, no bias in attention, biases in the feed-forward, two numbers a feature in a norm."""
    changes = {"family": family, "positions": positions, "num_layers": 3, "d_model": 24, "d_ff": 56, "num_heads": 4}
    changes |= {"vocab_size": 101, "max_positions": 31, "attention": ["window:2", "full"]}
    config = override(Config(), {f"model.{key}": value for key, value in changes.items()})
    width, inner = 24, 56
    attention, forward, norm = 4 * width**2, 2 * width * inner + inner + width, 2 * width
    encoder = 3 * (attention + forward + 2 * norm)
    decoder = 3 * (2 * attention + forward + 3 * norm) if family == "encoder_decoder" else encoder
    stacks = encoder + decoder if family == "encoder_decoder" else decoder
    tables = 31 * width * (2 if family == "encoder_decoder" else 1) if positions == "learned" else 0
    counted = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(_parameters(config)))
    assert counted == 101 * width + stacks + tables


def test_build_gives_a_linen_module() -> None:
    assert isinstance(build(override(Config(), {"model.vocab_size": 11}).model), nn.Module)
