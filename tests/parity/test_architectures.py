"""Small random models of the reference implementation and ours, with the same weights: outputs, gradients, decoding.

They need the `parity` extra: pip install '.[parity]'.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from transformer.model.pretrained import load, model_config, save
from transformer.model.tokens import Tokens

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[parity]'")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[parity]'")
pytestmark = pytest.mark.slow

V, D, H, F, N = 53, 24, 3, 40, 3
ROWS = 3


@dataclasses.dataclass(frozen=True)
class Case:
    """How a reference model is made, and what it is fed."""

    make: Callable[[], Any]
    kind: str  # "decoder", "encoder_decoder", "encoder" or "image"
    lengths: tuple[int, ...] = (7, 5, 2)  # real tokens of each row
    spread: float = 0.3  # standard deviation of the random weights


def gpt2(**options: Any) -> Any:
    config = {"vocab_size": V, "n_positions": 19, "n_embd": D, "n_layer": N, "n_head": H, "bos_token_id": 1}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**config, eos_token_id=2, **options))


def bert(cls: str, **options: Any) -> Any:
    config = {"vocab_size": V, "hidden_size": D, "num_hidden_layers": N, "num_attention_heads": H}
    config |= {"intermediate_size": F, "max_position_embeddings": 19, "type_vocab_size": 2}
    return getattr(transformers, cls)(transformers.BertConfig(**config | options))


def t5(tied: bool = True, **options: Any) -> Any:
    config = {"vocab_size": V, "d_model": D, "d_kv": 7, "d_ff": F, "num_layers": N, "num_heads": H}
    # False, which version 1.1 sets, means logits that are not scaled; the output table is parted from the other below.
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(**config, **options, tie_word_embeddings=tied)
    )
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(torch.zeros(V, D))
    return model


def vit(cls: str, **options: Any) -> Any:
    config = {"hidden_size": D, "num_hidden_layers": N, "num_attention_heads": H, "intermediate_size": F}
    config |= {"image_size": 15, "patch_size": 5, "num_channels": 3}
    return getattr(transformers, cls)(transformers.ViTConfig(**config | options))


def marian(**options: Any) -> Any:
    sides = {"layers": N, "attention_heads": H, "ffn_dim": F}
    config = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sides.items()}
    config |= {"vocab_size": V, "d_model": D, "max_position_embeddings": 19, "pad_token_id": V - 1}
    config |= {"decoder_start_token_id": V - 1, "scale_embedding": True, "activation_function": "swish"}
    return transformers.MarianMTModel(transformers.MarianConfig(**config | options))


def llama(**options: Any) -> Any:
    config = {"vocab_size": V, "hidden_size": D, "intermediate_size": F, "num_hidden_layers": N}
    config |= {"num_attention_heads": 6, "num_key_value_heads": 3, "rms_norm_eps": 1e-5}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**config | options))


# Past the last bucket of T5's distances, which begins at 128. Not with ReLU: of so many units one is so near to 0 that
# rounding decides its gradient.
FAR = (141, 90, 1)
CASES = {
    "gpt2": Case(gpt2, "decoder"),
    "gpt2-relu-wide": Case(lambda: gpt2(activation_function="relu", n_inner=41), "decoder"),
    "gpt2-unscaled-untied": Case(lambda: gpt2(scale_attn_weights=False, tie_word_embeddings=False), "decoder"),
    "bert": Case(lambda: bert("BertModel"), "encoder"),
    "bert-masked": Case(lambda: bert("BertForMaskedLM"), "encoder"),
    "bert-masked-tanh": Case(lambda: bert("BertForMaskedLM", hidden_act="gelu_new", type_vocab_size=5), "encoder"),
    "t5": Case(t5, "encoder_decoder", spread=0.2),
    "t5-v1.1": Case(lambda: t5(tied=False, feed_forward_proj="gated-gelu"), "encoder_decoder", FAR, 0.15),
    "vit": Case(lambda: vit("ViTModel"), "image"),
    "vit-classifier": Case(lambda: vit("ViTForImageClassification", num_labels=7), "image"),
    "vit-gray": Case(lambda: vit("ViTForImageClassification", num_labels=2, num_channels=1), "image"),
    "marian": Case(marian, "encoder_decoder"),
    "marian-unscaled-relu": Case(lambda: marian(scale_embedding=False, activation_function="relu"), "encoder_decoder"),
    "llama": Case(llama, "decoder"),
    "llama-tied": Case(lambda: llama(tie_word_embeddings=True, num_key_value_heads=6), "decoder"),
    "llama-biases": Case(lambda: llama(attention_bias=True, mlp_bias=True, head_dim=10), "decoder"),
}
every = pytest.mark.parametrize("name", CASES)


@dataclasses.dataclass
class Pair:
    """A reference model with random weights, ours loaded from its folder, and a batch."""

    case: Case
    theirs: Any
    model: Any
    params: Any
    folder: Path
    batch: dict[str, np.ndarray]


def randomize(model: Any, spread: float) -> None:
    """Weights far from any initialisation: no zero bias, no unit scale; formulas (Marian's sinusoids) stay."""
    generator = torch.Generator().manual_seed(0)
    biases = [model.final_logits_bias] if hasattr(model, "final_logits_bias") else []
    with torch.no_grad():
        for tensor in [p for p in model.parameters() if p.requires_grad] + biases:
            tensor.copy_(tensor.mean() + spread * torch.randn(tensor.shape, generator=generator))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    made: dict[str, Pair] = {}

    def pair(name: str) -> Pair:
        if name not in made:
            torch.manual_seed(0)
            theirs = CASES[name].make().eval()
            randomize(theirs, CASES[name].spread)
            folder = tmp_path_factory.mktemp(name)
            theirs.save_pretrained(folder, safe_serialization=True)
            model, params = load(folder)
            made[name] = Pair(CASES[name], theirs, model, params, folder, some_batch(CASES[name], theirs))
        return made[name]

    return pair


def some_batch(case: Case, theirs: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    if case.kind == "image":
        size = (ROWS, 15, 15, theirs.config.num_channels)
        return {"images": rng.normal(size=size).astype(np.float32), "mask": np.ones((ROWS, 1), np.int64)}
    shape = (ROWS, max(case.lengths))
    # Neither 0 nor the last piece, which are padding to one or the other and get no gradient there.
    batch = {"tokens": rng.integers(1, V - 1, shape), "targets": rng.integers(1, V - 1, (ROWS, 6))}
    batch["mask"] = (np.arange(shape[1]) < np.array(case.lengths)[:, None]).astype(np.int64)
    batch["types"] = rng.integers(0, 2, shape)
    return batch


def run_theirs(model: Any, kind: str, batch: dict[str, np.ndarray]) -> Any:
    tensors = {name: torch.tensor(value) for name, value in batch.items()}
    if kind == "image":
        out = model(pixel_values=tensors["images"].permute(0, 3, 1, 2))
    elif kind == "encoder_decoder":
        out = model(input_ids=tensors["tokens"], attention_mask=tensors["mask"], decoder_input_ids=tensors["targets"])
    else:
        types = {"token_type_ids": tensors["types"]} if kind == "encoder" else {}
        out = model(input_ids=tensors["tokens"], attention_mask=tensors["mask"], **types)
    # The vectors of a model without a head, and the one that its pooler makes of them.
    return (out.logits,) if hasattr(out, "logits") else (out.last_hidden_state, out.pooler_output)


def where(mask: np.ndarray) -> Tokens:
    positions = np.broadcast_to(np.arange(mask.shape[1]), mask.shape)
    return Tokens(jnp.asarray(positions, jnp.int32), jnp.asarray(mask, jnp.int32))


def run_ours(model: Any, params: Any, kind: str, batch: dict[str, np.ndarray]) -> tuple[Any, ...]:
    if kind == "image":
        arguments: tuple[Any, ...] = (jnp.asarray(batch["images"]), where(batch["mask"]))
    else:
        arguments = (jnp.asarray(batch["tokens"], jnp.int32), where(batch["mask"]))
    if kind == "encoder_decoder":
        arguments += (jnp.asarray(batch["targets"], jnp.int32), where(np.ones_like(batch["targets"])))
    if kind == "encoder":
        arguments += (None, jnp.asarray(batch["types"], jnp.int32))
    if model.config.pooling != "pooler":
        return (model.apply(params, *arguments),)
    encoded, places = model.apply(params, *arguments, method="encode")
    return encoded, model.apply(params, encoded, places, method="pooled")


def real(out: Any, pair: Pair) -> Any:
    """1 where an output is compared, 0 at padding."""
    ragged = pair.case.kind in ("decoder", "encoder") and out.ndim == 3
    return pair.batch["mask"][..., None].astype(np.float32) if ragged else np.ones((1,) * out.ndim, np.float32)


@every
def test_outputs(name: str, pairs: Callable[[str], Pair]) -> None:
    pair = pairs(name)
    with torch.no_grad():
        expected = [out.numpy() for out in run_theirs(pair.theirs, pair.case.kind, pair.batch)]
    got = run_ours(pair.model, pair.params, pair.case.kind, pair.batch)
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        assert np.abs(theirs).max() > 0.5  # there is something to compare
        np.testing.assert_allclose(ours * real(theirs, pair), theirs * real(theirs, pair), atol=1e-4, rtol=1e-4)


@every
def test_gradients(name: str, pairs: Callable[[str], Pair], tmp_path: Path) -> None:
    """Of a loss that weighs each real output by another number, for every parameter."""
    pair = pairs(name)
    outs = run_theirs(pair.theirs, pair.case.kind, pair.batch)
    rng = np.random.default_rng(2)
    cotangents = [
        (rng.normal(size=out.shape) * real(out, pair) / np.sqrt(out[0].numel())).astype(np.float32) for out in outs
    ]
    pair.theirs.zero_grad()
    sum((out * torch.tensor(weight)).sum() for out, weight in zip(outs, cotangents, strict=True)).backward()

    def loss(params: Any) -> Any:
        got = run_ours(pair.model, params, pair.case.kind, pair.batch)
        return sum((out * weight).sum() for out, weight in zip(got, cotangents, strict=True))

    ours = flatten_dict(jax.jit(jax.grad(loss))(pair.params)["params"], sep="/")

    # Their gradients in our layout: stored as if they were weights, and loaded.
    kept = {key: value.clone() for key, value in pair.theirs.state_dict().items()}
    with torch.no_grad():
        for parameter in pair.theirs.parameters():
            if parameter.grad is not None:
                parameter.copy_(parameter.grad)
    pair.theirs.save_pretrained(tmp_path, safe_serialization=True)
    pair.theirs.load_state_dict(kept)
    theirs = flatten_dict(load(tmp_path)[1]["params"], sep="/")
    assert ours.keys() == theirs.keys()
    if name.startswith("marian"):
        del theirs["embedder/output_bias"]  # a buffer there, which is not trained
    steepest = max(np.abs(gradient).max() for gradient in theirs.values())
    for path, gradient in theirs.items():
        largest = np.abs(gradient).max()
        if path.endswith("key/bias") and not name.startswith("llama"):
            # The same number added to every score changes no attention: 0, but for rounding. (Turned keys differ.)
            assert max(largest, np.abs(ours[path]).max()) < 1e-5 * steepest, path
            continue
        assert largest > 1e-6, path
        rounding = max(5e-5 * largest, 1e-6 * steepest)
        np.testing.assert_allclose(ours[path], gradient, rtol=1e-3, atol=rounding, err_msg=path)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "decoder" in case.kind])
def test_cached_decoding(name: str, pairs: Callable[[str], Pair]) -> None:
    """Token by token over the cache, their logits of the whole."""
    pair = pairs(name)
    with torch.no_grad():
        expected = run_theirs(pair.theirs, pair.case.kind, pair.batch)[0].numpy()
    if pair.case.kind == "decoder":
        tokens, mask = pair.batch["tokens"], pair.batch["mask"]
        state = pair.model.apply(pair.params, ROWS, tokens.shape[1], method="start")
    else:
        tokens, mask = pair.batch["targets"], np.ones_like(pair.batch["targets"])
        inputs = jnp.asarray(pair.batch["tokens"], jnp.int32)
        state = pair.model.apply(pair.params, inputs, where(pair.batch["mask"]), tokens.shape[1], method="start")
    step = jax.jit(lambda token, places, state: pair.model.apply(pair.params, token, places, state, method="step"))
    for t in range(tokens.shape[1]):
        token = jnp.asarray(tokens[:, t : t + 1], jnp.int32)
        places = Tokens(jnp.full((ROWS, 1), t), jnp.asarray(mask[:, t : t + 1], jnp.int32))
        logits, state = step(token, places, state)
        here = mask[:, t] > 0
        np.testing.assert_allclose(logits[here, 0], expected[here, t], atol=1e-4, rtol=1e-4, err_msg=str(t))


@every
def test_saved_weights_are_theirs_again(name: str, pairs: Callable[[str], Pair], tmp_path: Path) -> None:
    pair = pairs(name)
    save(tmp_path, pair.model, pair.params)
    stored, again = load_file(pair.folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert stored.keys() == again.keys()
    for key, value in stored.items():
        np.testing.assert_array_equal(again[key], value, err_msg=key)
    back, report = type(pair.theirs).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    with torch.no_grad():
        expected = run_theirs(pair.theirs, pair.case.kind, pair.batch)
        got = run_theirs(back.eval(), pair.case.kind, pair.batch)
    for theirs, ours in zip(expected, got, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=1e-6)
    assert load(tmp_path)[0].config == pair.model.config


@every
def test_every_key_of_their_configuration_is_known(name: str) -> None:
    """Of the version that is installed: a key that a newer one adds is refused here first."""
    model_config(json.loads(CASES[name].make().config.to_json_string(use_diff=False)))


def test_shards_are_one_model(pairs: Callable[[str], Pair], tmp_path: Path) -> None:
    pair = pairs("gpt2")
    pair.theirs.save_pretrained(tmp_path, safe_serialization=True, max_shard_size="10KB")
    shards = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(shards.values())) > 2
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path)[1], pair.params)


def test_greedy_translation_is_theirs(pairs: Callable[[str], Pair]) -> None:
    """From their start token to their end token, over our cache."""
    from transformer.decoding.greedy import greedy

    pair = pairs("marian")
    config, most = pair.theirs.config, 9
    tokens, mask = torch.tensor(pair.batch["tokens"]), torch.tensor(pair.batch["mask"])
    expected = pair.theirs.generate(
        tokens, attention_mask=mask, max_new_tokens=most, num_beams=1, do_sample=False, forced_eos_token_id=None,
        bad_words_ids=None,
    ).numpy()[:, 1:]  # fmt: skip
    inputs = jnp.asarray(pair.batch["tokens"], jnp.int32)
    state = pair.model.apply(pair.params, inputs, where(pair.batch["mask"]), most, method="start")

    def step(token: Any, positions: Any, state: Any) -> tuple[Any, Any]:
        logits, state = pair.model.apply(
            pair.params, token, Tokens(positions, jnp.ones_like(positions)), state, method="step"
        )
        return logits[:, -1], state

    first = jnp.full(ROWS, config.decoder_start_token_id)
    got = np.asarray(
        greedy(step, state, first, jnp.zeros(ROWS, jnp.int32), most, None, config.eos_token_id).tokens[:, 0]
    )
    for ours, theirs in zip(got, expected, strict=True):
        ended = np.flatnonzero(theirs == config.eos_token_id)
        stop = ended[0] + 1 if len(ended) else len(theirs)
        np.testing.assert_array_equal(ours[:stop], theirs[:stop])
