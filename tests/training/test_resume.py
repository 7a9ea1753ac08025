"""A run that was cut in two is the run that was not; what checkpoints and metrics.jsonl hold."""

import dataclasses
import json
import random
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from tests.training.tiny import crc32c, points
from transformer import resuming
from transformer import train as verb
from transformer.config import (
    Config,
    DataConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    flatten,
    override,
    to_dict,
)
from transformer.data.batches.pairs import PairBatches
from transformer.data.tokenizers import Tokenizer
from transformer.errors import UserError
from transformer.runs import read_config
from transformer.training import step as step_module
from transformer.training.checkpoint import Checkpoints
from transformer.training.meter import Diverged
from transformer.training.optim import make_optimizer
from transformer.training.writer import Writer


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Twelve steps of a tiny model with dropout, on pairs of files; a little more than one epoch."""
    folder = tmp_path_factory.mktemp("data")
    drawn = random.Random(1)
    for split, count in (("train", 90), ("validation", 9), ("test", 9)):
        lines = ["".join(drawn.choices("abcdef ", k=drawn.randint(3, 20))).strip() or "a" for _ in range(count)]
        (folder / f"{split}.en").write_text("".join(f"{line}\n" for line in lines))
        (folder / f"{split}.de").write_text("".join(f"{line[::-1]}\n" for line in lines))
    return Config(
        steps=12,
        model=ModelConfig(num_layers=1, d_model=8, d_ff=12, num_heads=2, dropout=0.2),
        data=DataConfig(
            name="files", dir=str(folder), cache=str(folder / "cache"), vocab_size=280, max_len=32, batch_tokens=128,
            buckets=(16, 32),
        ),
        optimizer=OptimizerConfig(warmup_steps=5, learning_rate=1e-2),
        logging=LoggingConfig(log_every=3, checkpoint_every=100, keep=3),
    )  # fmt: skip


def _interrupt_at(step: int) -> Any:
    make = PairBatches.batch

    def batch(batches: Any, at: int) -> Any:
        if at == step:
            raise KeyboardInterrupt
        return make(batches, at)

    return batch


class Run:
    """A workdir, and the steps whose batches were made while it was trained."""

    def __init__(self, config: Config, workdir: Path, monkeypatch: pytest.MonkeyPatch):
        self.workdir, self.steps, self.batches = workdir, [], {}
        make = PairBatches.batch

        def batch(batches: Any, step: int) -> Any:
            self.steps.append(step)
            self.batches[step] = make(batches, step)
            return self.batches[step]

        with monkeypatch.context() as patch:
            patch.setattr(PairBatches, "batch", batch)
            self.metrics = verb.train(config, workdir, quiet=True)

    def state(self) -> list[np.ndarray]:
        """All numbers of the newest checkpoint: parameters, optimizer state, step."""
        checkpoints = Checkpoints(self.workdir)
        try:
            tree = ocp.load(checkpoints.folder / str(checkpoints.latest), checkpointable_name="state")
            return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
        finally:
            checkpoints.close()

    @property
    def data(self) -> dict[str, Any]:
        return json.loads((self.workdir / "data.json").read_text())

    def lines(self) -> list[dict[str, Any]]:
        """metrics.jsonl without what depends on the clock."""
        lines = [json.loads(line) for line in (self.workdir / "metrics.jsonl").read_text().splitlines()]
        clock = ("tokens_per_second", "seconds_per_step", "data_share", "device_share", "mfu")
        return [{key: value for key, value in line.items() if key not in clock} for line in lines]


def _here() -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


@pytest.fixture(scope="module")
def whole(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        return Run(config, tmp_path_factory.mktemp("whole"), patch)


def test_resumed_is_uninterrupted_bit_for_bit(
    config: Config, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after 6 of 12 steps on 8 devices, and taken up again in a new call."""
    first = Run(override(config, {"steps": 6}), tmp_path / "run", monkeypatch)
    assert len(whole.state()) > 20
    assert not all(np.array_equal(a, b) for a, b in zip(first.state(), whole.state(), strict=True))
    # A run that was killed leaves lines of steps that no checkpoint holds, and perhaps half a line.
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "loss": 99.0}\n{"step": 12, "lo')
    second = Run(config, tmp_path / "run", monkeypatch)

    # The data: no batch twice, none left out, the same arrays.
    assert sorted(whole.steps) == list(range(12))
    assert sorted(first.steps) == list(range(6))
    assert sorted(second.steps) == list(range(6, 12))
    for step, batch in whole.batches.items():
        other = (first if step < 6 else second).batches[step]
        assert all(np.array_equal(batch[key], other[key]) for key in batch)

    # Parameters, moments and counters: equal, not close.
    for left, right in zip(whole.state(), second.state(), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)
    assert whole.metrics == second.metrics

    # The training lines, and the one of the end; the first half also ended in one.
    assert [line for line in second.lines() if "loss" in line] == [line for line in whole.lines() if "loss" in line]
    assert second.lines()[-1] == whole.lines()[-1]
    assert [line["step"] for line in second.lines()] == [3, 6, 6, 9, 12, 12]


def test_metrics_lines(whole: Run) -> None:
    lines = [json.loads(line) for line in (whole.workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 9, 12, 12]
    for line in lines[:-1]:
        assert {"step", "loss", "learning_rate", "tokens_per_second"} <= set(line)
    assert [line["learning_rate"] for line in lines[:2]] == pytest.approx([6e-3, 1e-2 * (5 / 6) ** 0.5], rel=1e-6)
    assert lines[-1]["validation_nll"] == pytest.approx(whole.metrics["nll"], rel=1e-6)


def _copied(run: Run, folder: Path) -> Path:
    shutil.copytree(run.workdir, folder)
    return folder


AXES = {"kernel": ("in", "out")}


def _changes(workdir: Path) -> list[dict[str, Any]]:
    path = workdir / "changes.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", 1), ("model.dropout", 0.3), ("data.batch_tokens", 256), ("label_smoothing", 0.0), ("data.name", "text")],
)
def test_any_other_key_is_refused_by_name(config: Config, whole: Run, key: str, value: Any) -> None:
    with pytest.raises(
        UserError, match=rf"another config \({key} was .* and is now {value!r}\): choose another"
    ) as raised:
        resuming.check(whole.workdir, override(config, {key: value, "steps": 99}))
    assert "--change" not in str(raised.value)
    with pytest.raises(UserError, match=rf"--change={key} is not possible in a run"):
        resuming.check(whole.workdir, config, [key])


def test_how_it_is_run_may_differ(config: Config, whole: Run, tmp_path: Path) -> None:
    """config.json then holds what is now, and changes.jsonl what was before; nothing of it is worth a word."""
    workdir = _copied(whole, tmp_path / "run")
    how: dict[str, Any] = {"steps": 15, "mesh.data": 1, "logging.keep": 9, "model.remat": "full", "data.dir": "moved"}
    changed = override(config, how)
    old = resuming.check(workdir, changed)
    assert old == config
    assert resuming.claim(workdir, changed, {}, old, 12, (0.1, 0.1)) is None
    assert read_config(workdir) == changed
    (line,) = _changes(workdir)
    assert line["step"] == 12
    assert line["changed"] == {key: [flatten(config)[key], value] for key, value in how.items()}
    assert json.loads((workdir / "data.json").read_text()) == whole.data
    old = resuming.check(workdir, changed)
    resuming.claim(workdir, changed, {}, old, 12, (0.1, 0.1))
    assert len(_changes(workdir)) == 1, "the same once more is no change"


def test_other_data_under_the_same_config_is_refused(config: Config, whole: Run, tmp_path: Path) -> None:
    resuming.check_data(whole.workdir, config, whole.data["fingerprint"])
    with pytest.raises(UserError, match="other data than 'files' holds now"):
        resuming.check_data(whole.workdir, config, "0123")
    resuming.check_data(tmp_path, config, "0123")  # there is no run


def test_a_fingerprint_of_an_older_form_is_not_compared_and_says_so(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resuming.claim(tmp_path, config, {"fingerprint": "0123"}, None, 0, (0.1, 0.1))
    resuming.check_data(tmp_path, config, "2:4567")
    assert "whether 'files' changed since" in capsys.readouterr().err
    resuming.check_data(tmp_path, config, "0123")
    assert capsys.readouterr().err == ""


def test_batches_of_an_earlier_version_are_named_where_they_differ(config: Config, tmp_path: Path) -> None:
    """It padded both sides of a pair to one width, and wrote it once."""
    resuming.claim(tmp_path, config, {"shapes": [[16, 8], [8, 16]]}, None, 0, (0.1, 0.1))
    alike = {"shapes": [(8, 16, 16), (16, 8, 8)]}
    assert resuming.claim(tmp_path, config, alike, config, 5, (0.1, 0.1)) is None
    narrower = {"shapes": [(8, 16, 8), (16, 8, 8)]}
    said = resuming.claim(tmp_path, config, narrower, config, 5, (0.1, 0.1))
    assert said is not None
    assert "from step 5 on they come in another order" in said


def test_a_run_that_was_moved_goes_on(
    config: Config, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other folders of the run, the data and the cache: the same numbers. One letter more in them is refused."""
    first = Run(override(config, {"steps": 6}), tmp_path / "first", monkeypatch)
    shutil.move(first.workdir, tmp_path / "run")
    data = Path(shutil.copytree(config.data.dir, tmp_path / "data", ignore=shutil.ignore_patterns("cache")))
    moved = override(config, {"data.dir": str(data), "data.cache": str(tmp_path / "cache")})
    second = Run(moved, tmp_path / "run", monkeypatch)
    for left, right in zip(whole.state(), second.state(), strict=True):
        np.testing.assert_array_equal(left, right)
    lines = (data / "test.de").read_text().splitlines()
    (data / "test.de").write_text("\n".join([*lines[:-1], lines[-1] + "a"]) + "\n")
    with pytest.raises(UserError, match="other data than 'files' holds now"):
        verb.train(moved, tmp_path / "run", quiet=True)


def test_paths_of_files_are_not_compared_but_what_they_hold(config: Config, whole: Run, tmp_path: Path) -> None:
    workdir = _copied(whole, tmp_path / "run")
    pair = override(config, {"data.dir": "", "data.source": "a.en", "data.target": "a.de", "data.tokenizer": "t.json"})
    (workdir / "config.json").write_text(json.dumps(to_dict(pair)))
    moved = {"data.source": "/b/a.en", "data.target": "/b/a.de"}
    assert resuming.check(workdir, override(pair, moved)) == pair
    ready = tmp_path / "ready.json"
    with pytest.raises(UserError, match=r"data\.tokenizer was 't\.json'"):
        resuming.check(workdir, override(pair, {"data.tokenizer": str(ready)}))
    shutil.copy(workdir / "tokenizer.json", ready)
    assert resuming.check(workdir, override(pair, {"data.tokenizer": str(ready)})) == pair
    with pytest.raises(UserError, match=r"data\.source was 'a\.en' and is now ''"):
        resuming.check(workdir, override(pair, {"data.source": ""}))
    with pytest.raises(UserError, match=r"data\.tokenizer was 't\.json' and is now 'bpe'"):
        resuming.check(workdir, override(pair, {"data.tokenizer": "bpe"}))


def _tokenizer(text: str) -> Tokenizer:
    return Tokenizer.train([text], 280)


def _never() -> Tokenizer:
    raise AssertionError("it is not trained again")


@pytest.mark.parametrize("given", ["ready.json", "folder"])
def test_the_tokenizer_is_the_runs_own_and_checked(config: Config, whole: Run, tmp_path: Path, given: str) -> None:
    workdir, named_path = _copied(whole, tmp_path / "run"), tmp_path / given
    ready = named_path if given == "ready.json" else named_path / "tokenizer.json"
    own = resuming.tokenizer_of(workdir, config, _never)
    assert own.fingerprint == whole.data["tokenizer"]
    # A file or a folder that data.tokenizer names: as it was, gone, changed.
    named = override(config, {"data.tokenizer": str(named_path)})
    own.save(ready)
    assert resuming.tokenizer_of(workdir, named, _never).fingerprint == own.fingerprint
    named_path.rename(tmp_path / "elsewhere")
    assert resuming.tokenizer_of(workdir, named, _never).fingerprint == own.fingerprint
    _tokenizer("other").save(ready)
    with pytest.raises(
        UserError, match=rf"data\.tokenizer={named_path} holds another tokenizer than .*tokenizer\.json"
    ):
        resuming.tokenizer_of(workdir, named, _never)
    # The run's own: lost and trained again, lost and not to be had again, exchanged.
    (workdir / "tokenizer.json").unlink()
    assert resuming.tokenizer_of(workdir, config, lambda: own) is own
    with pytest.raises(UserError, match="another tokenizer than 'its data' gives now"):
        resuming.tokenizer_of(workdir, config, lambda: _tokenizer("other"))
    _tokenizer("other").save(workdir / "tokenizer.json")
    with pytest.raises(UserError, match=r"trained with another tokenizer than .*tokenizer\.json' gives now"):
        verb.train(config, workdir, quiet=True)
    # No run is there yet: what lies about is no tokenizer of it.
    (workdir / "config.json").unlink()
    assert resuming.tokenizer_of(workdir, config, lambda: own) is own


def test_a_rate_is_changed_on_purpose_and_recorded(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Run(override(config, {"steps": 6}), tmp_path / "run", monkeypatch)
    lower = override(config, {"optimizer.learning_rate": 1e-3, "optimizer.clip_norm": 0.5})
    sentence = (
        r"optimizer\.learning_rate was 0\.01 and is now 0\.001; optimizer\.clip_norm was 1\.0 and is now 0\.5\): "
        r".* or add --change=optimizer\.learning_rate,optimizer\.clip_norm to change it on purpose"
    )
    for change in ([], ["optimizer.learning_rate"]):
        with pytest.raises(UserError, match=sentence):
            verb.train(lower, tmp_path / "run", change=change)
    assert read_config(tmp_path / "run") == override(config, {"steps": 6})
    capsys.readouterr()
    verb.train(lower, tmp_path / "run", change=["optimizer.learning_rate", "optimizer.clip_norm"])
    before, after = (peak * (5 / 6) ** 0.5 for peak in (1e-2, 1e-3))
    said = f"the learning rate at step 6 goes down from {before:.4g} to {after:.4g}"
    told = capsys.readouterr().err
    assert "optimizer.learning_rate was 0.01 and is now 0.001; optimizer.clip_norm was 1.0 and is now 0.5: " in told
    assert said in told
    assert told.index(said) < told.index("first step after")
    (line,) = _changes(tmp_path / "run")
    assert line["step"] == 6
    assert line["learning_rate"] == pytest.approx([before, after])
    assert line["changed"]["optimizer.learning_rate"] == [0.01, 0.001]
    assert line["changed"]["steps"] == [6, 12]
    lines = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["learning_rate"] for line in lines if "learning_rate" in line}
    assert rates[6] == pytest.approx(before)
    assert rates[9] == pytest.approx(1e-3 * (5 / 9) ** 0.5)
    assert read_config(tmp_path / "run") == lower, "so the next time needs no --change"
    assert resuming.check(tmp_path / "run", lower) == lower


def test_another_beginning_cannot_be_given_but_a_moved_one_named(config: Config, whole: Run, tmp_path: Path) -> None:
    begun = override(config, {"init_from": "there"})
    with pytest.raises(UserError, match=r"init_from was '' and is now 'there'.: choose another --workdir$"):
        resuming.check(whole.workdir, begun, ["init_from"])
    (tmp_path / "config.json").write_text(json.dumps(to_dict(begun)))
    moved = override(config, {"init_from": "elsewhere"})
    with pytest.raises(UserError, match="or add --change=init_from"):
        resuming.check(tmp_path, moved)
    assert resuming.check(tmp_path, moved, ["init_from"]) == begun


@pytest.mark.parametrize("key", ["optimizer.clip_norm", "optimizer.weight_decay", "optimizer.max_spike"])
def test_what_is_another_state_cannot_change(config: Config, whole: Run, key: str) -> None:
    """Zero leaves out a part of the optimizer: the shapes are compared here, too."""
    value = 0.0 if flatten(config)[key] else 1.0
    shapes = [
        jax.tree.structure(jax.eval_shape(make_optimizer(each, AXES).init, {"kernel": jnp.zeros((2, 2))}))
        for each in (config, override(config, {key: value}), override(config, {key: 0.5}))
    ]
    assert shapes[0] != shapes[1]
    assert shapes[2] in shapes[:2]
    with pytest.raises(UserError, match=f"another config .{key} was .*: choose another --workdir$"):
        resuming.check(whole.workdir, override(config, {key: value}), [key])


def test_what_can_change_leaves_the_state_as_it_is(config: Config) -> None:
    def structure(changes: dict[str, Any]) -> Any:
        made = make_optimizer(override(config, changes), AXES)
        return jax.tree.structure(jax.eval_shape(made.init, {"kernel": jnp.zeros((2, 2))}))

    for key in {*resuming.CHANGEABLE} - {*resuming.NEVER_EMPTY}:
        old = flatten(config)[key]
        assert structure({key: "cosine" if isinstance(old, str) else type(old)(old / 2 or 0.5)}) == structure({})


def test_a_longer_cosine_says_what_happens_to_the_rate(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Warm-up over 2 of 6 steps, and down to a tenth at step 6; of 12 steps that is 4 of the cosine's 10."""
    short = override(config, {"steps": 6, "optimizer.schedule": "cosine", "optimizer.warmup_steps": 2})
    Run(short, tmp_path / "run", monkeypatch)
    capsys.readouterr()
    long = override(short, {"steps": 12})
    verb.train(long, tmp_path / "run")
    after = 1e-2 * (0.1 + 0.9 * (1 + np.cos(0.4 * np.pi)) / 2)
    said = f"steps was 6 and is now 12: the learning rate at step 6 goes up from 0.001 to {after:.4g}"
    told = capsys.readouterr().err
    assert said in told
    assert told.index(said) < told.index("first step after")
    (line,) = _changes(tmp_path / "run")
    assert line == {"step": 6, "changed": {"steps": [6, 12]}, "learning_rate": pytest.approx([1e-3, after])}


def test_fewer_steps_than_were_done_change_nothing(config: Config, whole: Run, tmp_path: Path) -> None:
    workdir = _copied(whole, tmp_path / "run")
    with pytest.raises(UserError, match="is at step 12 already, past steps=9"):
        verb.train(override(config, {"steps": 9}), workdir, quiet=True)
    assert read_config(workdir) == config
    assert not _changes(workdir)


def test_rows_that_do_not_divide_are_told_before_anything_is_made(config: Config, tmp_path: Path) -> None:
    """Of training, and of evaluation, whose batches are those of its own lengths."""
    with pytest.raises(UserError, match=r"batch of 8 rows of length 16 .* 8 devices and 2 micro-batches"):
        verb.train(override(config, {"mesh.accumulate": 2}), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    # Training has rows of 32 only, 8 of them; the texts of validation fit into 24, of which there are 12.
    for split, length in (("train", 27), ("validation", 20), ("test", 20)):
        lines = ["".join(random.Random(seed).choices("abcdef", k=length)) for seed in range(12)]
        for language in ("en", "de"):
            (tmp_path / f"{split}.{language}").write_text("".join(f"{line}\n" for line in lines))
    data = {"data.dir": str(tmp_path), "data.buckets": (24, 32), "data.batch_tokens": 288, "data.row_multiple": 4}
    with pytest.raises(UserError, match=r"batch of 12 rows of length 24 .* fsdp = 8 devices: .* a multiple of 8,"):
        verb.train(override(config, data | {"data.tokenizer": "characters"}), tmp_path / "run", quiet=True)


@pytest.mark.slow
def test_resumed_on_another_mesh(config: Config, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half on 8 devices and half on 2: the same batches and masks, and the same numbers but for rounding."""
    Run(override(config, {"steps": 6}), tmp_path / "run", monkeypatch)
    second = Run(override(config, {"mesh.data": 2, "logging.keep": 1}), tmp_path / "run", monkeypatch)
    assert sorted(second.steps) == list(range(6, 12))
    assert second.metrics == pytest.approx(whole.metrics, rel=1e-4)


def test_a_finished_run_is_left_as_it_is(
    config: Config, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command once more trains nothing, and says each thing once."""
    before, lines = whole.state(), whole.lines()
    again = Run(config, whole.workdir, monkeypatch)
    assert again.steps == []
    assert again.metrics == whole.metrics
    assert all(np.array_equal(a, b) for a, b in zip(before, again.state(), strict=True))
    assert again.lines() == lines


def test_a_loss_that_is_no_number_is_one_sentence(config: Config, tmp_path: Path) -> None:
    wild = {"optimizer.learning_rate": 1e38, "optimizer.warmup_steps": 1, "optimizer.clip_norm": 0.0, "mesh.data": 1}
    broken = override(config, wild)
    sentence = (
        r"no finite number for 5 steps in a row, from step \d+ to step \d+ with examples .*: lower "
        r"optimizer\.learning_rate, with --change=optimizer\.learning_rate, to begin again; or train a new run"
    )
    with pytest.raises(UserError, match=sentence) as raised:
        verb.train(broken, tmp_path, quiet=True)
    assert isinstance(raised.value.__cause__, Diverged)
    (dump,) = tmp_path.glob("skipped_batch_*.npz")
    assert set(np.load(dump)) >= {"inputs", "targets", "example_ids"}


def test_an_evaluation_that_fails_loses_nothing(
    config: Config, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end and in the middle; with keep=1 and a best one. The run then goes on to the same numbers."""
    often = override(config, {"logging.evaluate_every": 6, "logging.checkpoint_every": 6, "logging.keep": 1})
    for at in (6, 12):

        def broken(step: Any, params: Any, batches: Any) -> Any:
            raise MemoryError("while it is evaluated")

        with monkeypatch.context() as patch:
            patch.setattr(step_module, "total", broken)
            with pytest.raises(MemoryError):
                verb.train(often, tmp_path / "run", quiet=True)
        checkpoints = Checkpoints(tmp_path / "run")
        assert checkpoints.latest == at
        assert at not in checkpoints.losses
        checkpoints.close()
        if at == 6:
            with monkeypatch.context() as patch:  # it evaluates what was missing first
                patch.setattr(PairBatches, "batch", _interrupt_at(8))
                with pytest.raises(KeyboardInterrupt):
                    verb.train(often, tmp_path / "run", quiet=True)
    run = Run(often, tmp_path / "run", monkeypatch)
    assert run.metrics == whole.metrics
    for left, right in zip(whole.state(), run.state(), strict=True):
        np.testing.assert_array_equal(left, right)
    assert [line["step"] for line in run.lines() if "validation_loss" in line] == [6, 12]
    assert set(Checkpoints(tmp_path / "run").losses) <= {6, 12}


def test_nothing_to_validate_on_is_told_before_the_first_step(config: Config, tmp_path: Path) -> None:
    data = Path(shutil.copytree(config.data.dir, tmp_path / "data", ignore=shutil.ignore_patterns("cache")))
    for language in ("en", "de"):
        (data / f"validation.{language}").write_text("abc def abc def abc def abc def abc def abc def\n")
    moved = override(config, {"data.dir": str(data), "data.cache": str(tmp_path / "cache"), "data.tokenizer": "bytes"})
    with pytest.raises(UserError, match=r"validation part of 'files' holds no example that fits into data\.max_len=32"):
        verb.train(moved, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


# --- Checkpoints


def _state(value: float) -> dict[str, Any]:
    kernel = jnp.full((3, 2), value, jnp.float32) / 3
    return {"step": jnp.int32(value), "params": {"kernel": kernel}, "moments": {"kernel": -kernel}}


@pytest.fixture
def three(tmp_path: Path) -> Checkpoints:
    checkpoints = Checkpoints(tmp_path, keep=3, owner=True)
    for step in (1, 2, 4, 8):
        checkpoints.save(step, _state(step * 1.1), {"steps": 8})
    checkpoints.finish()
    return checkpoints


def _like() -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_here()), _state(0.0))


def test_checkpoints_restore_what_was_saved_and_keep_the_newest(three: Checkpoints) -> None:
    assert three.latest == 8
    assert three.steps == [2, 4, 8]
    for step in (2, 4, 8):
        jax.tree.map(np.testing.assert_array_equal, three.restore(_like(), step), _state(step * 1.1))
    jax.tree.map(np.testing.assert_array_equal, three.restore(_like()), _state(8 * 1.1))
    three.close()


def test_the_average_is_the_float64_mean(three: Checkpoints) -> None:
    like = _like()["params"]
    found = three.average_params(like, 3)
    each = [np.asarray(_state(step * 1.1)["params"]["kernel"], np.float64) for step in (2, 4, 8)]
    assert found["kernel"].dtype == np.float32
    assert found["kernel"].sharding == _here()
    np.testing.assert_array_equal(found["kernel"], np.mean(each, axis=0).astype(np.float32))
    assert three.restored == 8
    jax.tree.map(np.testing.assert_array_equal, three.average_params(like, 1), _state(8 * 1.1)["params"])
    three.close()


def test_too_few_checkpoints_is_a_sentence(three: Checkpoints, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds 3 checkpoints, not 4: average fewer"):
        three.average_params(_like()["params"], 4)
    three.close()
    empty = Checkpoints(tmp_path / "empty")
    with pytest.raises(UserError, match="holds no checkpoint: train there first"):
        empty.restore(_like())
    empty.close()


# --- metrics.jsonl


def test_the_writer_drops_what_the_checkpoint_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 5, "loss": 1.0}\n{"step": 10, "loss": 0.5}\n{"step": 15, "loss": 0.4}\n[1]\n{"step": 2')
    writer = Writer(tmp_path, 10, 20, quiet=True)
    writer.write(15, loss=0.123456789123, tokens_per_second=3.0)
    writer.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 15]
    assert lines[-1]["loss"] == 0.12345679


def _write(workdir: Path, at: int, steps: int, *lines: tuple[int, str, float], again: bool = False) -> None:
    writer = Writer(workdir, at, steps, quiet=True, again=again)
    for step, name, value in lines:
        writer.write(step, **{name: value})
    writer.close()


def test_crc32c_of_the_test_is_the_standards() -> None:
    unmasked = 0xE3069283  # of RFC 3720's polynomial, for "123456789"
    assert crc32c(b"123456789") == ((unmasked >> 15 | unmasked << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_tensorboard_has_each_point_once(tmp_path: Path) -> None:
    """Killed after step 15 with the checkpoint of step 10, half a record behind; resumed; finished; evaluated again."""
    _write(tmp_path, 0, 20, (5, "loss", 3.0), (10, "loss", 2.0), (10, "validation_loss", 2.5), (15, "loss", 99.0))
    (path,) = tmp_path.glob("*tfevents*")
    path.write_bytes(path.read_bytes() + b"\x40\0\0")
    _write(tmp_path, 10, 20, (15, "loss", 1.5), (20, "loss", 1.0), (20, "validation_loss", 1.25))
    _write(tmp_path, 20, 20, (20, "validation_loss", 1.25), again=True)
    assert points(tmp_path) == [
        ("training/loss", 5, 3.0),
        ("training/loss", 10, 2.0),
        ("validation/loss", 10, 2.5),
        ("training/loss", 15, 1.5),
        ("training/loss", 20, 1.0),
        ("validation/loss", 20, 1.25),
    ]


def test_a_full_disk_loses_lines_and_spoils_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A limit on the size of files stands for the disk: there is room for half a line."""
    writer = Writer(tmp_path, 0, 20)
    writer.write(5, loss=1.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "metrics.jsonl").stat().st_size + 9, hard))
        writer.write(10, loss=0.5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert "step 10/20  its metrics could not be written to" in capsys.readouterr().err
    writer.write(15, loss=0.25)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5, 15]
    assert [step for _, step, _ in points(tmp_path)] == [5, 15]


def _interrupted(path: Path, *_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("half", ["replace", "write_bytes"])
def test_a_kill_while_the_files_are_rewritten_loses_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: str
) -> None:
    """Before and in the middle of the rename."""
    _write(tmp_path, 0, 20, (5, "loss", 3.0), (10, "loss", 2.0))
    lines, events = (tmp_path / "metrics.jsonl").read_bytes(), points(tmp_path)
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(Path, half, _interrupted)
            with pytest.raises(KeyboardInterrupt):
                Writer(tmp_path, 10, 20, quiet=True)
        assert (tmp_path / "metrics.jsonl").read_bytes() == lines
        assert points(tmp_path) == events
    _write(tmp_path, 10, 20, (15, "loss", 1.0))
    assert [step for _, step, _ in points(tmp_path)] == [5, 10, 15]
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(lines)


def test_metrics_that_cannot_be_rewritten_are_a_sentence_and_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path, 0, 20, (5, "loss", 3.0))
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def full(path: Path, *_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot write metrics to .*: No space left on device"):
        Writer(tmp_path, 5, 20, quiet=True)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_bytes_that_are_no_text_cost_one_line_only(tmp_path: Path) -> None:
    _write(tmp_path, 0, 20, (5, "loss", 3.0), (10, "loss", 2.0))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b"3.0", b"3\xff0"))
    _write(tmp_path, 10, 20, (15, "loss", 1.0))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 15]


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    Writer(tmp_path, 0, 20, quiet=True, first=False).write(5, loss=1.0)
    assert list(tmp_path.iterdir()) == []


def test_plain_lines_where_there_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = Writer(tmp_path, 0, 20)
    writer.progress(1)
    writer.progress(5, {"loss": 1.25, "tokens_per_second": 4000.0, "skipped": 0})
    writer.close()
    said = capsys.readouterr().err
    assert "step 5/20  loss 1.2500, 4,000 tokens/s" in said
    assert "step 1/20" not in said
    assert "\r" not in said


def test_config_is_frozen(config: Config) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.steps = 3  # type: ignore[misc]
