"""Tokens in shards: the same ids however a split is divided, by one process or several, killed or not."""

import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.data.corpora import sentences, small_shards, stored
from transformer.config import DataConfig
from transformer.data import preparing
from transformer.data.batches import encoding
from transformer.data.batches.corpus import token_shards, tokenize
from transformer.data.batches.encoding import Column, Shard
from transformer.data.caching import held
from transformer.data.sources.source import Examples
from transformer.data.sources.stored import from_store
from transformer.data.store import TEXT, Store, StoreWriter
from transformer.data.tokenizers import TOKENIZERS, Tokenizer
from transformer.errors import UserError

TRAINING = ["one two three, four five!\nIt's 12 o'clock; isn't it?", "drei vier fünf 八 девять  ten", "a b c d e f g"]
KINDS = {kind: Tokenizer.train(iter(TRAINING), 400, kind) for kind in TOKENIZERS}
# Letters that are special to some kind: spaces of several sorts, marks, joiners, signs that take what follows.
LETTERS = st.sampled_from(
    [*"ab'st19 .!,", " ", " ", "\n", "\t", "\r", "é", "e\u0301", "\u0301", "八", "\u00a0", "\u3000"]
)
OTHERS = st.sampled_from(
    ["\u200d", "👩‍👩‍👧", "\u0600", "\u0e40", "▁", "\x1c", "\U0010ff41", "\u0085", "\u2028", "İ", "Σ"]
)
TEXTS = st.lists(st.one_of(LETTERS, LETTERS, LETTERS, OTHERS, st.characters(exclude_categories=["Cs"]))).map("".join)


def pieces(text: str, kind: Tokenizer) -> list[str]:
    content = iter([text.encode()])
    buffer = bytearray(next(content))

    def read(size: int) -> bytes:
        taken = bytes(buffer[:size])
        del buffer[:size]
        return taken

    return [part.text for part in encoding._pieces(read, len(buffer), kind.cut)]


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=150)
@given(text=TEXTS, size=st.integers(1, 9))
@example("\u0600 a \u0600 b 's 't it's  it", 2)
@example(" a  b   c \n d\n\ne \n", 1)
def test_pieces_have_the_tokens_of_the_whole(kind: str, text: str, size: int) -> None:
    tokenizer = KINDS[kind]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "PIECE", size)
        parts = pieces(text, tokenizer)
    ids = [token for part in tokenizer.encode_batch(parts) for token in part]
    assert ids == tokenizer.encode(text)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_long_text_is_cut(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "PIECE", 40)
    parts = pieces("one two drei vier fünf 八 " * 30, KINDS[kind])
    assert len(parts) > 10
    assert max(len(part) for part in parts) <= 50


def test_a_tokenizer_of_which_nothing_is_known_reads_whole_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "PIECE", 4)
    monkeypatch.setattr(TOKENIZERS["bytes"], "cut", None)
    assert pieces("one two three", KINDS["bytes"]) == ["one two three"]


# --- Where shards end


@given(
    lengths=st.lists(st.lists(st.integers(0, 40), min_size=2, max_size=2), max_size=60),
    texts=st.integers(1, 9),
    size=st.integers(1, 100),
    cuts=st.lists(st.integers(0, 60)),
)
def test_shards_are_consecutive_and_full(lengths: list[list[int]], texts: int, size: int, cuts: list[int]) -> None:
    members = sorted({*(cut for cut in cuts if cut < len(lengths)), len(lengths)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "MOST_TEXTS", texts)
        patch.setattr(encoding, "MOST_BYTES", size)
        shards = encoding.shards_of(list(np.cumsum(np.array(lengths or np.zeros((0, 2), int)), axis=0).T), members)
    assert [number for shard in shards for number in range(shard.first, shard.stop)] == list(range(len(lengths)))
    for shard in shards:
        total = sum(map(sum, lengths[shard.first : shard.stop]))
        assert shard.stop - shard.first == 1 or (total <= size and shard.stop - shard.first <= texts)
        if shard.stop not in members:  # one text more would be too much
            assert total + sum(lengths[shard.stop]) > size or shard.stop - shard.first == texts
    assert set(members) - {0} <= {shard.stop for shard in shards}


def written(folder: Path, texts: list[str]) -> Store:
    folder.mkdir()
    writer = StoreWriter(folder, {"text": TEXT}, ["train"])
    writer.add("train", {"text": texts})
    writer.close()
    return Store(folder)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "characters"])
@pytest.mark.parametrize("size", [1, 37, 100, 10_000])
def test_a_long_text_in_shards_has_the_tokens_of_the_whole(
    kind: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "MOST_BYTES", size)
    monkeypatch.setattr(encoding, "PIECE", 16)
    monkeypatch.setattr(encoding, "TOGETHER", 32)
    texts = ["", "八девять" * 30, *sentences(20, 30), "x", ""]
    source = from_store("mine", written(tmp_path / "store", texts), contiguous=True)
    tokenizer = KINDS[kind]
    corpus = token_shards(source, "train", ["text"], tokenizer, DataConfig(cache=str(tmp_path)))
    assert (len(corpus) > 1) == (size < 10_000)
    flat = [own["text"].flat.tolist() for own in corpus]
    assert list(chain.from_iterable(flat)) == list(chain.from_iterable(tokenizer.encode_batch(texts)))
    for shard, own in zip(corpus.shards, corpus, strict=True):
        assert len(own["text"]) == shard.stop - shard.first
    assert all(a.end is not None and a.end <= b.begin for a, b in zip(corpus.shards, corpus.shards[1:], strict=False))


# --- Shards on disk


def reference(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [tokenizer.encode(text) for text in texts]


def as_lists(source, tokenizer: Tokenizer, data: DataConfig, fields: tuple[str, ...] = ("text",)) -> list[list[int]]:
    read = tokenize(source, "train", fields, tokenizer, data)[fields[-1]]
    return [read.flat[a:b].tolist() for a, b in zip(read.offsets, read.offsets[1:], strict=False)]


@pytest.mark.parametrize("mapped", [True, False])
def test_the_shards_hold_the_tokens_of_every_text(
    mapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(monkeypatch)
    monkeypatch.setattr(encoding, "PIECE", 16)
    monkeypatch.setattr(encoding, "TOGETHER", 64)
    monkeypatch.setattr(encoding, "READ_TOGETHER", 3)
    if not mapped:
        monkeypatch.setattr(Examples, "texts", lambda self, name: None)
    texts = [*sentences(53), "a long text " * 90, "", *sentences(10)]
    source = stored(tmp_path / "store", {"train": {"source": texts[::-1], "text": texts}})
    data = DataConfig(cache=str(tmp_path))
    corpus = token_shards(source, "train", ("source", "text"), KINDS["bpe"], data)
    assert len(corpus) > 8
    assert as_lists(source, KINDS["bpe"], data, ("source", "text")) == reference(KINDS["bpe"], texts)
    assert corpus.sizes() == [sum(len(tokens.flat) for tokens in own.values()) for own in corpus]
    for shard, own in zip(corpus.shards, corpus, strict=True):
        assert len(own["text"]) == shard.stop - shard.first


def test_an_empty_split_has_one_empty_shard(tmp_path: Path) -> None:
    source = stored(
        tmp_path / "store", {"train": {"text": ["x"]}, "test": {"text": []}}, parts={"test": ("test", None)}
    )
    corpus = token_shards(source, "test", ["text"], KINDS["bpe"], DataConfig(cache=str(tmp_path)))
    assert [len(own["text"]) for own in corpus] == [0]


class Numbered:
    """A tokenizer of one id, the last of a vocabulary of this size."""

    cut = None

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.fingerprint = str(vocab_size)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [[self.vocab_size - 1, 0] for _ in texts]


@pytest.mark.parametrize(("size", "dtype"), [(2, np.uint16), (65_536, np.uint16), (65_537, np.int32)])
def test_ids_take_two_bytes_where_the_vocabulary_allows(size: int, dtype: type, tmp_path: Path) -> None:
    source = stored(tmp_path / "store", {"train": {"text": ["x", "y"]}})
    tokens = tokenize(source, "train", ["text"], Numbered(size), DataConfig(cache=str(tmp_path)))["text"]  # type: ignore[arg-type]
    assert tokens.flat.dtype == dtype
    assert tokens.flat.tolist() == [size - 1, 0] * 2


# --- Several processes


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_every_tokenizer_can_be_sent_to_a_process(kind: str) -> None:
    sent = pickle.loads(pickle.dumps(KINDS[kind]))
    text = " ".join([*TRAINING, "ünseen ▁ letters"])
    assert sent.encode(text) == KINDS[kind].encode(text)
    assert sent.fingerprint == KINDS[kind].fingerprint


@pytest.fixture
def in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "PARALLEL_ABOVE", 0)
    monkeypatch.setattr(preparing, "cores", lambda: 3)


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.suffix in (".tokens", ".offsets"))
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in found}


def test_several_processes_write_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_processes: None
) -> None:
    small_shards(monkeypatch)
    source = stored(tmp_path / "store", {"train": {"text": sentences(40)}})
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda *args: pytest.fail("encoded in this process"))
    token_shards(source, "train", ["text"], KINDS["bpe"], DataConfig(cache=str(tmp_path / "many")))
    monkeypatch.undo()
    small_shards(monkeypatch)
    token_shards(source, "train", ["text"], KINDS["bpe"], DataConfig(cache=str(tmp_path / "one")))
    many = files(tmp_path / "many")
    assert len(many) > 10
    assert many == files(tmp_path / "one")


def test_an_error_in_another_process_is_raised_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_processes: None
) -> None:
    small_shards(monkeypatch)
    source = stored(tmp_path / "store", {"train": {"text": sentences(40)}})
    (tmp_path / "store" / "train.text.values").write_bytes(b"\xff" * 8)
    with pytest.raises(RuntimeError, match=r"UnicodeDecodeError|EOFError"):
        token_shards(source, "train", ["text"], KINDS["bpe"], DataConfig(cache=str(tmp_path)))


class Fails:
    def __call__(self, number: int, folder: Path, told) -> None:
        if number == 3:
            raise UserError("Entry 3 cannot be made.")


class Ends:
    def __call__(self, number: int, folder: Path, told) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_mistake_and_a_kill_are_told_in_a_sentence(tmp_path: Path, in_processes: None) -> None:
    with pytest.raises(UserError, match=r"^Entry 3 cannot be made\.$"):
        preparing.prepare(tmp_path / "a", Fails(), [1] * 5, "making", "B")
    with pytest.raises(UserError, match="a process ended with code -9"):
        preparing.prepare(tmp_path / "b", Ends(), [1] * 5, "making", "B")


SCRIPT = """
    import sys, time
    from pathlib import Path
    from tests.data.test_shards import KINDS
    from transformer.config import DataConfig
    from transformer.data import preparing
    from transformer.data.batches import encoding
    from transformer.data.batches.corpus import token_shards
    from transformer.data.sources.stored import from_store
    from transformer.data.store import Store

    encoding.MOST_TEXTS = 7
    preparing.PARALLEL_ABOVE = int(sys.argv[3])
    before, made = encoding.Appended.close, []
    def close(self):
        time.sleep(float(sys.argv[4]))
        before(self)
        made.append(self)
        print(len(made), flush=True)
    encoding.Appended.close = close
    source = from_store("mine", Store(Path(sys.argv[1])))
    token_shards(source, "train", ["text"], KINDS["bpe"], DataConfig(cache=sys.argv[2]))
"""


def begin(store: Path, cache: Path, above: int = 10**9, pause: float = 0.0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(store), str(cache), str(above), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_preparation_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = stored(tmp_path / "store", {"train": {"text": sentences(60)}})
    killed = begin(tmp_path / "store", tmp_path / "cache", pause=0.3)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "1\n"
    assert killed.stdout.readline() == "2\n"
    killed.kill()
    killed.wait()
    left = files(tmp_path / "cache")
    assert 0 < len({name.split("/")[0] for name in left if ".part" not in name}) < 9
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("0/*")}
    assert stamps
    monkeypatch.setattr(encoding, "MOST_TEXTS", 7)
    for cache in ("cache", "other"):
        token_shards(source, "train", ["text"], KINDS["bpe"], DataConfig(cache=str(tmp_path / cache)))
    assert files(tmp_path / "cache") == files(tmp_path / "other")
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}  # not made again
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_two_at_once_make_each_shard_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = stored(tmp_path / "store", {"train": {"text": sentences(60)}})
    both = [begin(tmp_path / "store", tmp_path / "cache", pause=0.1) for _ in range(2)]
    made = [process.communicate(timeout=60)[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(map(len, made)) == 9
    monkeypatch.setattr(encoding, "MOST_TEXTS", 7)
    assert as_lists(source, KINDS["bpe"], DataConfig(cache=str(tmp_path / "cache"))) == reference(
        KINDS["bpe"], list(source.split("train").texts("text") or [])
    )


def test_a_shard_that_another_makes_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "entries" / "0")], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with held(tmp_path / "entries" / "0") as free:
        assert not free
    began = time.monotonic()
    made: list[int] = []
    passes: list[int] = []
    each = preparing._each
    monkeypatch.setattr(preparing, "_each", lambda *args: passes.append(each(*args) or 1))
    preparing.prepare(tmp_path / "entries", lambda number, folder, told: made.append(number), [1, 1], "making", "B")
    assert made == [1]
    assert len(passes) <= 2  # it waits for the lock, and does not ask again and again
    assert time.monotonic() - began > 0.3
    assert (tmp_path / "entries" / "0").is_dir()
    holder.wait()


HOLD = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from transformer.data.caching import held
    path = Path(sys.argv[1])
    with held(path) as free:
        assert free
        print("held", flush=True)
        time.sleep(1)
        path.mkdir()
    """
)


@pytest.mark.parametrize("module", ["encoding", "blocks", "packed", "corrupted", "labelled", "pairs", "contiguous"])
def test_processes_do_not_import_what_they_do_not_need(module: str) -> None:
    code = f"import sys, transformer.data.preparing, transformer.data.batches.{module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"tensorflow_datasets", "jax", "grain"} & set(loaded)


def test_a_column_is_read_in_pieces_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "TOGETHER", 8)
    monkeypatch.setattr(encoding, "PIECE", 4)
    store = written(tmp_path / "s", ["ab", "", "c d e f g h i j", "k"])
    column = Column.of(store.records("train").texts("text"))
    assert column is not None
    read = list(column.parts(Shard(1, 4), re.compile("(?= )")))
    assert "".join(part.text for parts in read for part in parts) == "c d e f g h i jk"
    assert sum(part.last for parts in read for part in parts) == 3
