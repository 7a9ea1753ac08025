"""What a run takes of another run, or of a folder in Hugging Face's format: compared with parameters that are moved by
hand, by path; and the sentences where it cannot."""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import tokenizers
from flax.traverse_util import flatten_dict, unflatten_dict
from tokenizers import decoders, models, pre_tokenizers, trainers

from tests.test_verbs import Verb, commands
from transformer import beginning, load_run
from transformer.config import Config, override
from transformer.errors import UserError
from transformer.model import pretrained
from transformer.model.families import build
from transformer.model.stacks import unstacked
from transformer.tasks import Task
from transformer.tasks.untrained import task_of
from transformer.training.sharding import make_layout, shapes

SIZES = {
    "model.num_layers": 2, "model.d_model": 16, "model.d_ff": 24, "model.num_heads": 2, "model.vocab_size": 37,
    "model.norm": "pre", "model.positions": "learned", "model.max_positions": 16, "data.max_len": 16,
    "data.buckets": (16,), "init_from": "there",
}  # fmt: skip
BERT = {"model.attention_bias": True, "model.norm": "post", "model.embedding_norm": True, "model.segment_types": 2}
BERT |= {"model.scale_embedding": False, "model.activation": "gelu", "model.norm_eps": 1e-12}
TASKS: dict[str, dict[str, Any]] = {
    "masked": {"task": "masked_language_model", "model.family": "encoder_only", "model.output_bias": True},
    "classes": {"task": "text_classification", "model.family": "encoder_only", "model.num_classes": 2},
    "more classes": {"task": "text_classification", "model.family": "encoder_only", "model.num_classes": 3},
    "language": {"task": "language_model", "model.family": "decoder_only"},
    "untied": {"task": "language_model", "model.family": "decoder_only", "model.tied": False},
    "translation": {"task": "translation"},
    "image": {
        "task": "image_classification", "model.family": "encoder_only", "model.inputs": "image",
        "model.image_size": (8, 8), "model.patch_size": 2, "model.num_classes": 10, "model.max_positions": 17,
        "model.pooling": "first",
    },
    "forecast": {
        "task": "forecasting", "model.family": "forecaster", "model.inputs": "series", "data.horizon": 8,
        "model.patch_size": 4,
    },
    "recurrent": {
        "task": "language_model", "model.family": "recurrent_language_model", "model.positions": "none",
    },
}  # fmt: skip


def configured(name: str, **changes: Any) -> Config:
    return override(Config(), SIZES | TASKS[name] | changes)


def from_seed(task: Task, seed: int) -> Any:
    """Parameters of a task, each number drawn, so that every array can be told from any other."""
    random = np.random.default_rng(seed)
    made = jax.eval_shape(task.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), jnp.float32), made)


def flat(params: Any, layers: int = 2) -> dict[str, np.ndarray]:
    """Path -> values, of single layers."""
    return {
        "/".join(path): np.asarray(leaf) for path, leaf in flatten_dict(unstacked(params["params"], layers)).items()
    }


def of(task: Task, params: Any, classes: tuple[str, ...] = ()) -> beginning.Origin:
    single = unstacked(params["params"], 2)
    what = f"a run of {task.config.task}"
    return beginning.Origin("there", what, task.model_config, shapes(single), classes, lambda: params)


def begun(
    config: Config, origin: beginning.Origin, classes: tuple[str, ...] = (), seed: int = 1
) -> tuple[dict[str, np.ndarray], Any, Any]:
    """The parameters that a run begins with, those from the seed, and the plan."""
    task = task_of(config)
    layout = make_layout(dataclasses.replace(config, model=task.model_config), axes=task.axes)
    plan = beginning.plan(config, task, origin, classes)
    fresh = from_seed(task, seed)
    fresh = jax.device_put(fresh, layout.shardings(fresh))
    params = beginning.begin(plan, fresh, layout)
    assert jax.tree.structure(params) == jax.tree.structure(fresh)
    for leaf, place in zip(jax.tree.leaves(params), jax.tree.leaves(layout.shardings(params)), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
    return flat(params), flat(fresh), plan


# (there, here) -> beginning of a path here -> beginning of the path there; what no row names is as from the seed.
SAME = {"encoder/": "encoder/", "decoder/": "decoder/", "embedder/table": "embedder/table", "front/": "front/"}
PAIRS: dict[tuple[str, str], tuple[dict[str, str], list[str], list[str]]] = {
    ("masked", "classes"): (SAME, ["head"], ["embedder/output_bias"]),
    ("classes", "masked"): (SAME, ["embedder/output_bias"], ["head"]),
    ("classes", "more classes"): (SAME, ["head"], ["head"]),
    ("classes", "classes"): (SAME | {"head/": "head/"}, [], []),
    ("untied", "language"): (SAME, [], ["embedder/output_table"]),
    ("untied", "untied"): (SAME | {"embedder/output_table": "embedder/output_table"}, [], []),
    ("language", "translation"): (
        SAME | {"encoder/": "decoder/"},
        ["decoder/layer_*/cross_attention", "decoder/layer_*/cross_attention_residual"],
        [],
    ),
    ("masked", "translation"): (
        SAME | {"decoder/": "encoder/"},
        ["decoder/layer_*/cross_attention", "decoder/layer_*/cross_attention_residual"],
        ["embedder/output_bias"],
    ),
    ("translation", "classes"): (
        SAME,
        ["head"],
        [
            "decoder/final_norm", "decoder/input/positions", "decoder/layer_*/cross_attention",
            "decoder/layer_*/cross_attention_residual", "decoder/layer_*/feed_forward",
            "decoder/layer_*/feed_forward_residual", "decoder/layer_*/self_attention",
            "decoder/layer_*/self_attention_residual",
        ],
    ),
}  # fmt: skip


# All pairs with single layers, and two of them with scanned layers on either side or both.
CASES = [(pair, (False, False)) for pair in PAIRS]
CASES += [
    (pair, scanned)
    for pair in (("masked", "classes"), ("language", "translation"))
    for scanned in ((True, False), (False, True), (True, True))
]


@pytest.mark.parametrize(("pair", "scanned"), CASES, ids=str)
def test_the_trunk_is_taken_and_the_head_is_fresh(pair: tuple[str, str], scanned: tuple[bool, bool]) -> None:
    there, here = (configured(name, **{"model.scan_layers": scan}) for name, scan in zip(pair, scanned, strict=True))
    rows, fresh_modules, left_modules = PAIRS[pair]
    source = from_seed(task_of(there), 7)
    made, fresh, plan = begun(here, of(task_of(there), source))
    old = flat(source)
    for path, values in made.items():
        row = next((row for row in rows if path.startswith(row)), None)
        if row is None or "cross_attention" in path:
            np.testing.assert_array_equal(values, fresh[path], err_msg=path)
            assert not any(np.array_equal(values, each) for each in old.values()), path
        else:
            np.testing.assert_array_equal(values, old[rows[row] + path.removeprefix(row)], err_msg=path)
    assert (sorted(plan.note["fresh"]), sorted(plan.note["left"])) == (fresh_modules, left_modules)
    assert plan.note["taken"] == sum(not np.array_equal(made[path], fresh[path]) for path in made)
    told = str(plan)
    assert "\n" not in told
    assert all(module in told for module in [*fresh_modules, *left_modules, "'there'", "a run of"])


@pytest.mark.parametrize(
    ("name", "changes", "fresh"),
    [
        ("image", {"model.num_classes": 4}, ["head"]),
        ("forecast", {"data.horizon": 5}, ["head"]),
        ("recurrent", {"model.tied": False}, ["embedder/output_table"]),
    ],
)
def test_another_head_of_other_families(name: str, changes: dict[str, Any], fresh: list[str]) -> None:
    there = task_of(configured(name))
    source = from_seed(there, 7)
    made, seeds, plan = begun(configured(name, **changes), of(there, source))
    assert plan.note["fresh"] == fresh
    for path, values in made.items():
        from_ = seeds if path.startswith(fresh[0]) else flat(source)
        np.testing.assert_array_equal(values, from_[path])


@pytest.mark.parametrize("here", [("no", "yes"), ("good", "bad"), ()])
def test_the_head_of_other_classes_is_not_taken(here: tuple[str, ...]) -> None:
    task = task_of(configured("classes"))
    source = from_seed(task, 7)
    made, fresh, plan = begun(configured("classes"), of(task, source, ("no", "yes")), here)
    expected = fresh if here == ("good", "bad") else flat(source)
    np.testing.assert_array_equal(made["head/kernel"], expected["head/kernel"])
    assert plan.note["fresh"] == (["head"] if here == ("good", "bad") else [])


def test_every_family_has_a_head() -> None:
    from transformer.model.families import FAMILIES

    assert beginning.HEADS.keys() == FAMILIES.keys()
    assert all({*pair} <= FAMILIES.keys() for pair in beginning.STACKS)


def test_on_a_mesh_each_device_gets_its_shard() -> None:
    """Sharded over four devices, what is taken and what is fresh alike; from scanned layers."""
    changes = {"mesh.data": 2, "mesh.fsdp": 4, "model.vocab_size": 40}
    there = task_of(configured("masked", **changes, **{"model.scan_layers": True}))
    source = from_seed(there, 7)
    made, fresh, _ = begun(configured("classes", **changes), of(there, source))
    for path, values in made.items():
        np.testing.assert_array_equal(values, fresh[path] if path.startswith("head") else flat(source)[path])


def test_rows_that_fill_a_table_up_stay_0() -> None:
    there = task_of(configured("masked", **{"model.vocab_multiple": 8}))
    source = from_seed(there, 7)
    for multiple in (1, 16):
        made, _, _ = begun(configured("masked", **{"model.vocab_multiple": multiple}), of(there, source))
        table = made["embedder/table"]
        assert table.shape[0] == {1: 37, 16: 48}[multiple]
        np.testing.assert_array_equal(table[:37], flat(source)["embedder/table"][:37])
        assert not table[37:].any()


# --- Positions


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("size", [(12, 16), (4, 6)])
def test_positions_of_images_are_interpolated_over_the_grid(pooling: str, size: tuple[int, int]) -> None:
    """As in ViT's own code: by scipy.ndimage.zoom, with the first row apart, and kept."""
    there = task_of(configured("image", **{"model.pooling": pooling}))
    source = from_seed(there, 7)
    places = size[0] // 2 * size[1] // 2
    changes = {"model.image_size": size, "model.max_positions": places + 3, "model.pooling": pooling}
    with pytest.raises(
        UserError, match=r"positions/table of 4 x 4 patches, and there are \d x \d here: set model.image"
    ):
        begun(configured("image", **changes), of(there, source))
    made, _, plan = begun(configured("image", **changes, init_positions="interpolate"), of(there, source))
    old, new = flat(source)["encoder/input/positions/table"], made["encoder/input/positions/table"]
    first = int(pooling == "first")
    zoom = (size[0] / 8, size[1] / 8, 1)
    expected = scipy.ndimage.zoom(old[first : first + 16].reshape(4, 4, -1), zoom, order=1).reshape(places, -1)
    np.testing.assert_allclose(new[first : first + places], expected, atol=1e-5)
    np.testing.assert_array_equal(new[:first], old[:first])
    assert new.shape[0] == places + 3
    assert not new[first + places :].any()
    assert f"interpolated from 4 x 4 patches to {size[0] // 2} x {size[1] // 2}" in str(plan)


def test_a_vector_before_the_patches_that_is_not_used(tmp_path: Path) -> None:
    """From its pooling to the mean: its position is left out. Not the other way round."""
    there = task_of(configured("image"))
    source = from_seed(there, 7)
    mean = configured("image", **{"model.pooling": "mean", "model.max_positions": 16})
    made, _, plan = begun(mean, of(there, source))
    old = flat(source)["encoder/input/positions/table"]
    np.testing.assert_array_equal(made["encoder/input/positions/table"], old[1:])
    assert plan.note["left"] == ["front/first"]
    with pytest.raises(UserError, match=r"front/first is not there in it.*set --config.model.pooling=mean"):
        begun(configured("image"), of(task_of(mean), from_seed(task_of(mean), 3)))


def test_positions_of_texts_are_cut_or_interpolated() -> None:
    there = task_of(configured("language"))
    source = from_seed(there, 7)
    old = flat(source)["decoder/input/positions/table"]
    short = {"model.max_positions": 9, "data.max_len": 8}
    made, _, plan = begun(configured("translation", **short), of(there, source))
    for stack in ("encoder", "decoder"):
        np.testing.assert_array_equal(made[f"{stack}/input/positions/table"], old[:9])
    assert "encoder/input/positions/table cut from 16 positions to 9" in str(plan)
    long = {"model.max_positions": 31}
    with pytest.raises(
        UserError, match=r"of 16 positions, and there are 31 here: set model.max_positions=16, or init_pos"
    ):
        begun(configured("language", **long), of(there, source))
    made, _, plan = begun(configured("language", **long, init_positions="interpolate"), of(there, source))
    np.testing.assert_array_equal(made["decoder/input/positions/table"][::2], old)
    assert plan.note["positions"] == {"decoder/input/positions/table": "interpolated from 16 positions to 31"}


def test_the_buckets_of_t5_are_of_one_direction() -> None:
    relative = {"model.positions": "t5"}
    there = task_of(configured("language", **relative))
    source = from_seed(there, 7)
    made, fresh, _ = begun(configured("translation", **relative), of(there, source))
    table = "input/positions/table"
    np.testing.assert_array_equal(made[f"decoder/{table}"], flat(source)[f"decoder/{table}"])
    np.testing.assert_array_equal(made[f"encoder/{table}"], fresh[f"encoder/{table}"])


# --- Sentences


@pytest.mark.parametrize(
    ("there", "here", "changes", "said"),
    [
        ("masked", "classes", {"model.d_ff": 48}, r"\(24,\) in it and \(48,\) here.*: set --config.model.d_ff=24$"),
        (
            "masked",
            "classes",
            {"model.num_layers": 3},
            "layer_2/.* is not there in it .*set --config.model.num_layers=2$",
        ),
        ("masked", "classes", {"model.num_layers": 1}, "layer_1/.* not there here.*set --config.model.num_layers=2$"),
        (
            "masked",
            "classes",
            {"model.num_heads": 4},
            r"model \(model.num_heads is 2 in it and 4 here\): set --config.mod",
        ),
        ("masked", "classes", {"model.norm": "post"}, "set --config.model.norm=pre$"),
        ("masked", "classes", {"model.segment_types": 2}, "set --config.model.segment_types=0$"),
        ("masked", "classes", {"model.vocab_size": 36}, "set --config.model.vocab_size=37$"),
        ("language", "language", {"model.output_scale": 0.5}, "set --config.model.output_scale=1.0$"),
        ("image", "image", {"model.patch_size": 4}, "set --config.model.patch_size=2$"),
        ("forecast", "forecast", {"model.patch_stride": 2}, "set --config.model.patch_stride=4$"),
        ("recurrent", "recurrent", {"model.cell": "gru"}, "set --config.model.cell=lstm$"),
        (
            "language",
            "classes",
            {},
            "'decoder_only' with .* cannot begin from it: .*'decoder_only' or 'encoder_decoder' can",
        ),
        ("masked", "image", {}, "model.inputs='image' cannot begin from it"),
    ],
)
def test_another_trunk_is_one_sentence(there: str, here: str, changes: dict[str, Any], said: str) -> None:
    task = task_of(configured(there))
    with pytest.raises(UserError, match=said) as found:
        begun(configured(here, **changes), of(task, from_seed(task, 0)))
    assert str(found.value).startswith("init_from='there'")


def test_a_window_and_a_longer_context_are_no_other_trunk() -> None:
    changes = {"model.positions": "rotary"}
    task = task_of(configured("language", **changes))
    changed = changes | {"model.attention": ("window:4",), "model.rotary_theta": 5e5, "model.dropout": 0.3}
    source = from_seed(task, 0)
    made, _, plan = begun(configured("language", **changed), of(task, source))
    assert plan.taken.keys() == made.keys()


def test_init_positions_alone() -> None:
    with pytest.raises(UserError, match="init_positions says what becomes"):
        override(Config(), {"init_positions": "interpolate"})
    with pytest.raises(UserError, match="init_positions must be"):
        configured("language", init_positions="nearest")


# --- Folders in Hugging Face's format


def folder_of(path: Path, config: Config, special_ids: Mapping[str, Any] | None = None) -> dict[str, np.ndarray]:
    """Writes the model of a config with parameters of its own, and returns these."""
    model = build(config.model)
    random = np.random.default_rng(2)
    of_shapes = pretrained.parameter_shapes(model).items()
    made = {
        "params": unflatten_dict(
            {path: random.normal(size=shape).astype(np.float32) for path, shape in of_shapes}, sep="/"
        )
    }
    pretrained.save(path, model, made, special_ids)
    return flat(made)


def tokenizer_json(path: Path) -> tokenizers.Tokenizer:
    """A small tokenizer of GPT-2's kind, with its one special token at the end."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(["uno due"], trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    made.add_special_tokens(["<|endoftext|>", "[MASK]"])
    made.save(str(path))
    return made


FOLDERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # name -> (task here, keys of both models, keys of the model in the folder)
    "bert": ("classes", BERT | {"model.pooling": "pooler"}, {"model.num_classes": 0}),
    "masked": (
        "classes",
        BERT | {"model.pooling": "first"},
        {"model.num_classes": 0, "model.output_bias": True, "model.output_transform": True},
    ),
    "gpt2": (
        "language",
        {"model.attention_bias": True, "model.activation": "gelu_tanh", "model.scale_embedding": False},
        {},
    ),
    "vit": (
        "image",
        {"model.attention_bias": True, "model.activation": "gelu", "model.norm_eps": 1e-12},
        {"model.num_classes": 3},
    ),
}


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_hugging_faces_format(name: str, scan: bool, tmp_path: Path) -> None:
    task_name, both, theirs = FOLDERS[name]
    values = folder_of(tmp_path, configured(task_name, **both, **theirs))
    config = configured(task_name, **both, init_from=str(tmp_path), **{"model.scan_layers": scan, "mesh.fsdp": 2})
    task = task_of(config)
    layout = make_layout(dataclasses.replace(config, model=task.model_config), axes=task.axes)
    assert beginning.is_pretrained(config.init_from)
    made, fresh, plan = begun(config, beginning.origin(config, layout))
    for path, found in made.items():
        expected = fresh if path.startswith("head") else values
        np.testing.assert_array_equal(found, expected[path], err_msg=path)
    assert plan.note["fresh"] == ([] if name == "gpt2" else ["head"])
    assert ("pooler/kernel" in plan.taken) == (name == "bert")


def test_a_folder_of_another_architecture_names_the_keys(tmp_path: Path) -> None:
    folder_of(tmp_path, configured("classes", **BERT, **{"model.num_classes": 0, "model.pooling": "pooler"}))
    config = configured(
        "classes", init_from=str(tmp_path), **BERT | {"model.activation": "relu", "model.norm_eps": 1e-6}
    )
    layout = make_layout(config, axes=task_of(config).axes)
    with pytest.raises(UserError, match=r"set --config.model.norm_eps=1e-12 --config.model.activation=gelu$"):
        beginning.plan(config, task_of(config), beginning.origin(config, layout))


def test_the_tokenizer_of_a_folder_unless_another_is_named(tmp_path: Path) -> None:
    run, folder = tmp_path / "run", tmp_path / "folder"
    for path, content in ((run, {"task": "translation"}), (folder, {"model_type": "gpt2"})):
        path.mkdir()
        (path / "config.json").write_text(json.dumps(content))
    named = {"data.tokenizer": "mine/tokenizer.json"}
    for init, changes, expected in (
        ("", {}, "bpe"),
        (str(run), named, str(run / "tokenizer.json")),
        (str(folder), {}, str(folder)),
        (str(folder), named, "mine/tokenizer.json"),
    ):
        assert beginning.data_of(override(Config(), {"init_from": init, **changes})).tokenizer == expected


def test_a_tokenizer_with_more_pieces_than_the_model(tmp_path: Path) -> None:
    there = task_of(configured("masked"))
    config = configured("masked", **{"model.vocab_size": 50})
    with pytest.raises(UserError, match=r"leave out data.tokenizer, whose 50 pieces are more than the 37 of the model"):
        begun(config, of(there, from_seed(there, 0)))


# --- The verbs


@pytest.fixture(scope="module")
def verb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Verb]:
    with commands(tmp_path_factory.mktemp("beginning")) as run:
        yield run


SMALL = ("num_layers=1", "d_model=16", "d_ff=24", "num_heads=2", "positions=learned", "max_positions=32")


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of a small model on texts with two classes, and their data."""
    folder = tmp_path_factory.mktemp("classes")
    (folder / "data").mkdir()
    random = np.random.default_rng(0)
    for split, count in (("train", 60), ("dev", 10), ("test", 10)):
        texts = [" ".join(random.choice(["uno", "due", "sei"], random.integers(2, 6))) for _ in range(count)]
        rows = [f"{text}\t{int('sei' in text)}" for text in texts]
        (folder / "data" / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    data = ("name=sst2", "target=text", "vocab_size=300", "max_len=32", "buckets=(32,)", "batch_tokens=256")
    data += (f"dir={folder / 'data'}", f"cache={folder / 'cache'}")
    lines = [f"config.{key.replace('=', ' = ', 1)}" for key in ("steps=2", "model.family='encoder_only'")]
    config = folder / "config.py"
    config.write_text(
        "from transformer.config import defaults\n\n\ndef get_config():\n    config = defaults()\n"
        + "".join(f"    {line}\n" for line in lines)
        + "    return config\n"
    )
    return [
        f"--config={config}",
        *(f"--config.model.{each}" for each in SMALL),
        *(f"--config.data.{each}" for each in data),
    ]


CLASSES = ("--config.task=text_classification", "--config.model.num_classes=2")


def test_a_classifier_begins_from_a_masked_language_model(verb: Verb, flags: list[str], tmp_path: Path) -> None:
    masked, run = tmp_path / "masked", tmp_path / "run"
    ended = verb("train", *flags, "--config.task=masked_language_model", f"--workdir={masked}")
    assert ended.code == 0, ended.err
    command = ("train", *flags, *CLASSES, f"--config.init_from={masked}", f"--workdir={run}")
    slow = "--config.optimizer.learning_rate=1e-12"
    ended = verb(*command, slow)
    assert ended.code == 0, ended.err
    assert "are those of a run of masked_language_model in" in ended.out.decode() + ended.err
    assert json.loads((run / "data.json").read_text())["init"]["fresh"] == ["head"]
    there, here = (flat(load_run(path).params, 1) for path in (masked, run))
    for path, values in here.items():
        if not path.startswith("head"):
            np.testing.assert_allclose(values, there[path], atol=1e-9, err_msg=path)
    assert load_run(run).tokenizer.fingerprint == load_run(masked).tokenizer.fingerprint
    shutil.rmtree(masked)
    ended = verb(*command, slow, "--config.steps=3")
    assert ended.code == 0, f"the folder may be gone once the run has begun: {ended.err}"


def test_a_classifier_begins_from_a_folder(verb: Verb, flags: list[str], tmp_path: Path) -> None:
    folder, run = tmp_path / "bert", tmp_path / "run"
    folder.mkdir()
    pieces = tokenizer_json(folder / "tokenizer.json")
    sizes = SIZES | BERT | {"model.num_layers": 1, "model.max_positions": 32, "model.pooling": "pooler"}
    sizes |= {"model.vocab_size": pieces.get_vocab_size(), "model.family": "encoder_only", "init_from": ""}
    values = folder_of(folder, override(Config(), sizes))
    keys = [f"--config.{key}={value}" for key, value in BERT.items()]
    command = ["train", *flags, *keys, *CLASSES, f"--config.init_from={folder}", f"--workdir={run}"]
    ended = verb(*command, "--config.optimizer.learning_rate=1e-12", "--config.model.pooling=pooler")
    assert ended.code == 0, ended.err
    made = load_run(run)
    for path, found in flat(made.params, 1).items():
        if not path.startswith("head"):
            np.testing.assert_allclose(found, values[path], atol=1e-9, err_msg=path)
    assert made.tokenizer.encode("uno due") == pieces.encode("uno due").ids
    assert made.tokenizer.eos_id == pieces.token_to_id("<|endoftext|>")
    ended = verb("evaluate", f"--workdir={run}")
    assert ended.code == 0, ended.err
    ended = verb("generate", f"--workdir={run}", given=b"uno sei\n")
    assert ended.lines in (["0"], ["1"], ["negative"], ["positive"]), ended.err
    shutil.rmtree(folder)
    ended = verb(
        *command, "--config.optimizer.learning_rate=1e-12", "--config.model.pooling=pooler", "--config.steps=3"
    )
    assert ended.code == 0, f"the folder may be gone once the run has begun: {ended.err}"
