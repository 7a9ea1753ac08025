"""Checkpoints of llama2.c: a .bin file with a header of 28 bytes, then float32 in the order of its structs."""

from pathlib import Path
from typing import Any

import numpy as np

from transformer.errors import UserError

HEADER = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")


def read_llama2c(path: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """config.json and the tensors of a Llama, with the names and shapes of Hugging Face. Rotary pairs are the features
    (2i, 2i + 1) there and (i, i + K/2) here, so the rows of query and key matrices are permuted. UserError: no such
    file, a header without sizes, or a length that does not match them."""
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from error
    header = np.frombuffer(content[: 4 * len(HEADER)], "<i4")
    sizes = dict(zip(HEADER, map(int, header), strict=False))
    if len(header) < len(HEADER) or not _plausible(sizes):
        raise UserError(
            f"{str(path)!r} does not begin with the sizes of a llama2.c model: name a file such as stories15M.bin"
        )
    layout = _layout(sizes)
    length = 4 * len(HEADER) + 4 * sum(int(np.prod(shape)) for shape in layout.values())
    if len(content) != length:
        raise UserError(
            f"{str(path)!r} has {len(content):,} bytes, and its header makes it {length:,}: it is cut off, or "
            "not version 0 (float32), so copy it again or export it anew"
        )
    flat, parts, at = np.frombuffer(content, "<f4", offset=4 * len(HEADER)), {}, 0
    for name, shape in layout.items():
        parts[name] = flat[at : at + int(np.prod(shape))].reshape(shape)
        at += parts[name].size
    return _settings(sizes), _tensors(sizes, parts)


def _plausible(sizes: dict[str, int]) -> bool:
    positive = all(value > 0 for name, value in sizes.items() if name != "vocab_size") and sizes["vocab_size"] != 0
    return positive and not sizes["dim"] % (2 * sizes["n_heads"]) and not sizes["n_heads"] % sizes["n_kv_heads"]


def _layout(sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Shapes in the order of the file. A negative vocabulary size means a separate output table at the end."""
    dim, hidden, layers, heads, kv_heads, vocab, positions = (sizes[name] for name in HEADER)
    width = dim // heads
    layout: dict[str, tuple[int, ...]] = {
        "token_embedding_table": (abs(vocab), dim),
        "rms_att": (layers, dim),
        "wq": (layers, heads * width, dim),
        "wk": (layers, kv_heads * width, dim),
        "wv": (layers, kv_heads * width, dim),
        "wo": (layers, dim, heads * width),
        "rms_ffn": (layers, dim),
        "w1": (layers, hidden, dim),
        "w2": (layers, dim, hidden),
        "w3": (layers, hidden, dim),
        "rms_final": (dim,),
        "cosines": (positions, width // 2),  # not read since the angles are a formula
        "sines": (positions, width // 2),
    }
    return layout if vocab > 0 else layout | {"wcls": (-vocab, dim)}


def _settings(sizes: dict[str, int]) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": abs(sizes["vocab_size"]),
        "max_position_embeddings": sizes["seq_len"],
        "num_hidden_layers": sizes["n_layers"],
        "hidden_size": sizes["dim"],
        "intermediate_size": sizes["hidden_dim"],
        "num_attention_heads": sizes["n_heads"],
        "num_key_value_heads": sizes["n_kv_heads"],
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": sizes["vocab_size"] > 0,
        "rope_theta": 10_000.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "float32",
    }


def _halves(matrix: np.ndarray, width: int) -> np.ndarray:
    """Permutes the rows of each head from interleaved pairs to halves: 0, 2, 4, ..., 1, 3, 5, ..."""
    heads = matrix.reshape(-1, width // 2, 2, matrix.shape[-1])
    return heads.swapaxes(1, 2).reshape(matrix.shape)


def _tensors(sizes: dict[str, int], parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    width = sizes["dim"] // sizes["n_heads"]
    tensors = {"model.embed_tokens.weight": parts["token_embedding_table"], "model.norm.weight": parts["rms_final"]}
    for i in range(sizes["n_layers"]):
        named = {
            "input_layernorm": parts["rms_att"][i],
            "self_attn.q_proj": _halves(parts["wq"][i], width),
            "self_attn.k_proj": _halves(parts["wk"][i], width),
            "self_attn.v_proj": parts["wv"][i],
            "self_attn.o_proj": parts["wo"][i],
            "post_attention_layernorm": parts["rms_ffn"][i],
            "mlp.gate_proj": parts["w1"][i],
            "mlp.down_proj": parts["w2"][i],
            "mlp.up_proj": parts["w3"][i],
        }
        tensors |= {f"model.layers.{i}.{name}.weight": tensor for name, tensor in named.items()}
    return tensors | ({"lm_head.weight": parts["wcls"]} if "wcls" in parts else {})
