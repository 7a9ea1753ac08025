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
    assert again.config == model.config
    same(read, params)
    # Every parameter comes from some tensor, and every number of the file is a parameter.
    tensors = load_file(tmp_path / "model.safetensors")
    assert sum(x.size for x in tensors.values()) == sum(x.size for x in jax.tree.leaves(params))
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    # Nothing of the training is in a file, and layers are stored one by one.
    other = dataclasses.replace(model.config, scan_layers=True, dropout=0.3, remat="full")
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
    (gpt2 / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="no index of shards"):
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
]


@pytest.mark.parametrize(("name", "changes", "message"), SETTINGS, ids=[f"{n}-{next(iter(c))}" for n, c, _ in SETTINGS])
def test_settings_that_our_modules_do_not_have(name: str, changes: dict[str, Any], message: str) -> None:
    model_config(SMALL[name])
    with pytest.raises(UserError, match=message) as error:
        model_config(SMALL[name] | changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 500000.0},
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
