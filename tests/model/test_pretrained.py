"""Folders in and out without another library: counts, round trips, old names, dtypes, and every refusal's sentence.

That the numbers mean the same as in the reference implementation is tested in tests/parity.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from transformer.config import ModelConfig
from transformer.errors import UserError
from transformer.model.families import build
from transformer.model.pretrained import ARCHITECTURES, load, model_config, parameter_shapes, save
from transformer.model.pretrained.keys import NAMES, NEEDED, SPECIAL_IDS, UNUSED
from transformer.model.pretrained.llama import LLAMA
from transformer.model.stacks import stacked

# --- Counts of the released models, from what their config.json say

BERT = {"model_type": "bert", "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12}
BERT |= {"num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 512, "type_vocab_size": 2}
VIT = {"model_type": "vit", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
VIT |= {"intermediate_size": 3072, "image_size": 224, "patch_size": 16, "num_channels": 3}
T5 = {"model_type": "t5", "vocab_size": 32128, "d_model": 512, "d_kv": 64, "num_layers": 6, "num_heads": 8}
GPT2 = {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
CLASSES = {str(i): f"class {i}" for i in range(1000)}
RELEASED: dict[str, tuple[dict[str, Any], int]] = {
    "gpt2": (GPT2, 124_439_808),
    "bert-base-uncased": (BERT | {"architectures": ["BertModel"]}, 109_482_240),
    "bert-base-uncased-masked": (BERT | {"architectures": ["BertForMaskedLM"]}, 109_514_298),
    "t5-small": (T5 | {"d_ff": 2048}, 60_506_624),
    "t5-v1_1-small": (
        T5
        | {"d_ff": 1024, "num_layers": 8, "num_heads": 6, "feed_forward_proj": "gated-gelu"}
        | {"tie_word_embeddings": False},
        76_961_152,
    ),
    "vit-base-patch16-224": (VIT | {"architectures": ["ViTForImageClassification"], "id2label": CLASSES}, 86_567_656),
}


@pytest.mark.parametrize("name", RELEASED)
def test_parameters_of_the_released_models(name: str) -> None:
    settings, count = RELEASED[name]
    shapes = parameter_shapes(build(model_config(settings, frozenset({"pooler.dense.weight"}))))
    assert sum(map(math.prod, shapes.values())) == count


# --- Round trips of small models

D, H, F, N, V = 12, 3, 10, 2, 17
SMALL: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "vocab_size": V, "n_positions": 7, "n_embd": D, "n_layer": N, "n_head": H},
    "bert": {
        "model_type": "bert", "architectures": ["BertForMaskedLM"], "vocab_size": V, "hidden_size": D,
        "num_hidden_layers": N, "num_attention_heads": H, "intermediate_size": F, "max_position_embeddings": 7,
    },
    "t5": {"model_type": "t5", "vocab_size": V, "d_model": D, "d_kv": 5, "d_ff": F, "num_layers": N, "num_heads": H},
    "vit": {
        "model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": D, "num_hidden_layers": N,
        "num_attention_heads": H, "intermediate_size": F, "image_size": 6, "patch_size": 3, "num_channels": 2,
        "id2label": {"0": "a", "1": "b", "2": "c"},
    },
    "marian": {
        "model_type": "marian", "vocab_size": V, "d_model": D, "encoder_layers": N, "decoder_layers": N,
        "encoder_attention_heads": H, "decoder_attention_heads": H, "encoder_ffn_dim": F, "decoder_ffn_dim": F,
        "activation_function": "swish", "scale_embedding": True,
    },
    "llama": {
        "model_type": "llama", "vocab_size": V, "hidden_size": D, "intermediate_size": F, "num_hidden_layers": N,
        "num_attention_heads": H, "num_key_value_heads": 1,
    },
}  # fmt: skip
every = pytest.mark.parametrize("name", ARCHITECTURES)


def some_model(settings: dict[str, Any], seed: int = 0) -> tuple[Any, Any]:
    model = build(model_config(settings))
    rng = np.random.default_rng(seed)
    flat = {path: rng.normal(size=shape).astype(np.float32) for path, shape in parameter_shapes(model).items()}
    return model, {"params": unflatten_dict({tuple(path.split("/")): jnp.asarray(x) for path, x in flat.items()})}


def same(ours: Any, theirs: Any) -> None:
    ours, theirs = flatten_dict(ours, sep="/"), flatten_dict(theirs, sep="/")
    assert ours.keys() == theirs.keys()
    for path in ours:
        np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)


@every
def test_save_and_load(name: str, tmp_path: Path) -> None:
    model, params = some_model(SMALL[name])
    save(tmp_path, model, params)
    again, read = load(tmp_path)
    assert vars(model.config).items() <= vars(again.config).items()
    same(read, params)
    # Every parameter comes from some tensor, and every number of the file is a parameter.
    tensors = load_file(tmp_path / "model.safetensors")
    assert sum(x.size for x in tensors.values()) == sum(x.size for x in jax.tree.leaves(params))
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    # Nothing of the training is in a file, and layers are stored one by one.
    other = dataclasses.replace(model.config, scan_layers=True, dropout=0.3, remat="full", dtype="bfloat16")
    save(tmp_path / "scanned", build(other), stacked(params, 1))
    same(load(tmp_path / "scanned")[1], params)


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    save(tmp_path, *some_model(SMALL["gpt2"]))
    return tmp_path


def change(folder: Path, f: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    path = folder / "model.safetensors"
    save_file(f(load_file(path)), path)


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_queries_keys_and_values_lie_side_by_side(gpt2: Path) -> None:
    tensor = load_file(gpt2 / "model.safetensors")["transformer.h.1.attn.c_attn.weight"]
    layer = load(gpt2)[1]["params"]["decoder"]["layer_1"]["self_attention"]
    for i, part in enumerate(("query", "key", "value")):
        np.testing.assert_array_equal(layer[part]["kernel"], tensor[:, i * D : (i + 1) * D])


def test_patches_lie_row_by_row(tmp_path: Path) -> None:
    """The convolution's sum over channel, row and column, element by element."""
    model, params = some_model(SMALL["vit"])
    save(tmp_path, model, params)
    kernel = load_file(tmp_path / "model.safetensors")["vit.embeddings.patch_embeddings.projection.weight"]
    assert kernel.shape == (D, 2, 3, 3)
    image = np.random.default_rng(1).normal(size=(1, 6, 6, 2)).astype(np.float32)
    embedded = model.apply(params, jnp.asarray(image), None, method=lambda m, x, where: m.front(x, where).x)
    bias = np.asarray(params["params"]["front"]["patches"]["bias"])
    for place, (top, left) in enumerate([(0, 0), (0, 3), (3, 0), (3, 3)], start=1):
        patch = image[0, top : top + 3, left : left + 3].astype(np.float64)
        expected = [
            sum(kernel[d, c, y, x] * patch[y, x, c] for c in range(2) for y in range(3) for x in range(3)) + bias[d]
            for d in range(D)
        ]
        np.testing.assert_allclose(embedded[0, place], expected, rtol=1e-5, atol=1e-5)


def test_other_names_and_what_no_output_depends_on(gpt2: Path, tmp_path: Path) -> None:
    expected = load(gpt2)[1]
    masks = {f"h.{i}.attn.bias": np.ones((1, 1, 7, 7), np.float32) for i in range(N)}

    def as_released(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        return bare | masks | {"lm_head.weight": bare["wte.weight"].copy()}

    change(gpt2, as_released)
    same(load(gpt2)[1], expected)

    folder = tmp_path / "bert"
    save(folder, *some_model(SMALL["bert"]))
    expected = load(folder)[1]

    def as_tensorflow(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        renamed = {
            next((k.replace(new, was) for new, was in old.items() if k.endswith(new)), k): v for k, v in tensors.items()
        }
        more = {"bert.pooler.dense.weight": np.ones((D, D)), "cls.seq_relationship.bias": np.ones(2)}
        return renamed | {name: value.astype(np.float32) for name, value in more.items()}

    change(folder, as_tensorflow)
    assert "bert.embeddings.LayerNorm.gamma" in load_file(folder / "model.safetensors")
    same(load(folder)[1], expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_dtypes_are_read_as_float32(gpt2: Path, dtype: Any) -> None:
    stored = load_file(gpt2 / "model.safetensors")["transformer.wte.weight"].astype(dtype)
    change(gpt2, lambda tensors: {name: tensor.astype(dtype) for name, tensor in tensors.items()})
    table = load(gpt2)[1]["params"]["embedder"]["table"]
    assert table.dtype == jnp.float32
    np.testing.assert_array_equal(table, stored.astype(np.float32))


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2", "I8", "U8", "I64", "BOOL"])
def test_quantised_tensors_are_refused(gpt2: Path, kind: str) -> None:
    """But a mask or position number, which no output depends on, may have any type."""
    path, size = gpt2 / "model.safetensors", 8 if kind == "I64" else 1

    def stored_so(name: str, length: int) -> None:
        """Adds a tensor to the file, byte by byte: NumPy has not all of these types."""
        content = path.read_bytes()
        begin = 8 + int.from_bytes(content[:8], "little")
        header, data = json.loads(content[8:begin]), content[begin:]
        ends = [len(data), len(data) + size * length]
        header[name] = {"dtype": kind, "shape": [length], "data_offsets": ends}
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data + bytes(size * length))

    expected = load(gpt2)[1]
    stored_so("h.0.attn.bias", 7)
    same(load(gpt2)[1], expected)
    save(gpt2, *some_model(SMALL["gpt2"]))
    change(gpt2, lambda tensors: {name: x for name, x in tensors.items() if name != "transformer.ln_f.bias"})
    stored_so("transformer.ln_f.bias", D)
    with pytest.raises(UserError, match=rf"holds transformer\.ln_f\.bias in {kind}, as quantised weights are stored"):
        load(gpt2)


def test_weights_of_a_run_that_diverged_are_refused(gpt2: Path) -> None:
    change(gpt2, lambda tensors: tensors | {"transformer.ln_f.bias": np.full(D, np.nan, np.float32)})
    with pytest.raises(UserError, match=r"holds NaN in transformer\.ln_f\.bias"):
        load(gpt2)


def test_shards(gpt2: Path) -> None:
    expected = load(gpt2)[1]
    tensors = load_file(gpt2 / "model.safetensors")
    names = sorted(tensors)
    index = {}
    for i in range(3):
        shard = f"model-0000{i + 1}-of-00003.safetensors"
        save_file({name: tensors[name] for name in names[i::3]}, gpt2 / shard)
        index |= dict.fromkeys(names[i::3], shard)
    (gpt2 / "model.safetensors").unlink()
    (gpt2 / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    same(load(gpt2)[1], expected)
    (gpt2 / shard).unlink()
    with pytest.raises(UserError, match=r"names 'model-00003.*not there: copy all 3 shards"):
        load(gpt2)
    for damaged, message in (
        ({}, "no index of shards"),
        ([], "copy it again"),
        ({"weight_map": ["x"]}, "weight_map="),
        ({"weight_map": {"a": 1}}, "assigns a to 1, which is no file of the folder"),
        ({"weight_map": {"a": "../x"}}, "assigns a to '../x'"),
    ):
        (gpt2 / "model.safetensors.index.json").write_text(json.dumps(damaged))
        with pytest.raises(UserError, match=message):
            load(gpt2)
    (gpt2 / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match=r"holds shards without model\.safetensors\.index\.json"):
        load(gpt2)


def test_shards_follow_their_index(gpt2: Path) -> None:
    """A stale copy in another shard is not read, and no tensor is looked for elsewhere."""
    expected = load(gpt2)[1]
    tensors = load_file(gpt2 / "model.safetensors")
    first, *rest = sorted(tensors)
    stale = {first: tensors[first] + 1, "left over": np.zeros(1, np.float32)}
    save_file({first: tensors[first]}, gpt2 / "a.safetensors")
    save_file({name: tensors[name] for name in rest} | stale, gpt2 / "b.safetensors")
    (gpt2 / "model.safetensors").unlink()
    index = {first: "a.safetensors"} | dict.fromkeys(rest, "b.safetensors")
    (gpt2 / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    same(load(gpt2)[1], expected)
    index[rest[0]] = "a.safetensors"
    (gpt2 / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(UserError, match=r"assigns .* to 'a\.safetensors', which does not hold it"):
        load(gpt2)


@pytest.mark.parametrize(
    ("name", "kept", "dropped"),
    [
        ("gpt2", "lm_head.weight", "transformer.wte.weight"),
        ("llama", "lm_head.weight", "model.embed_tokens.weight"),
        ("t5", "lm_head.weight", "shared.weight"),
        ("t5", "encoder.embed_tokens.weight", "shared.weight"),
        ("marian", "lm_head.weight", "model.shared.weight"),
        ("bert", "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("bert", "cls.predictions.decoder.bias", "cls.predictions.bias"),
    ],
)
def test_a_tied_table_by_either_name(name: str, kept: str, dropped: str, tmp_path: Path) -> None:
    tied = {"scale_decoder_outputs": True} if name == "t5" else {"tie_word_embeddings": True}
    model, params = some_model(SMALL[name] | tied)
    save(tmp_path, model, params)
    change(tmp_path, lambda tensors: tensors | {kept: tensors.pop(dropped)})
    same(load(tmp_path)[1], params)


# --- What a folder says besides


IDS: dict[str, Any] = {"bos_token_id": 3, "eos_token_id": [5, 6], "pad_token_id": None, "sep_token_id": 4}


@every
def test_special_tokens_are_kept(name: str, tmp_path: Path) -> None:
    ids = IDS | ({"decoder_start_token_id": 9, "forced_eos_token_id": 5} if name in ("t5", "marian") else {})
    if name == "vit":
        ids |= {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    save(tmp_path, *some_model(SMALL[name]))
    configure(tmp_path, **ids)
    generation = '{"eos_token_id": [5, 7], "suppress_tokens": [1]}'
    (tmp_path / "generation_config.json").write_text(generation)
    model, params = load(tmp_path)
    other = build(dataclasses.replace(model.config, remat="full"))
    save(tmp_path / "again", other, params)
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert {key: written[key] for key in ids} == ids
    assert (tmp_path / "again" / "generation_config.json").read_text() == generation
    assert load(tmp_path / "again")[0].config == model.config
    save(tmp_path / "other", model, params, {"eos_token_id": 2})
    written = json.loads((tmp_path / "other" / "config.json").read_text())
    assert {key: written[key] for key in ids} == ids | {"eos_token_id": 2}
    assert not (tmp_path / "other" / "generation_config.json").exists()


def test_special_tokens_that_nobody_named_are_null(gpt2: Path, tmp_path: Path) -> None:
    written = json.loads((gpt2 / "config.json").read_text())
    assert {written[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")} == {None}
    with pytest.raises(UserError, match="special_ids sets eos=2, which we do not know"):
        save(tmp_path / "out", *load(gpt2), special_ids={"eos": 2})


@pytest.mark.parametrize("value", ["2", True, 2.0, [1, "2"], {}])
def test_special_tokens_that_are_no_ids(gpt2: Path, value: Any) -> None:
    configure(gpt2, eos_token_id=value)
    with pytest.raises(UserError, match=r"config\.json sets eos_token_id=.*must be the id of a token"):
        load(gpt2)
    configure(gpt2, eos_token_id=2)
    (gpt2 / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(UserError, match=r"generation_config\.json sets eos_token_id="):
        load(gpt2)
    (gpt2 / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match=r"generation_config\.json' cannot be read as JSON"):
        load(gpt2)


# --- Refusals


def test_folders_that_are_none(tmp_path: Path, gpt2: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json in .*name a folder"):
        load(tmp_path / "nowhere")
    for damaged in ("{", "[1]"):
        folder = tmp_path / "damaged"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(damaged)
        with pytest.raises(UserError, match="copy it again"):
            load(folder)
    (gpt2 / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no model\.safetensors in"):
        load(gpt2)
    (gpt2 / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(UserError, match=r"pickle only \(pytorch_model\.bin\).*can run any code"):
        load(gpt2)


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_files_that_are_cut_off(gpt2: Path, kept: int) -> None:
    path = gpt2 / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"is cut off or no safetensors file \([\d,]+ bytes"):
        load(gpt2)


def test_tensors_that_do_not_fit(gpt2: Path, tmp_path: Path) -> None:
    whole = load_file(gpt2 / "model.safetensors")
    wte, bias = "transformer.wte.weight", "transformer.h.1.attn.c_attn.bias"

    def refused(tensors: dict[str, np.ndarray], message: str) -> None:
        save_file(tensors, gpt2 / "model.safetensors")
        with pytest.raises(UserError, match=message) as error:
            load(gpt2)
        assert "\n" not in str(error.value)

    rest = {name: tensor for name, tensor in whole.items() if name not in (wte, bias)}
    refused(rest, r"it lacks h\.1\.attn\.c_attn\.bias, wte\.weight$")
    refused(whole | {"transformer.h.2.ln_1.bias": whole[bias]}, r"it has besides h\.2\.ln_1\.bias$")
    refused(rest | {"x": whole[wte]}, r"it lacks h\.1\.attn\.c_attn\.bias, wte\.weight and has besides x$")
    refused(whole | {f"x{i}": whole[bias] for i in range(9)}, r"besides x0, x1, x2, x3, x4, x5 and 3 more$")
    refused(whole | {wte: whole[wte][:-1].copy()}, rf"wte\.weight of shape \[{V - 1}, {D}\].* makes it \[{V}, {D}\]")
    refused(whole | {bias: whole[bias][:-1].copy()}, rf"c_attn\.bias of shape \[{3 * D - 1}\].* makes it \[{3 * D}\]")
    refused(whole | {"lm_head.weight": whole[wte] + 1}, r"lm_head\.weight that differs from transformer\.wte\.weight")

    save(tmp_path / "llama", *some_model(SMALL["llama"]))
    refused(load_file(tmp_path / "llama" / "model.safetensors"), r"weights of another architecture than gpt2")


SETTINGS: list[tuple[str, dict[str, Any], str]] = [
    ("gpt2", {"model_type": "mistral"}, r"model_type='mistral', and we have only gpt2, bert"),
    ("gpt2", {"model_type": None}, r"model_type=None"),
    ("gpt2", {"architectures": ["GPT2ForTokenClassification"]}, r"\['GPT2ForTokenClassification'\].*GPT2LMHeadModel"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, r"scale_attn_by_inverse_layer_idx=True"),
    ("gpt2", {"activation_function": "mish"}, r"activation_function='mish', and of that we have only relu"),
    ("gpt2", {"n_layer": "two"}, r"n_layer='two', which is no int"),
    ("gpt2", {"n_layer": 0}, r"n_layer=0: it must be 1 or more"),
    ("gpt2", {"n_embd": None}, r"has no n_embd"),
    ("bert", {"position_embedding_type": "relative_key"}, r"position_embedding_type='relative_key'"),
    ("bert", {"is_decoder": True}, r"is_decoder=True"),
    ("t5", {"num_decoder_layers": 3}, r"num_decoder_layers=3, and our modules know only num_decoder_layers=2"),
    ("t5", {"relative_attention_num_buckets": 16}, r"relative_attention_num_buckets=16"),
    ("t5", {"feed_forward_proj": "gated-mish"}, r"feed_forward_proj='gated-mish'"),
    ("vit", {"qkv_bias": False}, r"qkv_bias=False"),
    ("vit", {"patch_size": 4}, r"image_size=6, which patch_size=4 does not divide"),
    ("marian", {"share_encoder_decoder_embeddings": False}, r"share_encoder_decoder_embeddings=False"),
    ("marian", {"normalize_before": True}, r"normalize_before=True"),
    ("llama", {"rope_theta": "large"}, r"rope_theta='large', which is no float"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, r"rope_scaling\.type='linear'"),
    ("llama", {"rope_parameters": {"rope_type": "llama3"}}, r"rope_parameters\.rope_type='llama3'"),
    *[("llama", {"rope_scaling": {"rope_type": kind, "factor": 2.0}}, rf"rope_scaling\.rope_type='{kind}'")
      for kind in ("dynamic", "yarn", "longrope", "llama3", "mrope", "su")],
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 1.0}}, r"rope_scaling\.type='dynamic'"),
    ("llama", {"rope_scaling": {"factor": 2.0}}, r"rope_scaling\.factor=2\.0"),
    ("llama", {"rope_scaling": "linear"}, r"rope_scaling='linear', which is no dict"),
    ("llama", {"rope_parameters": {"rope_theta": True}}, r"rope_theta=True, which is no float"),
    ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, r"rope_parameters\.full_attention="),
    ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, r"partial_rotary_factor=0\.5"),
    ("llama", {"partial_rotary_factor": 0.5}, r"partial_rotary_factor=0\.5"),
    ("llama", {"rope_theta": -1.0}, r"config\.json describes a model that cannot be: model\.rotary_theta"),
    ("llama", {"num_key_value_heads": 2}, r"model that cannot be: model\.num_kv_heads=2 does not divide"),
    ("llama", {"num_key_value_heads": 0}, r"num_key_value_heads=0: it must be 1 or more"),
    ("llama", {"head_dim": 3}, r"model that cannot be: model\.positions='rotary-half' rotates pairs"),
    ("llama", {"rms_norm_eps": math.nan}, r"model that cannot be: model\.norm_eps must be above 0"),
    ("llama", {"sliding_window": 4}, r"sets sliding_window=4, which we do not know: take it out if"),
    ("llama", {"attn_logit_softcapping": 50.0}, r"attn_logit_softcapping=50\.0, which we do not know"),
    ("llama", {"final_logit_softcapping": 30.0}, r"final_logit_softcapping=30\.0, which we do not know"),
    ("gpt2", {"n_head": 5}, r"model that cannot be: model\.d_model=12 does not divide by model\.num_heads=5"),
    ("gpt2", {"n_head": 24}, r"model that cannot be"),
    ("gpt2", {"n_ctx": 6}, r"n_ctx=6, and our modules know only n_ctx=7"),
    ("gpt2", {"embd_pdrop": 0.0, "resid_pdrop": 0.3}, r"embd_pdrop=0\.0 and resid_pdrop=0\.3.*have one rate"),
    ("gpt2", {"resid_pdrop": 1.0, "embd_pdrop": 1.0}, r"model\.dropout must be at least 0 and below 1"),
    ("t5", {"is_gated_act": True}, r"is_gated_act=True, and our modules know only is_gated_act=False"),
    ("t5", {"dense_act_fn": "silu"}, r"dense_act_fn='silu'"),
    ("t5", {"relative_attention_max_distance": 64}, r"relative_attention_max_distance=64"),
    ("t5", {"is_encoder_decoder": False}, r"is_encoder_decoder=False"),
    ("vit", {"pooler_act": "relu"}, r"pooler_act='relu'"),
    ("marian", {"static_position_embeddings": False}, r"static_position_embeddings=False"),
    ("marian", {"encoder_layerdrop": 0.1}, r"encoder_layerdrop=0\.1"),
    ("marian", {"activation_dropout": 0.1}, r"activation_dropout=0\.1"),
    ("bert", {"directionality": "left"}, r"directionality='left'"),
    *[(name, changes, next(iter(changes)))
      for name in ARCHITECTURES
      for changes in (
          {"quantization_config": {"quant_method": "gptq"}}, {"auto_map": {"AutoModel": "a.B"}},
          {"pruned_heads": {"1": [0]}}, {"per_layer_config": {"0": {}}}, {"tie_encoder_decoder": True},
          {"add_cross_attention": True}, {"is_encoder_decoder": name not in ("t5", "marian")}, {"of_tomorrow": 0.5},
      )],
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "message"), SETTINGS, ids=[f"{n}-{next(iter(c))}" for n, c, _ in SETTINGS])
def test_settings_that_our_modules_do_not_have(name: str, changes: dict[str, Any], message: str) -> None:
    model_config(SMALL[name])
    with pytest.raises(UserError, match=message) as error:
        model_config(SMALL[name] | changes)
    assert "\n" not in str(error.value)


# Every key of the reference's configuration classes (transformers 5.24) and of older files, with values that change
# nothing; SMALL has the sizes.
ALL = """transformers_version="5.24.0" _name_or_path="x" name_or_path="x" torch_dtype="float16" dtype="bfloat16"
output_hidden_states=true output_attentions=false return_dict=true chunk_size_feed_forward=3 problem_type=null
use_bfloat16=false torchscript=false pruned_heads={} tie_encoder_decoder=false finetuning_task=null tokenizer_class=null
prefix=null task_specific_params={"a":1} cross_attention_hidden_size=null add_cross_attention=false use_cache=false
gradient_checkpointing=false quantization_config=null per_layer_config=null sliding_window=null max_length=20
num_beams=6 temperature=0.5 bad_words_ids=[[1]] _attn_implementation_autoset=true id2label={"0":"a","1":"b","2":"c"}
label2id={"a":0,"b":1,"c":2} _num_labels=3"""
OWN = {
    "gpt2": """n_inner=null activation_function="gelu_new" resid_pdrop=0.1 embd_pdrop=0.1 attn_pdrop=0.2 is_decoder=true
    layer_norm_epsilon=1e-5 initializer_range=0.02 summary_type="cls_index" summary_use_proj=true
    summary_activation=null summary_proj_to_labels=true summary_first_dropout=0.1 scale_attn_weights=true
    scale_attn_by_inverse_layer_idx=false reorder_and_upcast_attn=true tie_word_embeddings=true n_ctx=7
    output_past=true""",
    "bert": """hidden_act="gelu" hidden_dropout_prob=0.1 attention_probs_dropout_prob=0.2 type_vocab_size=2
    initializer_range=0.02 layer_norm_eps=1e-12 classifier_dropout=0.3 is_decoder=false tie_word_embeddings=true
    position_embedding_type="absolute" directionality="bidi" pooler_fc_size=768 pooler_num_attention_heads=12
    pooler_num_fc_layers=3 pooler_size_per_head=128 pooler_type="first_token_transform\"""",
    "t5": """num_decoder_layers=2 relative_attention_num_buckets=32 relative_attention_max_distance=128 dropout_rate=0.1
    layer_norm_epsilon=1e-6 initializer_factor=1.0 feed_forward_proj="relu" classifier_dropout=0.0 is_decoder=false
    dense_act_fn="relu" is_gated_act=false scale_decoder_outputs=true tie_word_embeddings=true n_positions=512
    is_encoder_decoder=true output_past=true""",
    "vit": """hidden_act="gelu" hidden_dropout_prob=0.0 attention_probs_dropout_prob=0.1 initializer_range=0.02
    layer_norm_eps=1e-12 qkv_bias=true encoder_stride=16 pooler_output_size=12 pooler_act="tanh"
    tie_word_embeddings=true is_decoder=false""",
    "marian": """decoder_vocab_size=17 max_position_embeddings=1024 encoder_layerdrop=0.0 decoder_layerdrop=0.0
    dropout=0.1 attention_dropout=0.1 activation_dropout=0.0 init_std=0.02 share_encoder_decoder_embeddings=true
    is_decoder=false tie_word_embeddings=true add_bias_logits=false add_final_layer_norm=false classif_dropout=0.0
    classifier_dropout=0.0 extra_pos_embeddings=17 force_bos_token_to_be_generated=false normalize_before=false
    normalize_embedding=false num_hidden_layers=2 static_position_embeddings=true is_encoder_decoder=true""",
    "llama": """hidden_act="silu" max_position_embeddings=2048 initializer_range=0.02 rms_norm_eps=1e-6 pretraining_tp=2
    tie_word_embeddings=false rope_parameters={"rope_theta":10000.0,"rope_type":"default"} rope_theta=10000.0
    rope_scaling=null attention_bias=false attention_dropout=0.1 mlp_bias=false head_dim=4 is_decoder=true""",
}


@every
def test_every_key_of_the_reference_is_known(name: str) -> None:
    values = dict(pair.split("=", 1) for pair in f"{ALL} {OWN[name]} {' '.join(f'{key}=1' for key in IDS)}".split())
    settings = SMALL[name] | {key: json.loads(value) for key, value in values.items()}
    assert model_config(settings) == model_config(SMALL[name])


def test_each_key_has_one_meaning() -> None:
    for name, architecture in ARCHITECTURES.items():
        own = set(architecture.unused.split())
        assert not own & UNUSED.keys(), name
        assert not (own | UNUSED.keys()) & (NEEDED.keys() | set(SPECIAL_IDS) | set(NAMES)), name
        written = architecture.to_settings(model_config(SMALL[name]))
        no_effect = {"attn_pdrop", "attention_probs_dropout_prob"}  # written as 0, since ours has none
        assert not written.keys() & ((own | UNUSED.keys()) - no_effect), name


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 500000.0},
        {"rope_scaling": {"type": "linear", "factor": 1.0}, "rope_theta": 500000.0},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0, "partial_rotary_factor": 1.0}},
        {"rope_theta": 500000, "rope_scaling": {"rope_type": "default"}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    ],
)
def test_the_base_of_the_angles_is_read_and_written(changes: dict[str, Any]) -> None:
    values = {name: value for name, value in SMALL["llama"].items() if not name.startswith("rope")}
    config = model_config(values | changes)
    assert config.rotary_theta == 500_000
    assert LLAMA.to_settings(config)["rope_theta"] == 500_000
    assert model_config(values).rotary_theta == 10_000


def test_settings_are_refused_before_the_weights_are_read(gpt2: Path) -> None:
    configure(gpt2, n_layer=3)
    with pytest.raises(UserError, match=r"it lacks h\.2\.attn\.c_attn\.bias.* and 6 more"):
        load(gpt2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "alibi"}, r"gpt2 comes nearest, and has model\.positions='learned' \(not 'alibi'\)"),
        ({"attention": ("window:4",)}, r"gpt2 .*attention=\('full',\) \(not \('window:4',\)\)"),
        ({"norm": "post", "activation": "relu"}, r"gpt2 comes nearest, and has model\.norm='pre' \(not 'post'\)$"),
    ],
)
def test_models_that_no_architecture_is(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = dataclasses.replace(model_config(SMALL["gpt2"]), **changes)
    with pytest.raises(UserError, match=message):
        save(tmp_path / "out", build(config), {"params": {}})
    assert not (tmp_path / "out").exists()


def test_the_papers_model_is_of_no_architecture(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="marian comes nearest"):
        save(tmp_path / "out", build(ModelConfig(vocab_size=V, attention_bias=True)), {"params": {}})


def test_a_model_that_no_settings_can_say(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is this model: gpt2 sets n_inner=0: .*; llama sets intermediate_size=0"):
        save(tmp_path / "out", build(dataclasses.replace(model_config(SMALL["gpt2"]), d_ff=0)), {"params": {}})


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write to"):
        save(tmp_path / "file", *some_model(SMALL["gpt2"]))
