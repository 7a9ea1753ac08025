"""Small random models of the reference implementation and ours, with the same weights: what they write, token by token.

They need the `parity` extra: pip install '.[parity]'.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.decoding import Decoded, beam, greedy
from transformer.model.pretrained import load
from transformer.model.tokens import Tokens

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[parity]'")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[parity]'")
pytestmark = pytest.mark.slow

V, ROWS, SOURCE, MOST = 17, 7, 5, 13


class Both(NamedTuple):
    """A reference model with random weights, ours loaded from its folder, prompts or sources, and their lengths."""

    theirs: Any
    model: Any
    params: Any
    inputs: np.ndarray
    lengths: np.ndarray
    eos: int  # a token that the model does write


def gpt2() -> Any:
    sizes = {"vocab_size": V, "n_positions": SOURCE + MOST, "n_embd": 24, "n_layer": 2, "n_head": 3}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=0))


def marian() -> Any:
    sides = {"layers": 2, "attention_heads": 3, "ffn_dim": 40}
    config = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sides.items()}
    config |= {"vocab_size": V, "d_model": 24, "max_position_embeddings": 31, "eos_token_id": 0}
    config |= {"pad_token_id": V - 1, "decoder_start_token_id": V - 1, "forced_eos_token_id": None}
    return transformers.MarianMTModel(transformers.MarianConfig(**config, scale_embedding=True))


@pytest.fixture(scope="module", params=["gpt2", "marian"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder: Path = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(3)  # the weights' means stay
    theirs = {"gpt2": gpt2, "marian": marian}[request.param]().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (p for p in theirs.parameters() if p.requires_grad):
            tensor.copy_(tensor.mean() + 0.3 * torch.randn(tensor.shape, generator=generator))
    theirs.save_pretrained(folder, safe_serialization=True)
    rng = np.random.default_rng(1)
    inputs = rng.integers(1, V - 1, (ROWS, SOURCE))
    # A prompt is as long as all others there; a source may be shorter.
    lengths = np.full(ROWS, SOURCE) if request.param == "gpt2" else rng.integers(1, SOURCE + 1, ROWS)
    endless, _ = they_write(both := Both(theirs, *load(folder), inputs, lengths, eos=V))
    late = [row[2:9] for row in endless]
    return both._replace(eos=max(range(V - 1), key=lambda token: sum(token in row for row in late)))


def they_write(both: Both, **options: Any) -> tuple[list[list[int]], np.ndarray | None]:
    """The new tokens of each row up to EOS, and the scores of a beam search."""
    mask = (np.arange(SOURCE) < both.lengths[:, None]).astype(np.int64)
    fixed = {"do_sample": False, "max_new_tokens": MOST, "eos_token_id": both.eos, "pad_token_id": V - 1}
    with torch.no_grad():
        made = both.theirs.generate(
            torch.tensor(both.inputs), attention_mask=torch.tensor(mask), **fixed, **options,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
    start = 1 if both.theirs.config.is_encoder_decoder else SOURCE
    rows = made.sequences[:, start:].tolist()
    scores = made.sequences_scores.numpy() if "sequences_scores" in made else None
    return [row[: row.index(both.eos) + 1] if both.eos in row else row for row in rows], scores


def we_write(both: Both, strategy: Any) -> Decoded:
    model, inputs = both.model, jnp.asarray(both.inputs, jnp.int32)

    def places(lengths: Any) -> Tokens:
        positions = jnp.broadcast_to(jnp.arange(SOURCE), inputs.shape)
        return Tokens(positions, (positions < lengths).astype(jnp.int32))

    @jax.jit
    def run(params: Any) -> Decoded:
        def step(tokens: Any, positions: Any, state: Any) -> Any:
            logits, state = model.apply(
                params, tokens, Tokens(positions, jnp.ones_like(positions)), state, method="step"
            )
            return logits[:, -1], state

        if both.theirs.config.is_encoder_decoder:
            state = model.apply(params, inputs, places(jnp.asarray(both.lengths)[:, None]), MOST, method="start")
            return strategy(step, state, jnp.full(ROWS, V - 1), jnp.zeros(ROWS, jnp.int32), MOST, None, both.eos)
        state = model.apply(params, ROWS, SOURCE + MOST, method="start")
        _, state = model.apply(params, inputs, places(SOURCE - 1), state, method="step")
        return strategy(step, state, inputs[:, -1], jnp.full(ROWS, SOURCE - 1), MOST, None, both.eos)

    return jax.device_get(run(both.params))


def outputs(decoded: Decoded) -> list[list[int]]:
    lengths = decoded.lengths.reshape(-1)
    return [row[:n].tolist() for row, n in zip(decoded.tokens.reshape(-1, MOST), lengths, strict=True)]


@pytest.mark.parametrize("least", [0, 4])
def test_greedy(both: Both, least: int) -> None:
    theirs, _ = they_write(both, min_new_tokens=least)
    assert outputs(we_write(both, functools.partial(greedy, min_new=least))) == theirs
    assert len({tuple(row) for row in theirs}) > 3, "the rows say different things"


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize(("alpha", "least", "nbest"), [(1.0, 0, 4), (0.0, 0, 1), (2.0, 3, 2), (-1.0, 0, 4)])
def test_beam_of_four(both: Both, alpha: float, least: int, nbest: int, early: bool) -> None:
    theirs, scores = they_write(
        both, num_beams=4, length_penalty=alpha, early_stopping=early, min_new_tokens=least, num_return_sequences=nbest
    )
    rule = "hf_early" if early else "hf"
    found = we_write(both, functools.partial(beam, beams=4, nbest=nbest, alpha=alpha, rule=rule, min_new=least))
    assert outputs(found) == theirs
    np.testing.assert_allclose(found.scores.reshape(-1), scores, rtol=1e-4, atol=1e-5)
    assert alpha > 1 or any(row[-1] == both.eos for row in theirs), "some end, unless length is paid for"
    assert alpha <= 0 or len({tuple(row) for row in theirs}) > 3, "unless the shortest is best"
