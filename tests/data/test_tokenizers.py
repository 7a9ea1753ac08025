import dataclasses
import functools
import hashlib
import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformer.config import DataConfig
from transformer.data.sources import load_source
from transformer.data.tokenizers import MASK, SPECIALS, TOKENIZERS, Tokenizer, holes, sample, subwords
from transformer.data.tokenizers.letters import BYTES
from transformer.data.tokenizers.subwords import ByteLevelBPE
from transformer.data.tokenizers.training import load_or_train
from transformer.data.tokenizers.words import _FORMER, _WORD, UNKNOWN
from transformer.errors import UserError

TEXTS = ["Ein Haus am See.", "A house by the lake.", "Häuser, Häuser und noch mehr Häuser!", "ğ 語 🏡", "a  b\tc\n"] * 5


@functools.cache
def trained() -> Tokenizer:
    return Tokenizer.train(iter(TEXTS), 300)


@given(st.text())
def test_any_text_survives(text: str) -> None:
    tokenizer = trained()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(len(SPECIALS) <= i < tokenizer.vocab_size for i in ids)


@pytest.mark.parametrize(
    "text", [*SPECIALS, "<s>", "</s><pad>", "[CLS]", "Ġ", " leading", "trailing \n", "\x00", "\ufeff"]
)
def test_nothing_in_a_text_is_a_special_token(text: str) -> None:
    ids = trained().encode(text)
    assert min(ids) >= len(SPECIALS)
    assert trained().decode(ids) == text


def test_special_tokens_cannot_be_learned() -> None:
    # A piece spelled like one would share its row of the embedding with it.
    tokenizer = Tokenizer.train(iter(list(SPECIALS) * 100), 400)
    ids = tokenizer.encode("".join(SPECIALS))
    assert min(ids) >= len(SPECIALS)
    assert tokenizer.decode([Tokenizer.bos_id, *ids, Tokenizer.eos_id, Tokenizer.pad_id]) == "".join(SPECIALS)


def test_pieces_are_shared_and_learned() -> None:
    tokenizer = trained()
    assert tokenizer.vocab_size == 300
    assert len(tokenizer.encode("Häuser")) < len("Häuser".encode())
    assert tokenizer.encode_batch(["a house", "", "Häuser"]) == [tokenizer.encode(t) for t in ("a house", "", "Häuser")]


def test_training_is_deterministic(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Tokenizer.train(iter(TEXTS), 320).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_fewer_pieces_where_the_text_has_no_more() -> None:
    assert Tokenizer.train(iter(["abc"]), 5000).vocab_size < 300


def test_save_and_load(tmp_path: Path) -> None:
    trained().save(tmp_path / "deep" / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "deep" / "tokenizer.json")
    assert loaded.vocab_size == trained().vocab_size
    assert loaded.fingerprint == trained().fingerprint
    for text in [*TEXTS, *SPECIALS]:
        assert loaded.encode(text) == trained().encode(text)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer at"):
        Tokenizer.load(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match=r"broken\.json is no tokenizer file"):
        Tokenizer.load(tmp_path / "broken.json")
    text = trained().to_json().replace(SPECIALS[0], "[PAD]")
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(UserError, match="names no token that ends a text"):
        Tokenizer.load(tmp_path / "other.json")


def test_vocabulary_without_room_for_bytes() -> None:
    with pytest.raises(UserError, match=r"data\.vocab_size=258 .* 259 or more"):
        Tokenizer.train(iter(TEXTS), 258)
    assert Tokenizer.train(iter(TEXTS), 259).vocab_size == 259


def test_lone_surrogate() -> None:
    with pytest.raises(UserError, match="Text 2 holds a lone surrogate"):
        trained().encode_batch(["fine", "\ud800"])


def corpus(folder: Path) -> DataConfig:
    for split in ("train", "validation", "test"):
        for language in ("en", "de"):
            word = "tram" if split == "train" else "qqqqqqqq"
            (folder / f"{split}.{language}").write_text("".join(f"{word}{language} number {i}\n" for i in range(30)))
    return DataConfig(name="files", dir=str(folder), cache=str(folder / "cache"), vocab_size=300)


def test_trained_once_on_both_languages_of_the_training_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = corpus(tmp_path)
    source = load_source(data)
    tokenizer = load_or_train(source, data)
    assert len(tokenizer.encode("tramen")) == len(tokenizer.encode("tramde")) == 1
    assert len(tokenizer.encode("qqqqqqqq")) == 8  # only seen in the other splits

    monkeypatch.setattr(Tokenizer, "train", lambda *args: pytest.fail("trained again"))
    assert load_or_train(source, data).fingerprint == tokenizer.fingerprint
    assert load_or_train(source, data, ("en", "de")).fingerprint == tokenizer.fingerprint


def test_cache_key(tmp_path: Path) -> None:
    data = corpus(tmp_path)
    source = load_source(data)
    both, german = load_or_train(source, data), load_or_train(source, data, ("de",))
    assert len(german.encode("tramen")) > len(both.encode("tramen"))
    assert load_or_train(source, DataConfig(cache=data.cache, vocab_size=270)).vocab_size == 270
    with pytest.raises(UserError, match="no text field 'fr'"):
        load_or_train(source, data, ("fr",))


def test_large_corpora_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = corpus(tmp_path)
    monkeypatch.setattr(sample, "MOST_EXAMPLES", 10)
    assert len(list(sample.texts_of(load_source(data), ("en", "de")))) == 20


# --- Every kind

LOSSLESS = ("bpe", "unigram", "sentencepiece_bpe", "characters", "bytes")
LOSSY = ("wordpiece", "words")
EXTRA = (MASK, *holes(3))
# What could be taken for something else: names of pieces, the signs that stand for a space and for bytes.
TRAPS = [
    *SPECIALS,
    *EXTRA,
    UNKNOWN,
    "<0x41>",
    "▁",
    " ▁ ",
    "a▁b",
    *BYTES[::85],
    "[UNK]",
    "##a",
    "\ufeff",
    "\x00",
    " a  b \n",
]


@functools.cache
def of_kind(kind: str, extra: tuple[str, ...] = EXTRA) -> Tokenizer:
    return Tokenizer.train(iter(TEXTS + TRAPS), 400, kind, extra)


def test_the_kinds() -> None:
    assert sorted(TOKENIZERS) == sorted(LOSSLESS + LOSSY)
    with pytest.raises(UserError, match=r"^There is no tokenizer 'wordpeice': did you mean 'wordpiece'\?$"):
        Tokenizer.train(iter(TEXTS), 400, "wordpeice")
    with pytest.raises(UserError, match="There is no tokenizer 'xyz': choose one of bpe, "):
        load_or_train(None, DataConfig(tokenizer="xyz"))


@pytest.mark.parametrize("kind", LOSSLESS)
@given(text=st.one_of(st.text(), st.text(alphabet="aHäus <0x41>▁\n\U0010ff00\U0010ffff語"), st.sampled_from(TRAPS)))
def test_lossless_kinds_lose_nothing(kind: str, text: str) -> None:
    tokenizer = of_kind(kind)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(tokenizer.first_piece <= i < tokenizer.vocab_size for i in ids)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_without_having_learned_anything(kind: str) -> None:
    tokenizer = Tokenizer.train(iter([]), 300, kind)
    assert tokenizer.decode(tokenizer.encode("Häuser ▁ <0x41>\n")) == "Häuser ▁ <0x41>\n"


@pytest.mark.parametrize("kind", LOSSY)
@given(text=st.text())
def test_lossy_kinds_never_take_text_for_a_special_token(kind: str, text: str) -> None:
    tokenizer = of_kind(kind)
    for trap in (text, *TRAPS):
        assert all(tokenizer.first_piece <= i < tokenizer.vocab_size for i in tokenizer.encode(trap))
        tokenizer.decode(tokenizer.encode(trap))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_saved_and_loaded_any_kind_is_the_same(kind: str, tmp_path: Path) -> None:
    tokenizer = of_kind(kind)
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (loaded.kind, loaded.vocab_size, loaded.fingerprint) == (kind, tokenizer.vocab_size, tokenizer.fingerprint)
    assert loaded.vocab_size <= 400
    for text in [*TEXTS, *TRAPS, "never seen: ñandú"]:
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.decode(loaded.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert len({of_kind(other).fingerprint for other in TOKENIZERS}) == len(TOKENIZERS)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_same_texts_give_the_same_pieces(kind: str) -> None:
    # Words in the order that Python's hashing gives them would differ from process to process as well: see the next.
    again = Tokenizer.train(iter(TEXTS + TRAPS), 400, kind, EXTRA)
    assert again.fingerprint == of_kind(kind).fingerprint


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_special_tokens_on_request(kind: str) -> None:
    tokenizer = of_kind(kind)
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id) == (0, 1, 2, 3)
    assert tokenizer.hole_ids == (4, 5, 6)
    ids = tokenizer.encode("a house")
    assert tokenizer.decode([1, 3, *ids, 4, 6, 2, 0]) == tokenizer.decode(ids)
    assert tokenizer.encode_with_ends("a house") == [1, *ids, 2]
    assert tokenizer.encode_with_ends("a house", 3) == [1, ids[0], 2]
    plain = Tokenizer.train(iter(TEXTS), 400, kind)
    assert plain.first_piece == 3
    assert plain.hole_ids == ()
    with pytest.raises(UserError, match="no mask piece"):
        _ = plain.mask_id


@pytest.mark.parametrize(
    ("kind", "fewest"),
    [("bpe", 260), ("unigram", 261), ("sentencepiece_bpe", 261), ("characters", 260), ("bytes", 260),
     ("wordpiece", 7), ("words", 6)],
)  # fmt: skip
def test_a_vocabulary_that_is_too_small(kind: str, fewest: int) -> None:
    with pytest.raises(
        UserError, match=rf"^data\.vocab_size={fewest - 1} leaves no room .* set it to {fewest} or more"
    ):
        Tokenizer.train(iter(TEXTS), fewest - 1, kind, (MASK,))
    smallest = Tokenizer.train(iter(TEXTS), fewest, kind, (MASK,))
    assert smallest.vocab_size <= fewest
    assert smallest.decode(smallest.encode("a")) in ("a", "\ufffd")


@pytest.mark.parametrize("kind", LOSSY)
def test_words_of_no_text(kind: str) -> None:
    with pytest.raises(UserError, match="no word in the training texts"):
        Tokenizer.train(iter(["", " \n"]), 300, kind)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_lone_surrogate_in_any_kind(kind: str) -> None:
    if kind == "words":  # looks words up, and needs no bytes of them
        assert of_kind(kind).decode(of_kind(kind).encode("\ud800")) == "\ufffd"
        return
    with pytest.raises(UserError, match="Text 2 holds a lone surrogate"):
        of_kind(kind).encode_batch(["fine", "a \ud800"])


def test_characters_are_the_most_frequent_ones() -> None:
    tokenizer = Tokenizer.train(iter(["bbb aa", "cc bd"]), 3 + 256 + 3, "characters")  # b 4; a, c and space 2; d 1
    counted = {letter: len(tokenizer.encode(letter)) for letter in "abcd é"}
    assert counted == {"a": 1, "b": 1, "c": 1, "d": 1, " ": 1, "é": 2}
    seen = {letter: tokenizer.encode(letter)[0] for letter in "abcd "}
    # Of those that tie, the first in Unicode; the ids follow Unicode, and the bytes come before them.
    assert seen == {" ": 259, "a": 260, "b": 261, "c": 3 + ord("c"), "d": 3 + ord("d")}


def test_bytes_are_utf8() -> None:
    tokenizer = of_kind("bytes", ())
    assert tokenizer.vocab_size == 259
    assert [i - 3 for i in tokenizer.encode("Häuser 語")] == list("Häuser 語".encode())
    assert tokenizer.decode([3 + 0xC3]) == "\ufffd"


def test_sentencepiece_begins_pieces_at_spaces() -> None:
    for kind in ("unigram", "sentencepiece_bpe"):
        tokenizer = Tokenizer.train(iter(["the tree the lake, then there"] * 50), 320, kind)
        the = tokenizer.encode("the")
        assert len(the) == 1
        assert tokenizer.encode("the the") == the * 2  # a first word is spelled as any other
        assert tokenizer.decode(tokenizer.encode("the") + tokenizer.encode("tree")) == "the tree"


def test_unigram_takes_the_likeliest_cut() -> None:
    tokenizer = Tokenizer.train(iter(["abc ab bc abcd bcd"] * 30), 300, "unigram", ())
    state = json.loads(tokenizer.to_json())["state"]["pieces"]["model"]["vocab"]
    scores = {piece: score for piece, score in state if " " not in piece}

    def best(word: str) -> float:  # over all cuts, one by one
        ends = [0.0]
        for end in range(1, len(word) + 1):
            ends.append(max(ends[start] + scores.get(word[start:end], -1e9) for start in range(end)))
        return ends[-1]

    for word in ("abc", "abcd", "bcab", "dcba"):
        ids = tokenizer.encode(word)
        assert sum(state[i][1] for i in ids) == pytest.approx(best("▁" + word))


def test_wordpiece_is_berts() -> None:
    tokenizer = Tokenizer.train(iter(["The lakes, the Häuser!"] * 20), 100, "wordpiece")
    assert tokenizer.decode(tokenizer.encode("THE  Lakes,\nhauser")) == "the lakes , hauser"
    pieces = json.loads(tokenizer.to_json())["state"]["model"]["vocab"]
    by_id = {number: piece for piece, number in pieces.items()}

    def greedy(word: str) -> list[str]:  # the longest piece first, by a loop
        cut, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            end = next((e for e in range(len(word), start, -1) if prefix + word[start:e] in pieces), 0)
            if not end:
                return [UNKNOWN]
            cut.append(prefix + word[start:end])
            start = end
        return cut

    for word in ("lakes", "hakes", "users", "sal", "lxk"):
        assert [by_id[i] for i in tokenizer.encode(word)] == greedy(word)
    assert tokenizer.decode(tokenizer.encode("the ω")) == "the \ufffd"


def test_words_lose_what_they_have_not_seen() -> None:
    tokenizer = Tokenizer.train(iter(["a house, a tree", "a lake"]), 3 + 1 + 3, "words")
    assert tokenizer.decode(tokenizer.encode("a house,a  car")) == "a house , a \ufffd"
    assert len(tokenizer.encode("a tree")) == 2


MARKED = [
    "बिल्ली खिड़की पर सो रही है",
    "แมวนอนอยู่ริมหน้าต่าง",
    "le cafe\u0301 e\u0301tait pre\u0302t",  # decomposed
    "le café était prêt",
    "می\u200cخواهم",  # a joiner
    "한국어 날씨 がぎぐ йод ёж",
    "👩\u200d👩\u200d👧 🇩🇪 1\ufe0f\u20e3",
]


@pytest.mark.parametrize("kind", LOSSY)
def test_marks_stay_with_their_letters(kind: str) -> None:
    tokenizer = Tokenizer.train(iter([*MARKED, "."] * 2), 400, kind)
    for text in MARKED:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        cut = tokenizer.decode(tokenizer.encode(f"{text}. {text}"))
        assert cut == f"{text} . {text}"  # and none is joined that was not


def test_words_are_as_they_were_where_there_are_no_marks() -> None:
    for letter in map(chr, range(0x3100)):
        assert _WORD.findall(f"a {letter} b") == _FORMER.findall(f"a {letter} b")
    text = " ".join([*TEXTS, "a_b2 don't x² ½ e.g.\r\n\x1c(語彙)"])
    assert _WORD.findall(text) == _FORMER.findall(text)
    assert _WORD.findall("a\u0301b \u0301 c") == ["a\u0301b", "\u0301", "c"]


def test_words_that_were_saved_earlier_are_cut_as_then() -> None:
    saved = json.loads(Tokenizer.train(iter(["है hai"]), 400, "words").to_json())
    former = {"words": ["ह", "\u0948", "hai"]}
    words = TOKENIZERS["words"].from_state(former, tuple(saved["specials"]))
    assert words.decode(words.encode_batch(["है hai"])[0]) == "ह \u0948 hai"
    assert words.state() == former
    assert saved["state"] == {"words": ["hai", "है"], "clusters": True}


# --- Texts without spaces


def test_training_sees_long_runs_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = subwords.LONGEST
    plain = ["", "a " * 999, "x" * (longest - 1), *TEXTS]
    assert list(subwords.bounded(plain)) == plain  # as they stand
    run = "".join(chr(0x4E00 + i % 20_000) for i in range(9 * longest + 17))
    text = f"before it {run} after it, and{' ' * 2 * longest}so on"
    parts = list(subwords.bounded([text, "b"]))
    assert "".join(parts) == text + "b"
    assert max(len(word) for part in parts for word in re.findall(r"\S+|\s+", part)) <= longest
    monkeypatch.setattr(subwords, "MOST", 3 * longest)
    parts = list(subwords.bounded([f"before it {run} after"]))
    taken = "".join(parts)[len("before it ") : -len(" after")]
    assert taken == "".join(run[place * longest :][:longest] for place in (0, 3, 6)) + run[9 * longest :]


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece_bpe", "unigram", "wordpiece"])
def test_a_text_without_spaces_is_no_word(kind: str) -> None:
    """Seen as one word, a text that is repeated would become a piece (BPE), and time would be quadratic."""
    draw = random.Random(0)
    text = "".join(draw.choices("abcdefghij", k=3 * subwords.LONGEST)) * 40
    tokenizer = Tokenizer.train(iter([text]), 1500, kind)
    longest = max(len(tokenizer.decode([i])) for i in range(tokenizer.first_piece, tokenizer.vocab_size))
    assert longest <= subwords.LONGEST
    if kind != "wordpiece":
        assert tokenizer.decode(tokenizer.encode(text)) == text


VOCAB = ["[PAD]", "[unused0]", "the", "[UNK]", "house", "##s", "[CLS]", "[SEP]", "[MASK]", ",", "["]


def test_berts_own_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    tokenizer = Tokenizer.from_vocab_txt(tmp_path / "vocab.txt")
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id) == (0, 6, 7, 8)
    assert (Tokenizer.pad_id, Tokenizer.bos_id, Tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.vocab_size == len(VOCAB)
    assert tokenizer.encode_with_ends("The houses, [SEP") == [6, 2, 4, 5, 9, 10, 3, 7]
    assert tokenizer.encode_with_ends("The houses, the", 4) == [6, 2, 4, 7]
    assert tokenizer.encode("THÉ house\u0301") == [2, 4]  # accents are lost, as in BERT
    assert tokenizer.decode([6, 2, 4, 5, 3, 7, 0]) == "the houses \ufffd"
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (loaded.bos_id, loaded.encode("houses")) == (6, [4, 5])
    data = DataConfig(tokenizer=str(tmp_path / "tokenizer.json"))
    assert load_or_train(None, data, extra=(MASK,)).fingerprint == tokenizer.fingerprint


def test_what_is_no_vocabulary_of_bert(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    with pytest.raises(UserError, match="no vocabulary at"):
        Tokenizer.from_vocab_txt(path)
    path.write_text("[PAD]\n[UNK]\n[CLS]\n")
    with pytest.raises(UserError, match=r"has no \[SEP\], \[MASK\]: name BERT's"):
        Tokenizer.from_vocab_txt(path)
    path.write_text("\n".join([*VOCAB, "the"]))
    with pytest.raises(UserError, match="a piece twice"):
        Tokenizer.from_vocab_txt(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="in UTF-8"):
        Tokenizer.from_vocab_txt(path)


def test_byte_level_files_of_the_library_still_load(tmp_path: Path) -> None:
    """As they were written before there were other kinds: the library's own JSON, and nothing around it."""
    library = ByteLevelBPE.train(iter(TEXTS), 300, SPECIALS).library
    (tmp_path / "old.json").write_text(library.to_str(pretty=True), encoding="utf-8")
    loaded = Tokenizer.load(tmp_path / "old.json")
    assert loaded.kind == "bpe"
    assert loaded.encode("a house by the lake") == trained().encode("a house by the lake")
    assert loaded.encode("A house") == library.encode("A house").ids
    assert loaded.fingerprint == trained().fingerprint
    learned = json.dumps(json.loads(trained().to_json())["model"], sort_keys=True)  # the ids do not drift
    assert hashlib.sha256(learned.encode()).hexdigest().startswith("fd4f5b6bf93afd87")


def test_the_kind_and_its_extras_are_part_of_the_cache_key(tmp_path: Path) -> None:
    data = corpus(tmp_path)
    source = load_source(data)
    for kind in TOKENIZERS:
        made = load_or_train(source, dataclasses.replace(data, tokenizer=kind))
        assert made.kind == kind
        assert load_or_train(source, dataclasses.replace(data, tokenizer=kind), extra=(MASK,)).mask_id == 3


def test_a_tokenizer_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    of_kind("unigram").save(path)
    data = DataConfig(tokenizer=str(path))
    assert load_or_train(None, data, extra=EXTRA).fingerprint == of_kind("unigram").fingerprint
    with pytest.raises(UserError, match="has no <hole 3 piece>, which the task needs"):
        load_or_train(None, data, extra=holes(4))
    with pytest.raises(UserError, match="no tokenizer at"):
        load_or_train(None, DataConfig(tokenizer=str(tmp_path / "none.json")))
