"""The tables of scaling.md: each of its commands can be carried out, and a row says what the program does."""

import dataclasses
import math
from collections import Counter

import pytest

from experiments.lab.card import compiled
from transformer.accelerators import compiling, topologies
from transformer.accelerators.compiling import Memory, Step
from transformer.accelerators.program import Program
from transformer.accelerators.topologies import Topology
from transformer.describe import shapes
from transformer.errors import UserError
from transformer.tasks.untrained import longest, task_of
from transformer.training import sharding
from transformer.training.flops import step_flops

CASES = [(name, case) for name, group in compiled.GROUPS.items() for case in group.cases]
TINY = (
    "model.num_layers=2", "model.d_model=32", "model.d_ff=64", "model.num_heads=2", "model.vocab_size=97",
    "model.max_positions=64", "data.max_len=64", "data.buckets=(64,)", "data.batch_tokens=512",
)  # fmt: skip


@pytest.mark.parametrize(("name", "case"), CASES, ids=lambda part: part if isinstance(part, str) else "-".join(part))
def test_a_command_fits_its_machine(name: str, case: compiled.Case) -> None:
    """Its keys are known, its mesh takes all devices, and its rows divide."""
    config = compiled.config_of(case, compiled.GROUPS[name].settings)
    task, devices = task_of(config), math.prod(topologies.parse(case.topology)[1])
    layout = sharding.make_layout(dataclasses.replace(config, model=task.model_config), devices, task.axes)
    assert layout.mesh.size == devices
    length, rows = longest(config, task)
    sharding.check_rows(layout, [(rows, length)], config.mesh.accumulate)
    if name.startswith("window"):
        assert (rows, length) == (4, 1024 * int(name[len("window_") : -1]))


def test_a_row_says_what_the_program_does() -> None:
    """A step of two layers on four simulated devices, as if they were TPUs."""
    case = compiled.Case("gpt2_124m", "v5e:2x2", "data=2,fsdp=2")
    config = compiled.config_of(case, (*TINY, "model.scan_layers=True"))
    task = task_of(config)
    (length, rows), layout = longest(config, task), sharding.make_layout(config, axes=task.axes)
    text = compiling.lower(config, task, layout, rows, length).compile().as_text()
    memory = Memory(held=1_230_000_000, work=4_560_000_000, available=16e9)
    step = Step(config, Topology(case.topology, "v5e", ()), layout, rows, length, text, memory, 1.0)
    told = dict(zip(compiled.HEADER, compiled.row(case, step), strict=True))
    assert [told[name] for name in ("config", "topology", "mesh")] == ["gpt2_124m", "`v5e:2x2`", "`data=2,fsdp=2`"]
    assert told["rows of a device at a time"] == "2 of 64"
    assert (told["GB held"], told["GB of work"]) == ("1.23", "4.56")
    assert (told["kernels of attention"], told["branches"]) == ("none", "none")
    assert "2" in told["loops"].split(", ")  # the layers
    sent = step.program.collectives
    assert told["collectives (beside computing)"] == f"{sum(one.times for one in sent)} (0)"  # a CPU waits for all
    assert told["GB sent (beside computing)"] == "0.00 (0.00)"
    assert told["ms at least"] == f"{step.bound.seconds * 1000:.1f}"
    share = step_flops(config, shapes(config), rows, length) / (step.bound.seconds * 4 * 197e12)
    assert told["MFU at most"] == f"{share:.1%}"


def test_calls_of_kernels_are_added_up_by_who_wrote_them() -> None:
    calls = {"__cudnn$fmhaSoftmax": 12, "__cudnn$fmhaSoftmaxBackward": 11, "splash_mha_dq": 3, "__cublas$gemm": 99}
    assert compiled.attention(Program((), (), 0, Counter(calls), ())) == "cudnn 23, splash 3"


def test_what_cannot_be_compiled_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="named gpt2_124: there are bert_base, gpt2_124m"):
        list(compiled.tables(["gpt2_124"]))
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"is not installed: pip install '\.\[gpu\]'"):
        list(compiled.tables(["published"]))
