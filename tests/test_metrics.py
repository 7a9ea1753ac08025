"""What outputs are worth: against other implementations and by hand; and intervals that hold what they say."""

import importlib.util
from typing import Any

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.significance import estimate_ci
from sklearn.metrics import f1_score

from transformer.evaluation import metrics, scripts


def _totals(found: dict[str, metrics.Measured]) -> dict[str, float | None]:
    return {name: metric.total for name, metric in found.items()}


def _sentences(seed: int, count: int, wrong: float = 0.0, against: list[str] | None = None) -> list[str]:
    """Random sentences, or those of `against` with so large a share of their words replaced."""
    rng, words = np.random.default_rng(seed), [f"w{i}" for i in range(30)]
    if against is None:
        return [" ".join(rng.choice(words, rng.integers(3, 12))) for _ in range(count)]
    return [" ".join(rng.choice(words) if rng.random() < wrong else w for w in text.split()) for text in against]


TRUTHS = _sentences(0, 150)


@pytest.mark.parametrize(
    ("output", "reference", "errors"),
    [("one two", "one two", 0), ("", "one two", 2), ("one", "", 1), ("one three two", "one two", 1),
     ("two one", "one two", 2), ("four one two", "one two three", 2)],
)  # fmt: skip
def test_word_errors(output: str, reference: str, errors: int) -> None:
    assert metrics.word_errors(output, reference) == errors
    assert metrics.word_errors(reference, output) == errors


def test_word_errors_by_recursion() -> None:
    """The definition, without a table."""

    def distance(a: tuple[str, ...], b: tuple[str, ...]) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(distance(a[1:], b[1:]) + (a[0] != b[0]), distance(a[1:], b) + 1, distance(a, b[1:]) + 1)

    random = np.random.default_rng(3)
    for _ in range(60):
        a, b = (tuple(random.choice(list("xyz"), random.integers(0, 6))) for _ in range(2))
        assert metrics.word_errors(" ".join(a), " ".join(b)) == distance(a, b)


def test_speech_metrics_count_words_over_all_references() -> None:
    found = _totals(metrics.transcripts(["one two", "six", ""], ["one two", "one six", "two"]))
    assert found == {"word_error_rate": 2 / 5, "exact_match": 1 / 3}


def test_answers_by_kind() -> None:
    found = _totals(metrics.answers(["85", "86", "x"], ["85", "85", "x"], ["sums", "sums", "words"]))
    assert found == {"answers": 2 / 3, "answers_sums": 1 / 2, "answers_words": 1.0}


def test_summaries_are_scored_by_their_best_reference() -> None:
    """ROUGE-1 by hand: 2 of 3 words shared with the second reference of 4."""
    found = _totals(metrics.summaries(["the cat sat"], [["a dog", "the cat ran off"]]))
    precision, recall = 2 / 3, 2 / 4
    assert found["rouge1"] == pytest.approx(100 * 2 * precision * recall / (precision + recall))
    assert found["rouge2"] == pytest.approx(100 * 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))


def test_bleu_and_chrf_are_those_of_sacrebleu() -> None:
    outputs = _sentences(1, 0, 0.3, TRUTHS)
    found = metrics.translations(outputs, TRUTHS)
    assert found["bleu"].total == pytest.approx(sacrebleu.corpus_bleu(outputs, [TRUTHS]).score, abs=1e-9)
    assert found["chrf"].total == pytest.approx(sacrebleu.corpus_chrf(outputs, [TRUTHS]).score, abs=1e-9)
    assert found["exact_match"].total == np.mean([a == b for a, b in zip(outputs, TRUTHS, strict=True)])
    scorers = sacrebleu.BLEU(), sacrebleu.CHRF()
    for scorer in scorers:
        scorer.corpus_score(outputs, [TRUTHS])
    bleu, chrf = (str(scorer.get_signature()) for scorer in scorers)
    assert bleu.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp")
    assert found["bleu"].about == {"bleu_signature": bleu}
    assert found["chrf"].about == {"chrf_signature": chrf}
    assert _totals(metrics.translations([""], ["a b c d"])) == {"exact_match": 0, "bleu": 0, "chrf": 0}


def test_macro_f1_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    right, guessed = rng.integers(0, 5, (2, 97))
    found = metrics.classes(right, guessed, 5)
    assert found["macro_f1"].total == pytest.approx(f1_score(right, guessed, average="macro"))
    assert found["accuracy"].total == np.mean(right == guessed)
    assert metrics.classes(np.array([0, 1]), np.array([0, 1]), 3)["macro_f1"].total == 1  # the third is never there


@pytest.mark.parametrize("seed", range(5))
def test_macro_f1_is_over_classes_that_occur(seed: int) -> None:
    """Of forty classes most are neither among the labels nor guessed; each would count as right."""
    right, guessed = np.random.default_rng(seed).choice([3, 11, 12, 30], (2, 9))
    found = metrics.classes(right, guessed, 40)["macro_f1"]
    assert found.total == pytest.approx(f1_score(right, guessed, average="macro", zero_division=0))
    few = metrics.classes(np.array([0, 0]), np.array([1, 1]), 40)["macro_f1"]
    assert few.total == 0
    low, high = metrics.bootstrap(found._replace(statistics=np.tile(found.statistics, (3, 1))), 50)
    assert low <= found.total <= high
    assert metrics.classes(np.zeros(0, int), np.zeros(0, int), 4)["macro_f1"].total == 0


# --- Scripts

SENTENCES = {
    "ko": ["고양이가 창가에서 자고 있다.", "어제 비가 많이 내렸다."],
    "hi": ["बिल्ली खिड़की पर सो रही है।", "कल बहुत तेज़ बारिश हुई।"],
    "th": ["แมวนอนอยู่ริมหน้าต่าง", "เมื่อวานฝนตกหนักมาก"],
    "zh": ["猫在窗边睡觉。", "昨天雨下得很大。"],
    "ja": ["猫が窓辺で寝ている。", "昨日は雨がたくさん降った。"],
    "ar": ["القطة تنام على حافة النافذة.", "هطل المطر بغزارة أمس هنا."],
    "ru": ["Кошка спит на широком окне.", "Вчера шёл очень сильный дождь."],
    "el": ["Η γάτα κοιμάται στο παράθυρο.", "Χθες έβρεξε πάρα πολύ."],
    "he": ["החתול ישן ליד החלון הגדול.", "אתמול ירד גשם חזק מאוד."],
    "de": ["Die Katze schläft am Fenster.", "Gestern regnete es sehr stark."],
    "en": ["The cat sleeps at the window.", "It rained very hard yesterday."],
    "ta": ["பூனை ஜன்னல் அருகே தூங்குகிறது மெதுவாக.", "நேற்று பலத்த மழை பெய்தது இங்கே."],
    "hy": ["Կատուն քնած է պատուհանի մոտ։", "Երեկ շատ ուժեղ անձրև եկավ։"],
    "ka": ["კატას სძინავს დიდ ფანჯარასთან ახლოს.", "გუშინ ძალიან ძლიერი წვიმა იყო."],
    "my": ["ကြောင်သည် ပြတင်းပေါက်နားတွင် အိပ်နေသည်။", "မနေ့က မိုးသည်းထန်စွာရွာခဲ့သည်။"],
}
SCRIPTS = {
    "ko": "Hangul", "hi": "Devanagari", "th": "Thai", "zh": "Han", "ja": "Japanese", "ar": "Arabic", "ru": "Cyrillic",
    "el": "Greek", "he": "Hebrew", "de": "Latin", "en": "Latin", "ta": "Tamil", "hy": "Armenian", "ka": "Georgian",
    "my": "Myanmar",
}  # fmt: skip


@pytest.mark.parametrize("language", SENTENCES)
def test_a_perfect_copy_is_perfect_in_every_script(language: str) -> None:
    truths = SENTENCES[language]
    assert scripts.script_of(truths) == SCRIPTS[language]
    found = metrics.translations(truths, truths) | metrics.summaries(truths, [[text] for text in truths])
    totals = _totals(found)
    if scripts.bleu_tokenizer(SCRIPTS[language]) is None:
        assert language in ("th", "my")
        assert totals.pop("bleu") is None
        assert found["bleu"].about["bleu_reason"].startswith(f"{SCRIPTS[language]} has no spaces between words, and no")
        assert metrics.bootstrap(found["bleu"], 10) is None
        assert not metrics.comparable(found["bleu"], found["bleu"])
    assert totals == pytest.approx(dict.fromkeys(totals, 100) | {"exact_match": 1})
    # Half of the copies are wrong in every word, and are seen to be.
    half = _totals(metrics.summaries([truths[0], "§ 1"], [[text] for text in truths]))
    assert half == pytest.approx(dict.fromkeys(half, 50))


@pytest.mark.parametrize("language", SENTENCES)
def test_bleu_is_that_of_sacrebleu_with_the_tokenizer_of_the_script(language: str) -> None:
    tokenizer = scripts.bleu_tokenizer(SCRIPTS[language])
    if tokenizer is None:
        return
    truths = SENTENCES[language]
    outputs = [text.replace(text[1], text[2]) for text in truths]
    found = metrics.translations(outputs, truths)["bleu"]
    scorer = sacrebleu.BLEU(tokenize=tokenizer)
    assert found.total == pytest.approx(scorer.corpus_score(outputs, [truths]).score)
    assert found.about["bleu_signature"] == str(scorer.get_signature())
    assert f"|tok:{tokenizer}" in found.about["bleu_signature"]
    expected = {"zh": "zh", "ja": "char", "ko": "13a"}
    if importlib.util.find_spec("MeCab") is None and importlib.util.find_spec("mecab_ko") is None:
        assert tokenizer == expected.get(language, "13a")


def test_a_tokenizer_that_is_installed_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripts.importlib.util, "find_spec", lambda name: name)
    assert [scripts.bleu_tokenizer(script) for script in ("Japanese", "Hangul", "Han", "Latin")] == [
        "ja-mecab", "ko-mecab", "zh", "13a",
    ]  # fmt: skip
    assert scripts.bleu_tokenizer("Thai") is None, "its model is not here, and is not fetched"
    monkeypatch.setattr(scripts.os.path, "exists", lambda path: path.endswith("flores200sacrebleuspm"))
    assert scripts.bleu_tokenizer("Thai") == "flores200"


@pytest.mark.parametrize(
    ("texts", "script"),
    [
        (["我们使用 Transformer 模型训练。"], "Han"),
        (["東京"], "Han"),
        (["東京タワー"], "Japanese"),
        (["中文" * 40 + "の"], "Han"),
        (["ＡＢＣ"], "Latin"),
        (["12:30 :)", ""], ""),
        (["α is small, β is not"], "Latin"),
        ([], ""),
    ],
)
def test_the_script_of_mixed_texts(texts: list[str], script: str) -> None:
    assert scripts.script_of(texts) == script


def test_words_keep_their_marks() -> None:
    assert scripts.words("बिल्ली, खिड़की!") == ["बिल्ली", "खिड़की"]
    assert scripts.words("cafe\u0301s 37ème Straße") == ["cafe\u0301s", "37ème", "straße"]
    assert scripts.words("น้ำ 猫が") == ["น้ำ", "猫", "が"]


@pytest.mark.parametrize("language", ["en", "de"])
def test_rouge_of_latin_text_is_that_of_rouge_score(language: str) -> None:
    """With its stemmer, whatever it makes of other letters: figures in papers are these."""
    truths = [*SENTENCES[language], "Größe α of naïve cafés, running faster"]
    outputs = ["The cats slept at a window.", "Gestern regnete es", "size of the naive café runs fast"]
    found = metrics.summaries(outputs, [[text] for text in truths])
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for kind in ("rouge1", "rouge2", "rougeL"):
        theirs = [scorer.score(truth, text)[kind].fmeasure for truth, text in zip(truths, outputs, strict=True)]
        assert found[kind].total == pytest.approx(100 * np.mean(theirs))
        assert found[kind].about["rouge_signature"].startswith("tok:latin-stemmed|version:rouge-score ")


def test_rouge_of_other_scripts_by_hand() -> None:
    found = metrics.summaries(["Кошка быстро спит", "猫睡"], [["Кошка спит дома сегодня"], ["猫在睡觉"]])
    # 2 of 3 words and 2 of 4; 2 of 2 characters and 2 of 4.
    assert found["rouge1"].total == pytest.approx(50 * (2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2) + 2 * 1 * 0.5 / 1.5))
    assert found["rouge1"].about["rouge_signature"].startswith("tok:characters+words|")


def test_bleu_of_references_without_four_words_has_no_value() -> None:
    """sacreBLEU gives 0 to a perfect copy."""
    found = metrics.translations(["one two", "three"], ["one two", "three"])
    assert found["bleu"].total is None
    assert found["bleu"].about == {"bleu_reason": "no reference has the 4 words that BLEU counts runs of: see chrf"}
    assert found["chrf"].total == pytest.approx(100)
    with pytest.raises(ValueError, match="without a value"):
        metrics.paired(found["bleu"], found["bleu"], 10)


def test_errors_of_transcripts_without_spaces_are_of_characters() -> None:
    found = metrics.transcripts(["猫在睡觉", "雨 大"], ["猫在睡", "雨很大"])
    assert found["character_error_rate"].total == 2 / 6
    assert found["word_error_rate"].total is None
    assert found["word_error_rate"].about["word_error_rate_reason"] == (
        "Han has no spaces between words: see character_error_rate"
    )


def test_of_nothing() -> None:
    assert metrics.ratio([], []).total == 0
    assert metrics.ratio([0.0], [0.0], np.exp).total == 1


# --- Intervals


def test_an_interval_of_bleu_is_as_wide_as_sacrebleus() -> None:
    outputs = _sentences(1, 0, 0.3, TRUTHS)
    low, high = metrics.bootstrap(metrics.translations(outputs, TRUTHS)["bleu"], 1000)
    theirs: Any = sacrebleu.BLEU().corpus_score(outputs, [TRUTHS], n_bootstrap=1000)
    assert (high - low) / 2 == pytest.approx(theirs._ci, rel=0.1)
    assert (high + low) / 2 == pytest.approx(theirs._mean, abs=0.3 * theirs._ci)
    assert estimate_ci(np.arange(1000.0))[1] == pytest.approx(475, abs=2)  # theirs are 95 % as well


def test_intervals_hold_the_truth_in_95_of_100() -> None:
    rng = np.random.default_rng(5)
    held = 0
    for seed in range(400):
        tops, bottoms = rng.normal(2.0, 1.0, 120), rng.uniform(1, 9, 120)
        low, high = metrics.bootstrap(metrics.ratio(tops * bottoms, bottoms), 300, seed)
        held += low <= 2.0 <= high
    assert 0.915 <= held / 400 <= 0.98  # 2.6 standard errors around 0.95, and percentiles are a little narrow


def test_the_same_differ_by_nothing() -> None:
    same = metrics.mean(np.random.default_rng(0).random(50))
    assert metrics.paired(same, same, 200) == (0.0, 0.0, 0.0, 1.0)


def test_a_pair_shares_what_is_hard_for_both() -> None:
    """Each figure alone is uncertain by far more than the difference, which pairing shows."""
    rng = np.random.default_rng(2)
    hard = rng.normal(0, 10, 300)
    a, b = metrics.mean(hard + 0.2 + rng.normal(0, 0.5, 300)), metrics.mean(hard + rng.normal(0, 0.5, 300))
    found = metrics.paired(a, b, 1000)
    low, high = metrics.bootstrap(a, 1000)
    assert found.difference == pytest.approx(a.total - b.total)
    assert 0 < found.low < 0.2 < found.high < 0.4
    assert high - low > 10 * (found.high - found.low)
    assert found.p < 0.01
    assert metrics.paired(b, a, 1000).high == pytest.approx(-found.low)


def test_no_difference_is_found_where_there_is_none() -> None:
    rng = np.random.default_rng(3)
    claims = sum(metrics.paired(metrics.mean(x), metrics.mean(y), 200).p < 0.05 for x, y in rng.random((200, 2, 60)))
    assert claims <= 20  # 10 are to be expected


def test_few_examples_have_no_interval() -> None:
    """Draws of two alike would claim certainty."""
    few, enough = (metrics.mean(np.arange(count)) for count in (metrics.MIN_UNITS - 1, metrics.MIN_UNITS))
    assert metrics.bootstrap(few, 100) is None
    assert metrics.bootstrap(enough, 100) is not None
    assert metrics.paired(few, metrics.mean(np.ones(9)), 100) == (few.total - 1, None, None, None)


def test_examples_come_in_their_order_and_padding_in_none() -> None:
    metric = metrics.ratio([5, 0, 7, 6], [1, 0, 1, 2])
    found = metrics.in_order({"loss": metric}, np.array([5, -1, 7, 6]))["loss"]
    assert found.statistics.tolist() == [[5, 1], [6, 2], [7, 1]]
    assert found.units is not None
    assert found.units.tolist() == [5, 6, 7]
    assert found.total == metric.total
    other = metrics.in_order({"loss": metric}, np.array([5, -1, 8, 6]))["loss"]
    assert metrics.comparable(found, found)
    assert not metrics.comparable(found, other), "of other examples"
    assert not metrics.comparable(found, found._replace(statistics=found.statistics + 1)), "of other tokens"


def test_neighbours_that_are_alike_are_drawn_together() -> None:
    """A forecast of H values from each place of a series: drawn one by one, forecasts pretend to be H times as many."""
    rng, horizon, held = np.random.default_rng(8), 12, {1: 0, 24: 0}
    for seed in range(150):
        errors = rng.normal(size=700 + horizon) ** 2
        windows = np.lib.stride_tricks.sliding_window_view(errors, horizon).sum(axis=1)
        metric = metrics.ratio(windows, np.full(len(windows), horizon))
        for size in held:
            blocks = metrics.in_blocks({"loss": metric}, size)["loss"]
            assert blocks.total == pytest.approx(metric.total)
            low, high = metrics.bootstrap(blocks, 100, seed)  # type: ignore[misc]
            held[size] += low <= 1 <= high
    assert held[1] < 0.6 * 150
    assert held[24] > 0.85 * 150


def test_a_pair_is_of_the_same_examples() -> None:
    with pytest.raises(ValueError, match="3 examples against 4"):
        metrics.paired(metrics.mean([1, 2, 3]), metrics.mean([1, 2, 3, 4]), 10)
