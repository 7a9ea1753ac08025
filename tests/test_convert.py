"""llama2.c checkpoints: the converted folder against that code's own arithmetic and its own encoding, loop by loop."""

import json
import os
import re
import struct
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from transformer.convert import convert
from transformer.data.tokenizers.llama2c import read_vocabulary, to_tokenizer
from transformer.decoding.greedy import greedy
from transformer.errors import UserError
from transformer.model.pretrained import load
from transformer.model.tokens import Tokens

DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, POSITIONS = 12, 10, 2, 3, 1, 11
# Pieces that can be made in more than one way ("aaa", "abab"), that hold a space, and letters beyond ASCII.
LEARNED = [" a", "ab", "aa", "aaa", "abab", " ab", "he", "é", "éé", " the", " t", *" abcehté\n"]
V = 259 + len(LEARNED)


def vocabulary() -> list[tuple[bytes, float]]:
    pieces = [(piece, 0.0) for piece in (b"<unk>", b"\n<s>\n", b"\n</s>\n")]
    pieces += [(f"<0x{byte:02X}>".encode(), 0.0) for byte in range(256)]
    return pieces + [(piece.encode(), -float(i)) for i, piece in enumerate(LEARNED)]


def vocabulary_file(path: Path) -> Path:
    content = struct.pack("<i", 7)
    for piece, score in vocabulary():
        content += struct.pack("<fi", score, len(piece)) + piece
    path.write_bytes(content)
    return path


def random_parts(shared: bool = True) -> dict[str, np.ndarray]:
    """The tensors of a .bin file, by that code's names and in its order."""
    rng, width = np.random.default_rng(0), DIM // HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "embedding": (V, DIM), "rms_att": (LAYERS, DIM), "wq": (LAYERS, DIM, DIM),
        "wk": (LAYERS, KV_HEADS * width, DIM), "wv": (LAYERS, KV_HEADS * width, DIM), "wo": (LAYERS, DIM, DIM),
        "rms_ffn": (LAYERS, DIM), "w1": (LAYERS, HIDDEN, DIM), "w2": (LAYERS, DIM, HIDDEN), "w3": (LAYERS, HIDDEN, DIM),
        "rms_final": (DIM,), "cosines": (POSITIONS, width // 2), "sines": (POSITIONS, width // 2),
    }  # fmt: skip
    if not shared:
        shapes["wcls"] = (V, DIM)
    parts = {name: rng.normal(size=shape).astype(np.float32) * 0.5 for name, shape in shapes.items()}
    return parts | {name: 1 + parts[name] for name in parts if name.startswith("rms")}


def weights_file(path: Path, parts: dict[str, np.ndarray]) -> Path:
    size = -V if "wcls" in parts else V
    header = np.array([DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, size, POSITIONS], "<i4")
    path.write_bytes(header.tobytes() + b"".join(part.astype("<f4").tobytes() for part in parts.values()))
    return path


def run_c(parts: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """The forward pass of run.c in float64, token by token over a cache: logits [L, V]."""
    p = {name: part.astype(np.float64) for name, part in parts.items()}
    width, logits = DIM // HEADS, []
    keys: list[list[np.ndarray]] = [[] for _ in range(LAYERS)]
    values: list[list[np.ndarray]] = [[] for _ in range(LAYERS)]

    def rms(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return weight * x / np.sqrt((x * x).mean() + 1e-5)

    def turned(x: np.ndarray, position: int) -> np.ndarray:
        x = x.copy()
        for i in range(0, len(x), 2):
            angle = position / 10000.0 ** ((i % width) / width)
            a, b = x[i], x[i + 1]
            x[i], x[i + 1] = a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)
        return x

    for position, token in enumerate(tokens):
        x = p["embedding"][token]
        for layer in range(LAYERS):
            y = rms(x, p["rms_att"][layer])
            q = turned(p["wq"][layer] @ y, position)
            keys[layer].append(turned(p["wk"][layer] @ y, position))
            values[layer].append(p["wv"][layer] @ y)
            out = np.zeros(DIM)
            for head in range(HEADS):
                mine, theirs = slice(head * width, (head + 1) * width), head // (HEADS // KV_HEADS) * width
                scores = np.array([q[mine] @ k[theirs : theirs + width] for k in keys[layer]]) / np.sqrt(width)
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                out[mine] = sum(w * v[theirs : theirs + width] for w, v in zip(weights, values[layer], strict=True))
            x = x + p["wo"][layer] @ out
            y = rms(x, p["rms_ffn"][layer])
            gate = p["w1"][layer] @ y
            x = x + p["w2"][layer] @ (gate / (1 + np.exp(-gate)) * (p["w3"][layer] @ y))
        logits.append(p.get("wcls", p["embedding"]) @ rms(x, p["rms_final"]))
    return np.array(logits)


@pytest.mark.parametrize("shared", [True, False])
def test_logits_are_those_of_run_c(tmp_path: Path, shared: bool) -> None:
    parts = random_parts(shared)
    weights, pieces = weights_file(tmp_path / "w.bin", parts), vocabulary_file(tmp_path / "t.bin")
    convert(weights, pieces, tmp_path / "out")
    model, params = load(tmp_path / "out")
    assert model.config.tied == shared
    tokens = np.random.default_rng(1).integers(0, V, POSITIONS).tolist()
    where = Tokens(jnp.arange(POSITIONS)[None], jnp.ones((1, POSITIONS), jnp.int32))
    got = model.apply(params, jnp.array([tokens]), where)[0]
    np.testing.assert_allclose(got, run_c(parts, tokens), atol=1e-5, rtol=1e-5)


def encode_c(pieces: list[tuple[bytes, float]], text: str) -> list[int]:
    """`encode` of run.c, without BOS: a space in front, characters or their bytes, then the best pair until none."""
    ids: dict[bytes, int] = {}
    for i, (piece, _) in enumerate(pieces):
        ids.setdefault(piece, i)
    tokens = [ids[b" "]] if text else []
    for character in text:
        code = character.encode()
        tokens += [ids[code]] if code in ids else [byte + 3 for byte in code]
    while True:
        best, at, made = -1e10, -1, -1
        for i in range(len(tokens) - 1):
            joint = ids.get(pieces[tokens[i]][0] + pieces[tokens[i + 1]][0])
            if joint is not None and pieces[joint][1] > best:
                best, at, made = pieces[joint][1], i, joint
        if at < 0:
            return tokens
        tokens[at : at + 2] = [made]


TOKENIZER = to_tokenizer([(piece.decode(), score) for piece, score in vocabulary()])


@given(st.lists(st.sampled_from([*" aabbeht", "é", "漢", "▁", "\n", "<s>", "<0x61>", "\n<s>\n", "😀"])).map("".join))
def test_encoding_is_that_of_run_c(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert ids == encode_c(vocabulary(), text)
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.encode(text).ids == [1, *ids]


def test_what_cannot_be_converted(tmp_path: Path) -> None:
    weights, pieces = weights_file(tmp_path / "w.bin", random_parts()), vocabulary_file(tmp_path / "t.bin")
    whole, all_pieces, bad = weights.read_bytes(), pieces.read_bytes(), tmp_path / "bad.bin"
    refused: list[tuple[bytes, str]] = [
        (whole[:-1], "its header makes it"),
        (whole + b"1234", "its header makes it"),
        (whole[:20], "does not begin with the sizes"),
        (b"\0" * 28 + whole[28:], "does not begin with the sizes"),
        (np.array([DIM, HIDDEN, LAYERS, 5, KV_HEADS, V, POSITIONS], "<i4").tobytes(), "does not begin with the sizes"),
    ]
    for content, message in refused:
        bad.write_bytes(content)
        with pytest.raises(UserError, match=message):
            convert(bad, pieces, tmp_path / "out")
    for content in (all_pieces[:-1], all_pieces + b"12345678" * 2, all_pieces[:3], all_pieces[:-9], b"\xff" * 40):
        bad.write_bytes(content)
        with pytest.raises(UserError, match=f"does not hold the {V} pieces"):
            convert(weights, bad, tmp_path / "out")
    with pytest.raises(UserError, match=r"cannot read .*none\.bin"):
        convert(tmp_path / "none.bin", pieces, tmp_path / "out")
    with pytest.raises(UserError, match=r"cannot read .*none\.bin"):
        convert(weights, tmp_path / "none.bin", tmp_path / "out")
    assert not (tmp_path / "out").exists()  # nothing is written before all is checked


STORIES = os.environ.get("STORIES260K", "")


@pytest.mark.slow
@pytest.mark.skipif(
    not STORIES, reason="set STORIES260K to the folder of stories260K.bin, tok512.bin and stories260K.md"
)
def test_the_published_story(tmp_path: Path) -> None:
    """Greedy decoding of the real weights gives the published text, letter by letter."""
    folder = Path(STORIES)
    convert(folder / "stories260K.bin", folder / "tok512.bin", tmp_path)
    published = re.search(r"-t 0\.0\n(.*?)\n```", (folder / "stories260K.md").read_text(), re.DOTALL)
    assert published is not None
    model, params = load(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["num_key_value_heads"] == 4

    def step(tokens: Any, positions: Any, state: Any) -> Any:
        logits, state = model.apply(params, tokens, Tokens(positions, jnp.ones_like(positions)), state, method="step")
        return logits[:, -1], state

    begin, steps = 1, 256  # run.c ends at 256 steps, or where the model begins another story
    state = model.apply(params, 1, steps, method="start")
    written = np.asarray(greedy(step, state, jnp.array([begin]), jnp.zeros(1, jnp.int32), steps, None, begin))[0]
    pieces = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert pieces.decode(written.tolist()) == published[1]
    assert pieces.encode(published[1]).ids == [begin, *written.tolist()]

    real = [(piece.encode(), score) for piece, score in read_vocabulary(folder / "tok512.bin", 512)]
    for line in (folder / "stories260K.md").read_text().splitlines():
        assert pieces.encode(line, add_special_tokens=False).ids == encode_c(real, line)
        assert pieces.decode(encode_c(real, line)) == line
