import functools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformer.config import DataConfig, UserError
from transformer.data import tokenizers
from transformer.data.sources import load_source
from transformer.data.tokenizers import SPECIALS, Tokenizer, load_or_train

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
    with pytest.raises(UserError, match="other special tokens"):
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
    monkeypatch.setattr(tokenizers, "MAX_TRAINING_EXAMPLES", 10)
    assert len(list(tokenizers._texts(load_source(data), ("en", "de")))) == 20
