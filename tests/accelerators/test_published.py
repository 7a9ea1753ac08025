"""Training steps of the published sizes, compiled for a TPU slice and for H100s (`make accelerators`), are as recorded:
memory, bytes sent and the roofline's time within bounds; kernels, loops and branches exactly. And the records are what
is asked of the project. No accelerator runs.

After a change that is meant to change a figure, `make records` writes published.json anew."""

import copy
import re
from collections import Counter
from typing import Any

import pytest

from tests.accelerators.platforms import needs_compiler
from tests.accelerators.published import CASES, LENGTHS, Figures, figures, read_records

ABOVE = 1.03  # at most this many times the record
BELOW = 1.1  # a record of more than this many times what was found is out of date
SIZES = "gpt2_124m gpt2_xl bert_base t5_small vit_b16 paper_base paper_big llama".split()


def amounts(found: Figures) -> dict[str, float]:
    """What should be small."""
    amounts = {f"{key} bytes": found[key] for key in ("held", "work")}
    amounts |= {f"bytes sent by {kind}": sent for kind, sent in found["sent"].items()}
    amounts |= {"milliseconds by the roofline": found["milliseconds"]}
    amounts |= {f"scores over the band's, {name}": share for name, share in found.get("scores", {}).items()}
    return amounts | ({"inverse of MFU": 1 / found["mfu"]} if found["mfu"] else {})


def differences(record: Figures, found: Figures) -> list[str]:
    """What is not as recorded, a sentence each."""
    said = []
    before, now = amounts(record), amounts(found)
    for name in sorted(before.keys() | now.keys()):
        if name not in before or name not in now:
            said.append(f"{name}: {now.get(name, 'none')}, and the record says {before.get(name, 'none')}")
        elif now[name] > ABOVE * before[name]:
            said.append(f"{name}: {now[name]:,.6g}, more than the record's {before[name]:,.6g} by over {ABOVE - 1:.0%}")
        elif before[name] > BELOW * now[name]:
            said.append(f"{name}: {now[name]:,.6g} of the record's {before[name]:,.6g}: better, so record it")
    return said + [
        f"{name}: {found[name]}, and the record says {record[name]}"
        for name in ("kernels", "loops", "branches")
        if record[name] != found[name]
    ]


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs_compiler(CASES[name].platform)) for name in CASES])
def test_a_step_is_as_recorded(name: str) -> None:
    record, found = read_records()[name], figures(CASES[name])
    said = differences(record, found)
    made_by = f"recorded with {record['compiler']}, compiled with {found['compiler']}"
    assert not said, "\n".join([f"{name}, {made_by}:", *said, "`make records` writes the records anew"])


# --- The records, which need no compiler


def test_every_published_size_is_recorded_on_both_platforms() -> None:
    assert {(case.config, case.platform) for case in CASES.values() if not case.title} == {
        (size, platform) for size in SIZES for platform in ("tpu", "gpu")
    }
    assert read_records().keys() == CASES.keys()


def passes(record: Figures) -> tuple[int, int]:
    """Calls of attention's kernels, forward and backward: cuDNN's, or splash's, which goes backward in two kernels."""
    of_pass = (r"fmha\w*Softmax$|splash_mha_fwd", r"fmha\w*Backward$|splash_mha_dkv")
    forward, backward = (
        sum(calls for name, calls in record["kernels"].items() if re.search(names, name)) for names in of_pass
    )
    return forward, backward


@pytest.mark.parametrize("name", ["gpt2_124m on h100:1x1x1", "gpt2_124m on h100:1x1x8", "gpt2_124m on v5e:4x4"])
def test_gpt2_calls_a_kernel_in_each_layer_and_works_in_little_memory(name: str) -> None:
    """32 rows at a time on a device. Loops are those over layers, micro-batches and slices of the loss."""
    case, record = CASES[name], read_records()[name]
    config = case.full_config
    layers, parts = config.model.num_layers, config.mesh.accumulate
    devices = {"h100:1x1x1": 1, "h100:1x1x8": 8, "v5e:4x4": 16}[case.topology]
    assert config.data.batch_tokens == 32 * 1024 * devices * parts
    assert passes(record) == (layers * parts, layers * parts)
    assert record["work"] <= 20e9
    assert record["branches"] == 0
    others = Counter(record["loops"]) - Counter({f"{parts} x {layers}": 2, f"1 x {parts}": int(parts > 1)})
    assert case.platform == "tpu" or record["mfu"] >= 0.6
    assert sum(others.values()) <= 1, f"loops besides those over layers, micro-batches and the loss: {others}"


def test_gpt2_xl_fits_a_chip_of_16_gb() -> None:
    record = read_records()["gpt2_xl on v5e:16x16"]
    assert record["held"] + record["work"] <= 16e9
    assert passes(record) == (48, 48)  # layers are computed again in the backward pass, but attention is not


@pytest.mark.parametrize("topology", ["v6e:1x1", "h100:1x1x1"])
def test_a_window_of_128_takes_memory_by_the_length_and_little_more_than_its_band(topology: str) -> None:
    short, long = (read_records()[f"gpt2_124m, window 128 at {length:,} on {topology}"] for length in LENGTHS)
    assert long["work"] <= LENGTHS[1] / LENGTHS[0] * short["work"]
    assert len(long["scores"]) >= 2  # forward and backward
    assert max(long["scores"].values()) <= 2.5
    assert long["branches"] == 0


# --- What is compared

SOME: Figures = {
    "held": 1000,
    "work": 7000,
    "sent": {"all-reduce": 300},
    "milliseconds": 20.0,
    "mfu": 0.5,
    "kernels": {"splash": 12},
    "loops": ["1 x 12"],
    "branches": 0,
}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("work", 7209, ""),
        ("work", 7211, "work bytes: 7,211, more than the record's 7,000 by over 3%"),
        ("work", 6370, ""),
        ("work", 6360, "better, so record it"),
        ("held", 1031, "held bytes"),
        ("sent", {"all-reduce": 310}, "bytes sent by all-reduce"),
        ("sent", {"all-reduce": 300, "all-gather": 5}, "bytes sent by all-gather: 5, and the record says none"),
        ("sent", {}, "bytes sent by all-reduce: none, and the record says 300"),
        ("milliseconds", 21.0, "milliseconds by the roofline"),
        ("mfu", 0.48, "inverse of MFU"),
        ("mfu", 0.56, "inverse of MFU"),
        ("mfu", None, "inverse of MFU"),
        ("kernels", {"splash": 11}, "kernels: {'splash': 11}, and the record says {'splash': 12}"),
        ("loops", ["1 x 12", "1 x 4"], "loops"),
        ("branches", 1, "branches"),
    ],
)
def test_what_is_not_as_recorded_is_said(key: str, value: Any, said: str) -> None:
    found = copy.deepcopy(SOME) | {key: value}
    assert differences(SOME, SOME) == []
    assert [said in sentence for sentence in differences(SOME, found)] == ([True] if said else [])
