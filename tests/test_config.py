"""Every key is explained; conversion is strict, and wrong keys name the nearest."""

import ast
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformer import config as module
from transformer.config import (
    RUNTIME,
    Config,
    DataConfig,
    defaults,
    differences,
    flatten,
    from_config_dict,
    from_dict,
    from_stored,
    is_runtime,
    is_texts,
    load_file,
    override,
    parse_pattern,
    to_config_dict,
    to_dict,
)
from transformer.errors import UserError

ROOT = Path(__file__).parent.parent

KEYS = list(flatten(Config()))
NAN, INFINITE = float("nan"), float("inf")


def test_every_key_is_commented_or_plain() -> None:
    """One comment a key, on its line. Names that the papers define speak for themselves."""
    text = Path(module.__file__).read_text()
    lines = text.splitlines()
    plain = {"warmup_steps", "b1", "b2", "eps"}
    whole = (*dataclasses.fields(Config), *dataclasses.fields(DataConfig))
    groups = {field.name for field in whole if dataclasses.is_dataclass(field.default)}
    classes = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name != "UserError"]
    seen = 0
    for node in classes:
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                if node.name in ("Config", "DataConfig") and item.target.id in groups:
                    continue
                seen += 1
                if item.target.id not in plain:
                    assert re.search(r"  # \S", lines[item.lineno - 1]), f"{node.name}.{item.target.id}"
    assert seen == len(KEYS) + 3, "the `extra` of three groups is empty"


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("data.files=a.csv", ("a.csv",)),
        ("data.files=train=a.csv,test=b c/*.csv", ("train=a.csv", "test=b c/*.csv")),
        ("data.files=('a,b.csv',)", ("a,b.csv",)),
        ("data.files='a,b.csv',", ("a,b.csv",)),
        ("model.attention=full,window:4", ("full", "window:4")),
        ("data.columns.series=x", ("x",)),
        ("data.columns.text=body", "body"),
        ("data.buckets=(16,64,256)", (16, 64, 256)),
    ],
)
def test_several_texts_are_typed_with_commas(typed: str, value: object) -> None:
    code = (
        "from transformer import command_line\nfrom transformer.config import flatten\ncommand_line.define_config()\n"
        f"command_line.run(lambda: print(flatten(command_line.config_from_flags())[{typed.partition('=')[0]!r}]))"
    )
    command = [sys.executable, "-c", code, f"--config={ROOT / 'configs/quantities.py'}", f"--config.{typed}"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.stdout.strip() == str(value), ended.stderr


def test_the_names_that_people_type() -> None:
    typed = {"steps", "seed", "data.dir", "data.source", "data.target", "model.positions", "model.attention"}
    assert typed | {"model.num_layers", "model.d_model"} <= set(KEYS)


def test_how_a_run_is_run_is_told_from_what_it_is() -> None:
    groups = {key.split(".")[0] for key in KEYS}
    assert all(name in KEYS or name in groups for name in RUNTIME)
    found = {key for key in KEYS if is_runtime(key)}
    assert {"steps", "mesh.fsdp", "logging.keep", "data.dir", "data.cache", "model.remat"} <= found
    data = {"data.batch_tokens", "data.row_multiple", "data.tokenizer"}
    optimizer = {key for key in KEYS if key.startswith("optimizer.")} - {"optimizer.max_skipped"}
    assert not found & {"seed", "init_from", "task", "model.dtype", "model.scan_layers", *data, *optimizer}


def test_a_retired_key_is_read_where_it_was_stored_and_refused_elsewhere(tmp_path: Path) -> None:
    stored = to_dict(override(Config(), {"mesh.fsdp": 2, "steps": 7}))
    stored["mesh"]["strategy"] = "fsdp"
    assert from_stored(stored) == override(Config(), {"mesh.fsdp": 2, "steps": 7})
    assert stored["mesh"]["strategy"] == "fsdp", "the caller's values are as they were"
    with pytest.raises(UserError, match=r"unknown config key 'mesh\.strategi'"):
        from_stored({"mesh": {"strategi": "fsdp"}})
    sentence = r"'mesh\.strategy' is no more: .* follows from mesh\.fsdp and mesh\.tensor, so leave it out"
    for read in (from_dict, lambda values: override(Config(), {"mesh.strategy": "fsdp"})):
        with pytest.raises(UserError, match=sentence):
            read(stored)
    file = tmp_path / "old.py"
    file.write_text(
        "from transformer.config import defaults\ndef get_config():\n    c = defaults()\n"
        "    c.mesh.strategy = 'fsdp'\n    return c\n"
    )
    with pytest.raises(UserError, match=sentence):
        load_file(file)


def test_there_and_back() -> None:
    config = override(Config(), {"model.attention": ["window:16", "full"], "steps": 7, "data.buckets": [256, 512]})
    assert config.model.attention == ("window:16", "full")
    assert from_dict(to_dict(config)) == config
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert from_config_dict(to_config_dict(config)) == config
    assert from_config_dict(defaults()) == Config()
    assert from_dict({}) == Config()


OWN = {"plugins": ["json"], "extra.note": "x", "model.extra.rate": 0.5, "data.extra.sizes": (1, [2, {"a": None}])}


def test_keys_of_plugins_are_keys_like_others() -> None:
    config = override(Config(), OWN)
    assert config.model.extra == {"rate": 0.5}
    assert config.data.extra == {"sizes": [1, [2, {"a": None}]]}, "as config.json holds it"
    assert from_dict(to_dict(config)) == from_stored(json.loads(json.dumps(to_dict(config)))) == config
    assert from_config_dict(to_config_dict(config)) == config
    flat = flatten(config)
    assert (flat["plugins"], flat["extra.note"], flat["model.extra.rate"]) == (("json",), "x", 0.5)
    assert set(flat) - set(KEYS) == set(OWN) - {"plugins"}
    changed = override(config, {"model.extra.rate": 2, "extra.other": True})
    assert differences(config, changed) == {"model.extra.rate": (0.5, 2), "extra.other": (None, True)}
    assert differences(changed, config) == {"model.extra.rate": (2, 0.5), "extra.other": (True, None)}
    assert changed != config
    assert hash(changed.model) == hash(config.model), "a model's config is part of a compiled program's key"
    made = defaults()
    made.plugins, made.extra, made.model.extra = ("json",), {"note": "x"}, {"rate": 0.5}
    assert differences(from_config_dict(made), config).keys() == {"data.extra.sizes"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"extra.a": 1}, "'extra.a' is for plugins, and `plugins` names none: add plugins=('my_module',)"),
        ({"data.extra.a": 1}, "'data.extra.a' is for plugins"),
        ({"extra": {"a": 1}}, "'extra' is a group of keys"),
        ({"model.extra": {"a": 1}}, "'model.extra' is a group of keys"),
        ({"extra.a.b": 1}, "unknown config key 'extra.a.b'"),
        ({"optimizer.extra.a": 1}, "unknown config key 'optimizer.extra.a'"),
        ({"plugins": "json", "extra.a": {1}}, "'extra.a' takes numbers, texts and lists of them, not {1}"),
        ({"plugins": "json", "extra.a": NAN}, "'extra.a' takes numbers, texts and lists of them, not nan"),
        ({"plugins": 3}, "'plugins' takes a tuple of str, not 3"),
    ],
)
def test_a_wrong_key_of_a_plugin_is_one_sentence(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        override(Config(), change)


@pytest.mark.parametrize("given", [{"extra": 3}, {"model": {"extra": [1]}}])
def test_extra_is_a_group(given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="extra' is a group of keys, not"):
        from_dict(given)
    with pytest.raises(UserError, match=r"unknown config key 'extra\.a b'"):
        from_dict({"plugins": ["json"], "extra": {"a b": 1}})


@given(st.sampled_from(KEYS), st.integers(1, 4))
def test_override_changes_one_key_and_differences_finds_it(key: str, number: int) -> None:
    old = override(Config(), {"init_from": "run"})  # of which init_positions says more
    value: Any = flatten(old)[key]
    new_value: Any = {
        int: {
            "model.num_heads": 16,
            "model.num_kv_heads": 2 ** (number - 1),
            "data.max_len": 64,
            "data.sample_rate": 16_000,
        }.get(key, 512 * number),
        float: 0.5 / (number + 1),
        bool: not value,
        str: {
            "model.norm": "pre",
            "model.norm_type": "rms",
            "model.initialization": "depth_scaled",
            "model.cell": "gru",
            "model.remat": "full",
            "model.dtype": "bfloat16",
            "optimizer.schedule": "cosine",
            "data.too_long": "cut",
            "data.resize": "crop",
            "init_positions": "interpolate",
        }.get(key, f"other {number}"),
        tuple: ("full", f"window:{number}") if is_texts(key) else (16, 256 * number),
    }[type(value)]
    if new_value == value:
        return
    new = override(old, {key: new_value})
    assert differences(old, new) == {key: (value, new_value)}
    assert differences(new, new) == {}
    assert old == override(Config(), {"init_from": "run"}), "the old one is as it was"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("model.postions", "model.positions"),
        ("positions", "model.positions"),
        ("optimizer.positions", "model.positions"),
        ("step", "steps"),
        ("model.d_modle", "model.d_model"),
        ("data.vocabsize", "data.vocab_size"),
        ("learning_rate", "optimizer.learning_rate"),
        ("lable_smoothing", "label_smoothing"),
    ],
)
def test_an_unknown_key_names_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(UserError, match=rf"unknown config key '{typed}': did you mean '{re.escape(meant)}'\?"):
        override(Config(), {typed: 1})
    group, _, name = typed.rpartition(".")
    with pytest.raises(UserError, match=f"unknown config key '{typed}'"):
        from_dict({group: {name: 1}} if group else {name: 1})


def test_a_key_like_no_other_says_where_all_are() -> None:
    with pytest.raises(UserError, match=r"transformer/config\.py"):
        override(Config(), {"zzzzzzzzzzzzzzz": 1})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", "7"), ("steps", 7.0), ("steps", True), ("steps", None), ("model.positions", 3),
        ("model.dropout", "0.1"),
        ("model.dropout", True), ("model.attention", 3), ("model.attention", []), ("model.attention", ["full", 3]),
        ("data.buckets", ["16"]), ("data.buckets", "16"), ("seed", [0]), ("data.dir", None),
    ],
)  # fmt: skip
def test_a_wrong_type_names_key_and_value(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"'{re.escape(key)}'") as raised:
        override(Config(), {key: value})
    assert repr(value) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_is_meant_is_taken() -> None:
    assert override(Config(), {"model.dropout": 0}).model.dropout == 0.0
    assert type(override(Config(), {"optimizer.learning_rate": 1}).optimizer.learning_rate) is float
    assert override(Config(), {"model.attention": "window:4"}).model.attention == ("window:4",)
    assert override(Config(), {"data.buckets": 512}).data.buckets == (512,)


def test_a_group_is_no_value() -> None:
    with pytest.raises(UserError, match="'model' is a group of keys"):
        from_dict({"model": 3})
    with pytest.raises(UserError, match="'model' is a group of keys"):
        override(Config(), {"model": 3})


IMPOSSIBLE = [
    ("steps", 0), ("seed", -1), ("seed", 2**31), ("model.num_layers", 0), ("model.d_model", 0), ("model.num_heads", 0),
    ("model.num_heads", 3), ("model.num_kv_heads", 3), ("model.num_kv_heads", 16), ("model.num_kv_heads", -1),
    ("model.dropout", 1.0), ("model.dropout", -0.1), ("model.dropout", NAN),
    ("label_smoothing", 1.0), ("label_smoothing", NAN), ("optimizer.learning_rate", 0.0),
    ("optimizer.learning_rate", -1.0), ("optimizer.learning_rate", NAN), ("model.norm", "mid"),
    ("optimizer.schedule", "linear"), ("data.max_len", 257), ("data.batch_tokens", 0), ("logging.keep", 0),
    ("logging.log_every", 0), ("logging.checkpoint_every", 0), ("optimizer.warmup_steps", 0),
    ("model.attention", ["window"]), ("model.attention", ["window:"]), ("model.attention", ["window:-1"]),
    ("model.attention", ["window:2.5"]), ("model.attention", ["ful"]), ("model.attention", ["Full"]),
    ("model.attention", ["window:²"]),
    ("optimizer.learning_rate", INFINITE), ("optimizer.clip_norm", -1.0), ("optimizer.clip_norm", NAN),
    ("optimizer.b1", 1.0), ("optimizer.b2", 1.0), ("optimizer.eps", -1.0), ("optimizer.weight_decay", -0.1),
    ("data.buckets", [0, 256]), ("data.buckets", [-16, 256]), ("model.vocab_size", -3), ("logging.evaluate_every", -1),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), IMPOSSIBLE, ids=[f"{key}={value}" for key, value in IMPOSSIBLE])
def test_an_impossible_value_is_one_sentence(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=re.escape(key.split(".")[-1])) as raised:
        override(Config(), {key: value})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("groups", [3, 5, 16, -1, -8])
def test_key_heads_divide_the_heads(groups: int) -> None:
    with pytest.raises(UserError, match=rf"model\.num_kv_heads={groups} does not divide model\.num_heads=8"):
        override(Config(), {"model.num_kv_heads": groups})
    for good in (0, 1, 2, 4, 8):
        assert override(Config(), {"model.num_kv_heads": good}).model.num_kv_heads == good


@pytest.mark.parametrize("positions", ["rotary", "rotary-half"])
def test_rotary_needs_an_even_head(positions: str) -> None:
    odd = {"model.d_model": 24, "model.num_heads": 8}
    with pytest.raises(UserError, match=f"{positions}.* a head has 3: make it even"):
        override(Config(), {"model.positions": positions, **odd})
    assert override(Config(), {"model.positions": positions, **odd, "model.num_heads": 4}).model.positions == positions
    assert override(Config(), odd).model.num_heads == 8


def test_patterns() -> None:
    assert parse_pattern("full") is None
    assert parse_pattern("window:0") == 0
    assert parse_pattern("window:16") == 16


def test_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no config file"):
        load_file(tmp_path / "none.py")
    with pytest.raises(UserError, match="no config file"):
        load_file(tmp_path)
    head = "from transformer.config import defaults\ndef get_config():\n"
    good = f"{head}    c = defaults()\n    c.steps = 3\n    return c\n"
    (tmp_path / "good.py").write_text(good)
    assert load_file(tmp_path / "good.py") == override(Config(), {"steps": 3})
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match="get_config"):
        load_file(tmp_path / "empty.py")
    (tmp_path / "key.py").write_text(good.replace("c.steps", "c.model.postions"))
    with pytest.raises(UserError, match=r"'model\.positions'"):
        load_file(tmp_path / "key.py")
    (tmp_path / "text.txt").write_text(good)
    with pytest.raises(UserError, match="not a Python config file"):
        load_file(tmp_path / "text.txt")
