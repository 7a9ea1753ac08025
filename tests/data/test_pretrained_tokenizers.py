"""Tokenizers of pretrained models, used as they are: compared with the `tokenizers` library itself, which makes small
ones of each kind here. And every kind of batch with their ids."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from transformer.config import Config, DataConfig, override
from transformer.data.batches.base import Batches
from transformer.data.batches.contiguous import ContiguousBatches
from transformer.data.batches.corrupted import MaskedBatches, SpanBatches
from transformer.data.batches.labelled import LabelledBatches
from transformer.data.batches.packed import PackedBatches
from transformer.data.batches.pairs import PairBatches
from transformer.data.batches.targets import target_arrays
from transformer.data.batches.tokens import Tokens
from transformer.data.tokenizers import MASK, TRAINED, Ends, Tokenizer, holes
from transformer.data.tokenizers.training import is_path, load_or_train, read
from transformer.errors import UserError
from transformer.tasks.texts import LanguageModel, Translation

WORDS = "a house by the lake was sold in may and the lake house stands still <s> [SEP] end of text".split()
TEXTS = [" ".join(WORDS[start : start + 7]) for start in range(12)]
UNSEEN = [*TEXTS, "", "  Houses,\nlakes!", "Zürich 東京 \N{REPLACEMENT CHARACTER}"]


def gpt2() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))
    made.add_special_tokens(["<|endoftext|>"])  # the last id, as in GPT-2
    made.post_processor = processors.ByteLevel()
    return made


def bert() -> tokenizers.Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = sorted({letter for text in TEXTS for letter in text if letter.isalpha()})
    pieces = ["[PAD]", "[unused0]", *special[1:], *letters, *(f"##{each}" for each in letters), "house", "lake", "["]
    model = models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]")
    made = tokenizers.Tokenizer(model)
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(special)
    made.post_processor = processors.BertProcessing(("[SEP]", pieces.index("[SEP]")), ("[CLS]", pieces.index("[CLS]")))
    made.enable_padding(pad_id=0, length=40)  # as sentence embedders are saved
    made.enable_truncation(5)
    return made


def t5() -> tokenizers.Tokenizer:
    letters = sorted({letter for text in TEXTS for letter in text if letter != " "} | set("</>_d0x"))
    special = [(name, 0.0) for name in ("<pad>", "</s>", "<unk>")]
    pieces = [*special, ("▁", -2.0), ("▁the", -2.5), ("▁house", -3.0), *((letter, -5.0) for letter in letters)]
    made = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.add_special_tokens(["<pad>", "</s>", "<unk>", *(f"<extra_id_{i}>" for i in reversed(range(100)))])
    return made


def llama() -> tokenizers.Tokenizer:
    letters = sorted({letter for text in TEXTS for letter in text if letter != " "} | set("</s>"))
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *letters,
        "th",
        "</",
        "s>",
        "▁h",
    ]
    # The merges of converted vocabularies make even the special tokens.
    merges = [("t", "h"), ("<", "/"), ("s", ">"), ("</", "s>"), ("▁", "h"), ("<", "s>")]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    made = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


MADE = {"gpt2": gpt2, "bert": bert, "t5": t5, "llama": llama}
# Role -> name of the token in each, with nothing but the file.
ROLES = {
    "gpt2": ("<|endoftext|>", "<|endoftext|>", "<|endoftext|>"),
    "bert": ("[PAD]", "[CLS]", "[SEP]"),
    "t5": ("<pad>", "<pad>", "</s>"),
    "llama": ("</s>", "<s>", "</s>"),
}


@functools.cache
def library(name: str) -> tokenizers.Tokenizer:
    return MADE[name]()


def of_library(made: tokenizers.Tokenizer, settings: Mapping[str, Any] | None = None) -> Tokenizer:
    return Tokenizer.pretrained(json.loads(made.to_str()), settings or {}, "tokenizer.json")


def plain(name: str) -> tokenizers.Tokenizer:
    """The library's own tokenizer, which neither pads nor cuts."""
    made = tokenizers.Tokenizer.from_str(library(name).to_str())
    made.no_padding()
    made.no_truncation()
    return made


@pytest.mark.parametrize("name", MADE)
def test_ids_are_those_of_the_library(name: str, tmp_path: Path) -> None:
    library(name).save(str(tmp_path / "tokenizer.json"))
    tokenizer, oracle = read(tmp_path), plain(name)
    named = [oracle.token_to_id(token) for token in ROLES[name]]
    assert [tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id] == named == list(tokenizer.ends)
    assert tokenizer.vocab_size == oracle.get_vocab_size()
    held = [text for text in UNSEEN if not any(each in text for each in ("<s>", "[SEP]", "</s>"))]
    assert len(held) > 5
    for text in held:
        ids = oracle.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text) == ids
        shown = [oracle.id_to_token(i) for i in ids]
        if "[UNK]" not in shown and "<unk>" not in shown:
            assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id, tokenizer.pad_id]) == oracle.decode(ids)
        else:
            assert "\N{REPLACEMENT CHARACTER}" in tokenizer.decode(ids)


@pytest.mark.parametrize("name", MADE)
def test_no_text_is_read_as_a_special_token(name: str) -> None:
    tokenizer, oracle = of_library(library(name)), plain(name)
    special = {token: i for token, i in oracle.get_vocab().items() if oracle.id_to_token(i) in token_names(oracle)}
    for token, number in special.items():
        for text in (token, f"a{token}house", f"the {token} {token}", f"\0 {token}"):
            assert number in oracle.encode(f"a {token}", add_special_tokens=False).ids, "the library reads it so"
            ids = tokenizer.encode(text)
            unknown = {oracle.token_to_id("[UNK]"), oracle.token_to_id("<unk>")}
            assert not set(ids) & (set(special.values()) - unknown), text
    if name in ("gpt2", "llama"):  # lossless, except for the first space
        assert tokenizer.decode(tokenizer.encode("a</s><|endoftext|><s>")) == "a</s><|endoftext|><s>"


def token_names(made: tokenizers.Tokenizer) -> set[str]:
    return {token["content"] for token in json.loads(made.to_str())["added_tokens"] if token["special"]}


@pytest.mark.parametrize("name", MADE)
def test_saved_and_restored(name: str, tmp_path: Path) -> None:
    tokenizer = of_library(library(name))
    tokenizer.save(tmp_path / "run" / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "run" / "tokenizer.json")
    assert (again.fingerprint, again.specials, again.kind) == (tokenizer.fingerprint, tokenizer.specials, "pretrained")
    for text in [*UNSEEN, "a</s>[SEP]"]:
        assert again.encode(text) == tokenizer.encode(text)
    assert again.to_json() == tokenizer.to_json()
    assert json.loads(tokenizer.to_json())["state"] == json.loads(library(name).to_str())


def test_roles_by_the_files_beside_it(tmp_path: Path) -> None:
    made = plain("llama")
    made.add_special_tokens(["<|im_end|>", "<|pad|>", "<hidden>"])
    made.save(str(tmp_path / "tokenizer.json"))
    plainly = read(tmp_path)
    assert plainly.ends == Ends(pad=made.token_to_id("<|pad|>"), bos=1, eos=2)
    files = {
        "config.json": {"eos_token_id": [made.token_to_id("<|im_end|>"), 2], "bos_token_id": None, "pad_token_id": -1},
        "special_tokens_map.json": {"mask_token": {"content": "<hidden>"}, "pad_token": "</s>"},
        "tokenizer_config.json": {"bos_token": None, "pad_token": "<s>"},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    told = read(tmp_path / "tokenizer.json")
    assert told.ends == Ends(pad=1, bos=1, eos=made.token_to_id("<|im_end|>"))
    assert told.mask_id == made.token_to_id("<hidden>")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json cannot be read as JSON settings"):
        read(tmp_path)


def test_a_decoder_begins_as_its_config_says() -> None:
    """Not with what its encoder reads first."""
    named = {"decoder_start_token_id": 1, "bos_token": "<pad>"}
    assert of_library(library("t5"), named).ends == Ends(pad=0, bos=1, eos=1)


def test_holes_are_in_the_order_of_t5() -> None:
    tokenizer, oracle = of_library(library("t5")), plain("t5")
    assert tokenizer.hole_ids == tuple(oracle.token_to_id(f"<extra_id_{i}>") for i in range(100))
    assert tokenizer.hole_ids[0] == tokenizer.vocab_size - 1


def test_pieces_that_may_replace_a_hidden_one() -> None:
    made = bert()
    made.add_special_tokens(["[reserved]"])
    tokenizer = of_library(made)
    vocab = made.get_vocab()
    never = {vocab[name] for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[reserved]")}
    assert set(tokenizer.ordinary_ids.tolist()) == set(vocab.values()) - never
    assert tokenizer.decode([vocab["[reserved]"], vocab["house"]]) == "house"
    trained = Tokenizer.train(iter([]), 300, "bytes", (MASK,))
    assert trained.ordinary_ids.tolist() == list(range(trained.first_piece, trained.vocab_size))


def test_vocab_txt_in_a_folder(tmp_path: Path) -> None:
    vocab = sorted(plain("bert").get_vocab().items(), key=lambda item: item[1])
    (tmp_path / "vocab.txt").write_text("\n".join(piece for piece, _ in vocab) + "\n")
    for path in (tmp_path, tmp_path / "vocab.txt"):
        tokenizer = load_or_train(None, DataConfig(tokenizer=str(path)), extra=(MASK,))
        for text in UNSEEN:
            assert tokenizer.encode(text) == plain("bert").encode(text, add_special_tokens=False).ids or "[SEP]" in text
    assert tokenizer.encode("House") == [dict(vocab)["house"]]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    assert read(tmp_path).encode("House") == [dict(vocab)["[UNK]"]]
    library("gpt2").save(str(tmp_path / "tokenizer.json"))
    assert read(tmp_path).ends == of_library(library("gpt2")).ends  # it comes first


def test_what_is_no_pretrained_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds neither tokenizer\.json nor vocab\.txt: save its tokenizer"):
        load_or_train(None, DataConfig(tokenizer=str(tmp_path)))
    path = tmp_path / "tokenizer.json"
    made = plain("gpt2").to_str().replace("<|endoftext|>", "<|halt|>")
    path.write_text(made)
    with pytest.raises(UserError, match='no token that ends a text: add "eos_token" with its name to tokenizer_config'):
        read(path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|halt|>"}')
    assert read(path).eos_id == read(path).bos_id == plain("gpt2").token_to_id("<|endoftext|>")
    with pytest.raises(UserError, match="has no <mask piece>, which the task needs: name its mask_token"):
        load_or_train(None, DataConfig(tokenizer=str(path)), extra=(MASK,))
    with pytest.raises(UserError, match=r"has no <hole 0 piece>, .*ends before <extra_id_0>, so lower data\.max_len"):
        load_or_train(None, DataConfig(tokenizer=str(path)), extra=holes(2))
    state = json.loads(made)
    state["added_tokens"][0]["id"] += 3
    path.write_text(json.dumps(state).replace('"<|halt|>": 300,', ""))
    with pytest.raises(UserError, match="which leaves a gap before it"):
        read(path)


def test_a_path_and_a_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bert").mkdir()
    assert all(map(is_path, ("bert", "runs/x", "mine.json", "vocab.txt", str(tmp_path))))
    assert not any(map(is_path, ("bpe", "bepe", "wordpiece")))


# --- Batches

DATA = DataConfig(max_len=23, buckets=(8, 16, 32), batch_tokens=128, row_multiple=4)
OFFSET = 1000  # of the texts' tokens: far from every special id


def documents(count: int = 31) -> Tokens:
    random = np.random.default_rng(3)
    return Tokens.of([random.integers(OFFSET, 2 * OFFSET, random.integers(1, 21)).tolist() for _ in range(count)])


class Fake:
    """What batches take of a tokenizer."""

    mask_id, hole_ids = 400, tuple(range(300, 350))
    ordinary_ids = np.arange(OFFSET, 2 * OFFSET, dtype=np.int32)


def kinds(ends: Ends) -> dict[str, Batches]:
    common: dict[str, Any] = {"seed": 3, "data": DATA, "ends": ends}
    one, tokenizer = {"text": documents()}, {"tokenizer": Fake()}
    return {
        "labelled": LabelledBatches(one, np.zeros(31, np.int32), **common),
        "packed": PackedBatches(one, **common),
        "contiguous": ContiguousBatches(one, **common),
        "masked": MaskedBatches(one, **common, **tokenizer),  # type: ignore[arg-type]
        "spans": SpanBatches(one, **common, **tokenizer),  # type: ignore[arg-type]
        "pairs": PairBatches({"a": documents(), "b": documents()}, **common),
    }


@pytest.mark.parametrize("kind", kinds(TRAINED))
def test_batches_with_other_ends_differ_in_these_only(kind: str) -> None:
    """The ids of padding, beginning and end are replaced, everything else stays: by the batches with the usual ends."""
    other = Ends(pad=7, bos=8, eos=9)
    usual, changed = kinds(TRAINED)[kind], kinds(other)[kind]
    of_tokens, seen = ("inputs", "targets", "target_inputs"), set[int]()
    steps = range(2 * usual.steps_per_epoch)
    pairs = [(usual.batch(step), changed.batch(step)) for step in steps]
    for a, b in [*pairs, *zip(usual.evaluation(), changed.evaluation(), strict=True)]:
        for key in a:
            expected = a[key]
            if key in of_tokens:
                seen |= set(np.unique(b[key]).tolist())
                expected = np.select([expected == 0, expected == 1, expected == 2], other, expected)
            np.testing.assert_array_equal(b[key], expected)
            assert b[key].dtype == np.int32
    assert seen & set(range(10)) == ({7} if kind == "contiguous" else {7, 8, 9})


def test_texts_of_recordings() -> None:
    tokens = documents(2)
    made = target_arrays(tokens, np.array([1, -1]), 24, Ends(7, 8, 9))
    text = tokens.flat[tokens.offsets[1] :].tolist()
    rest = [7] * (24 - len(text) - 1)
    assert made["targets"].tolist() == [[*text, 9, *rest], [7] * 24]
    assert made["target_inputs"].tolist() == [[8, *text, *rest], [7] * 24]


def test_prompts_begin_and_end_with_the_tokenizers_own() -> None:
    model = {"model.d_model": 8, "model.d_ff": 8, "model.num_heads": 2, "model.num_layers": 1}
    llama_like, t5_like = of_library(library("llama")), of_library(library("t5"))
    language = LanguageModel(override(Config(), model | {"model.family": "decoder_only"}), llama_like)
    assert language.prompt([5, 6]) == [1, 5, 6]
    translation = Translation(override(Config(), model), t5_like)
    assert translation.prompt([5, 6]) == [5, 6, 1]
    assert translation._common()["ends"] == Ends(0, 0, 1)
    params = translation.init(jax.random.key(0))
    begun = translation.begin(params, jnp.asarray([[5, 6, 1]]), jnp.asarray([3]))
    assert begun.first_tokens.tolist() == [0], "T5's decoder begins with padding"
