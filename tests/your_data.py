"""python -m tests.your_data

Runs the commands of docs/your_data.md in turn, from the root of the project, and writes what they print below each.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.own_data import make

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "your_data.md"
BLOCK = re.compile(r"```\n\$ (?P<command>(?:.*\\\n)*.*)\n(?P<printed>(?:.*\n)*?)```\n")


class Command(NamedTuple):
    """A command of the page."""

    given: str  # to standard input
    arguments: list[str]  # python -m transformer.VERB and its flags
    printed: str


def commands_of(page: str) -> dict[str, list[Command]]:
    """The commands under each title of the page, in order."""
    sections = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    return {section.partition("\n")[0]: list(_commands(section)) for section in sections}


def _commands(section: str) -> Iterator[Command]:
    for match in BLOCK.finditer(section):
        echo, bar, command = match["command"].rpartition(" | ")
        given = shlex.split(echo)[1] + "\n" if bar else ""
        yield Command(given, shlex.split(command.replace("\\\n", " ")), match["printed"])


def _run(match: "re.Match[str]") -> str:
    command = match["command"].replace("python -m", f"{sys.executable} -m")
    environment = os.environ | {"COLUMNS": "110", "JAX_PLATFORMS": "cpu"}
    ended = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, env=environment)
    printed = ended.stderr + ended.stdout
    print(match["command"], printed, sep="\n", flush=True)
    assert ended.returncode == 0
    return f"```\n$ {match['command']}\n{printed.rstrip()}\n```\n"


if __name__ == "__main__":
    make(ROOT / "runs" / "own")
    PAGE.write_text(BLOCK.sub(_run, PAGE.read_text()))
