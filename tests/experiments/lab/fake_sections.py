"""How do sections end?

Hypothesis: each in its own way.

Source: made up, with known answers.
"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.lab.render import Block, Table

HERE = Path(__file__).parent
MOST_SECONDS = {"good": 100.0, "raises": 100.0, "hangs": 100.0, "dies": 100.0, "late": 100.0}
if (HERE / "seconds").exists():  # of the one that hangs
    MOST_SECONDS["hangs"] = float((HERE / "seconds").read_text())


def missing() -> list[str]:
    return ["a thing that nothing needs."]


def cases() -> dict[str, dict[str, Any]]:
    return {section: {"section": section} for section in MOST_SECONDS}


def measure_case(section: str, folder: Path) -> Iterator[dict[str, Any]]:
    with (HERE / "begun").open("a") as file:
        file.write(f"{section}\n")
    yield {"section": section, "number": 1}
    if (HERE / "mended").exists():
        return
    if section == "raises":
        yield {"section": section, "number": 2}
        raise ArithmeticError("one and one is three")
    if section == "hangs":
        time.sleep(1000)
    if section == "dies":
        (folder / "own.txt").touch()
        os.kill(os.getpid(), signal.SIGSEGV)


def findings(rows: list[dict[str, Any]], folder: Path) -> tuple[list[str], list[Block]]:
    body = [[row["section"], str(row["number"])] for row in rows]
    return [f"There are {len(rows)} rows."], [Table(["section", "number"], body)]
