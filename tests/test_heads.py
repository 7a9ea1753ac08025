"""The verb that writes the head viewer: what each kind of model reads, and one sentence for every mistake."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from absl import flags

from transformer import heads, reading
from transformer.config import Config, ModelConfig, override
from transformer.data.tokenizers import MASK, Tokenizer
from transformer.errors import UserError
from transformer.model.families import build, init
from transformer.model.pretrained import save
from transformer.model.tokens import Tokens
from transformer.tasks import TASKS
from transformer.tasks.trained import Trained

SMALL = {"model.num_layers": 1, "model.d_model": 8, "model.d_ff": 8, "model.num_heads": 2, "data.max_len": 9}
SMALL |= {"data.buckets": [16], "data.row_multiple": 8, "data.batch_tokens": 128}


def unread() -> Any:
    raise AssertionError("no data is needed to look into a run")


def trained(task: str, family: str, **more: Any) -> Trained:
    """A run that has not trained a step."""
    given = {"task": task, "model.family": family, "model.positions": "learned", "model.max_positions": 12}
    config = override(Config(), SMALL | given | more)
    tokenizer = Tokenizer.train(["red green blue"], 300, "characters", (MASK,)) if TASKS[task].reads_text else None
    made = TASKS[task](config, tokenizer)
    return Trained(config, tokenizer, made, jax.jit(made.init)(jax.random.key(0)), 7, data=unread)


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_a_translation_has_three_kinds_of_attention() -> None:
    found = reading.of_run(trained("translation", "encoder_decoder"), "red", "blue")
    assert found.tokens == {"encoder": [*"red", "[end]"], "decoder": ["[begin]", *"blue"]}
    data = data_of(heads.page(found))
    assert [view["name"].split(":")[0] for view in data["views"]] == ["encoder", "decoder", "cross"]
    assert data["about"] == "translation, step 7"


def test_an_output_of_its_own_where_none_is_given() -> None:
    found = reading.of_run(trained("translation", "encoder_decoder"), "red", None)
    assert found.tokens["decoder"][0] == "[begin]"
    assert len(found.tokens["decoder"]) <= 12
    assert found.about.endswith("its own, greedy")


def test_a_language_model_and_an_encoder() -> None:
    found = reading.of_run(trained("language_model", "decoder_only"), "red blue", None)
    assert found.tokens == {"decoder": ["[begin]", *"red▁blue"]}
    np.testing.assert_array_equal(found.arguments[1].lengths, [9])
    found = reading.of_run(trained("masked_language_model", "encoder_only"), "red", None)
    assert found.tokens == {"encoder": ["[begin]", *"red", "[end]"]}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s"]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    config = ModelConfig(
        family="encoder_only", positions="learned", vocab_size=len(pieces), max_positions=6, segment_types=2,
        num_layers=2, d_model=8, d_ff=8, num_heads=2, attention_bias=True, norm_eps=1e-12, activation="gelu",
        scale_embedding=False, embedding_norm=True, pooling="pooler",
    )  # fmt: skip
    ids = jax.numpy.zeros((1, 2), jax.numpy.int32)
    model: Any = build(config)
    save(folder, model, jax.jit(lambda key: init(model, key, ids, Tokens(ids, ids)))(jax.random.key(1)))
    return folder


def test_weights_of_bert(bert: Path) -> None:
    found = reading.of_folder(bert, "The CATS")
    assert found.tokens == {"encoder": ["[CLS]", "the", "cat", "##s", "[SEP]"]}
    view = data_of(heads.page(found))["views"][0]
    assert np.shape(view["entropy"]) == (2, 2)
    (bert / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert reading.of_folder(bert, "The cats").tokens == {"encoder": ["[CLS]", "[UNK]", "cat", "##s", "[SEP]"]}
    (bert / "tokenizer_config.json").unlink()


SETTINGS: list[tuple[dict[str, Any], str, list[str]]] = [
    ({}, "Möchte", ["mochte"]),
    ({"do_lower_case": None}, "A", ["a"]),
    ({"do_lower_case": True, "strip_accents": False}, "Möchte", ["möchte"]),
    ({"do_lower_case": False}, "möchte A", ["möchte", "A"]),
    ({"do_lower_case": False, "strip_accents": True}, "möchte", ["mochte"]),
    ({"do_lower_case": True, "strip_accents": False}, "が", ["が"]),
    ({}, "任务", ["任", "务"]),
    ({"tokenize_chinese_chars": False}, "任务", ["任", "##务"]),
    ({"split_special_tokens": True}, "a [MASK]", ["a", "[UNK]", "[UNK]", "[UNK]"]),
    (
        {"never_split": ["[CLS]"], "model_max_length": int(1e30), "add_prefix_space": False, "do_basic_tokenize": True,
         "cls_token": {"content": "[CLS]", "lstrip": False}, "unk_token": "[UNK]", "tokenizer_class": "BertTokenizer",
         "added_tokens_decoder": {"2": {"content": "[CLS]"}}, "extra_special_tokens": {}, "padding_side": "left",
         "additional_special_tokens": [], "special_tokens_map_file": None, "name_or_path": "x", "max_length": 128},
        "a", ["a"],
    ),
]  # fmt: skip
REFUSED: list[tuple[str, str]] = [
    ("{", r"tokenizer_config\.json' cannot be read as JSON"),
    ("[]", "holds list, not settings"),
    ('{"do_lower_case": "false"}', "do_lower_case='false', which is no bool"),
    ('{"strip_accents": 1}', "strip_accents=1, which is no bool"),
    ('{"never_split": ["mochte"]}', r"names special tokens besides \[CLS\], \[MASK\]"),
    ('{"additional_special_tokens": ["<e1>"]}', "names special tokens besides"),
    ('{"added_tokens_decoder": {"9": {"content": "[CLS]"}}}', "names special tokens besides"),
    ('{"mask_token": "<mask>"}', r"mask_token='<mask>', and we know only '\[MASK\]'"),
    ('{"model_max_length": 2}', r"--text has 3 tokens, and .* sets model_max_length=2: shorten"),
    ('{"add_prefix_space": true}', "add_prefix_space=True"),
    ('{"do_basic_tokenize": false}', "do_basic_tokenize=False"),
    ('{"tokenizer_class": "RobertaTokenizer"}', "tokenizer_class='RobertaTokenizer', and of that we have only Bert"),
    ('{"of_tomorrow": 1}', "of_tomorrow=1, which we do not know"),
]


@pytest.fixture(scope="module")
def accents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary that tells the settings of a tokenizer apart, beside weights that are not looked at."""
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "mochte",
        "möchte",
        "か",
        "が",
        "任",
        "务",
        "##务",
        "a",
        "A",
    ]
    folder = tmp_path_factory.mktemp("accents")
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return folder


def read_as(folder: Path, settings: str, text: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    config = ModelConfig(family="encoder_only", positions="learned", max_positions=9)
    model = type("Model", (), {"config": config})
    monkeypatch.setattr(reading, "load", lambda folder: (model, {}))
    (folder / "tokenizer_config.json").write_text(settings, encoding="utf-8")
    return reading.of_folder(folder, text).tokens["encoder"][1:-1]


@pytest.mark.parametrize(("settings", "text", "tokens"), SETTINGS)
def test_settings_of_the_tokenizer_are_followed(
    settings: dict[str, Any], text: str, tokens: list[str], accents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_as(accents, json.dumps(settings), text, monkeypatch) == tokens


@pytest.mark.parametrize(("settings", "said"), REFUSED)
def test_settings_of_the_tokenizer_are_refused(
    settings: str, said: str, accents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=said) as error:
        read_as(accents, settings, "a", monkeypatch)
    assert "\n" not in str(error.value)


def test_a_special_token_in_the_text_is_refused(accents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--text holds '\[MASK\]', which the model's own tokenizer reads as one token"):
        read_as(accents, "{}", "a [MASK]", monkeypatch)


def test_what_cannot_be_looked_into(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--text has 7 tokens, and the model's position table ends after 6: shorten"):
        reading.of_folder(bert, "the the the the the")
    with pytest.raises(UserError, match=r"holds no vocab\.txt"):
        reading.of_folder(tmp_path, "the")
    with pytest.raises(UserError, match="--target has 15 tokens, and the model's position table ends after 12"):
        reading.of_run(trained("translation", "encoder_decoder"), "red", "blue green red")
    with pytest.raises(UserError, match="--text has 15 tokens"):
        reading.of_run(trained("language_model", "decoder_only"), "blue green red", None)
    with pytest.raises(UserError, match="'language_model' has no output to look at: leave out --target"):
        reading.of_run(trained("language_model", "decoder_only"), "red", "blue")
    images = {"model.inputs": "image", "model.num_classes": 10, "model.max_positions": 50}
    with pytest.raises(UserError, match="'image_classification' reads no line of text"):
        reading.of_run(trained("image_classification", "encoder_only", **images), "red", None)
    recurrent = {"model.positions": "none"}
    with pytest.raises(UserError, match="has no attention heads to look into"):
        heads.page(reading.of_run(trained("language_model", "recurrent_language_model", **recurrent), "red", None))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"text": "  "}, "--text is missing"),
        ({"workdir": "a", "pretrained": "b"}, "give either --workdir"),
        ({"workdir": None}, "give either --workdir"),
        ({"output": "no/such/heads.html"}, "--output=no/such/heads.html is no file"),
        ({"output": "."}, "is no file in a folder"),
        ({"workdir": None, "pretrained": "b", "target": "x"}, "leave out --target"),
    ],
)
def test_flags_are_checked_before_anything_is_read(
    given: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"workdir": "run", "pretrained": None, "text": "red", "target": None, "output": "heads.html"} | given
    known = flags.FlagValues()
    for name, value in values.items():
        flags.DEFINE_string(name, value, "", flag_values=known)
    known(["heads"])
    monkeypatch.setattr(heads, "FLAGS", known)
    with pytest.raises(UserError, match=said):
        heads.main()


def test_the_page_is_written(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = flags.FlagValues()
    values = {"workdir": None, "pretrained": str(bert), "text": "the cat", "target": None}
    for name, value in (values | {"output": str(tmp_path / "page.html")}).items():
        flags.DEFINE_string(name, value, "", flag_values=known)
    known(["heads"])
    monkeypatch.setattr(heads, "FLAGS", known)
    heads.main()
    assert data_of((tmp_path / "page.html").read_text())["about"] == f"weights of {bert}"
