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
from transformer.describe import shapes
from transformer.model.families import build
from transformer.model.tokens import Tokens

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
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, "more than one concern?"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_pmap(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert "pmap" not in names, "arrays are sharded by jit and NamedSharding"


def test_the_configs_of_the_readme_exist() -> None:
    assert {"quantities", "docstrings", "multi30k"} <= {path.stem for path in CONFIGS}


# Of the released models, and of the paper's closed form with 37,000 pieces (its Table 3 says 65 and 213 million).
PUBLISHED = {
    "gpt2_124m": 124_439_808,
    "bert_base": 109_482_240,
    "t5_small": 60_506_624,
    "vit_b16": 86_567_656,
    "paper_base": 63_045_632,
    "paper_big": 214_171_648,
}
# Rows of Table 3 of "Attention Is All You Need": what differs from the base, and the closed form.
TABLE_3 = {
    "A, 1 head": ({"model.num_heads": 1}, 63_045_632),
    "A, 32 heads": ({"model.num_heads": 32}, 63_045_632),
    "B, 16": ({"model.head_dim": 16, "model.value_dim": 64}, 55_967_744),
    "B, 32": ({"model.head_dim": 32, "model.value_dim": 64}, 58_327_040),
    "C, 2 layers": ({"model.num_layers": 2}, 33_644_544),
    "C, 4 layers": ({"model.num_layers": 4}, 48_345_088),
    "C, 8 layers": ({"model.num_layers": 8}, 77_746_176),
    "C, 256 wide": ({"model.d_model": 256, "model.head_dim": 32}, 26_816_512),
    "C, 1024 wide": ({"model.d_model": 1024, "model.head_dim": 128}, 163_815_424),
    "C, 1024 inner": ({"model.d_ff": 1024}, 50_450_432),
    "C, 4096 inner": ({"model.d_ff": 4096}, 88_236_032),
    "E, learned": ({"model.positions": "learned"}, 63_045_632 + 2 * 512 * 512),
    "biases": ({"model.attention_bias": True}, 63_082_496),
}


def count(config: Config) -> int:
    return sum(math.prod(shape) for shape in shapes(config).values())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds(path: Path) -> None:
    config = load_file(path)
    total = count(config)
    assert total == PUBLISHED.get(path.stem, total)
    assert total > 10_000
    assert f"--config=configs/{path.name}" in path.read_text(), "a config begins with its command"


@pytest.mark.parametrize("row", TABLE_3)
def test_the_rows_of_table_3(row: str) -> None:
    changes, expected = TABLE_3[row]
    assert count(override(load_file(ROOT / "configs" / "paper_base.py"), changes)) == expected


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
