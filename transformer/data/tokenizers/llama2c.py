"""The vocabulary of llama2.c, pieces with scores, converted to a tokenizer.json of the `tokenizers` library.

llama2.c begins with the characters of a text (bytes for those that are no piece) and repeatedly joins the two
neighbours whose joint piece has the highest score, the leftmost of equals. That is BPE with merges ranked by the score
of their result.
"""

import struct
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, processors

from transformer.errors import UserError

UNKNOWN, BEGIN, END = SPECIALS = ("<unk>", "<s>", "</s>")  # pieces 0, 1 and 2; then come the 256 bytes
BYTES = range(len(SPECIALS), len(SPECIALS) + 256)


def read_vocabulary(path: str | Path, vocab_size: int) -> list[tuple[str, float]]:
    """The pieces of a tokenizer.bin with their scores. UserError: no such file, or another number of complete
    pieces."""
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from error
    pieces, at = [], 4  # after the length of the longest piece
    while at + 8 <= len(content):
        score, length = struct.unpack_from("<fi", content, at)
        piece, at = content[at + 8 : at + 8 + length], at + 8 + length
        if length < 0 or at > len(content):
            break
        pieces.append((piece.decode("utf-8", "replace"), score))
    if len(pieces) != vocab_size or at != len(content) or vocab_size < BYTES.stop:
        raise UserError(
            f"{str(path)!r} does not hold the {vocab_size:,} pieces that the model has: name the tokenizer.bin that "
            "was trained with it"
        )
    return pieces


def to_tokenizer(pieces: list[tuple[str, float]]) -> tokenizers.Tokenizer:
    """A tokenizer that encodes and decodes as llama2.c does; with special tokens, a text begins with BEGIN."""
    names = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))]
    names += [piece for piece, _ in pieces[BYTES.stop :]]
    ids: dict[str, int] = {}
    for i, name in enumerate(names):
        ids.setdefault(name, i)
    ranked = sorted(range(BYTES.stop, len(names)), key=lambda i: (-pieces[i][1], i))
    merges = [
        (names[i][:cut], names[i][cut:])
        for i in ranked
        for cut in range(1, len(names[i]))
        if names[i][:cut] in ids and names[i][cut:] in ids
    ]
    bpe = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges, byte_fallback=True, unk_token=UNKNOWN))
    bpe.normalizer = normalizers.Prepend(" ")
    bpe.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    bpe.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, ids[BEGIN])])
    return bpe
