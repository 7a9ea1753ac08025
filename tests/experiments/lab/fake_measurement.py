"""How long are words?

Hypothesis: as long as they are.

Source: made up, with known answers.
"""

from pathlib import Path
from typing import Any

from experiments.lab.render import Block, Table

MEASURED: list[str] = []  # by this process


def cases() -> dict[str, dict[str, Any]]:
    return {word: {"word": word} for word in ("one", "three", "eleven")}


def measure_case(word: str) -> list[dict[str, Any]]:
    if (Path(__file__).parent / "stop").exists() and word == "eleven":
        raise KeyboardInterrupt
    MEASURED.append(word)
    return [{"word": word, "length": len(word)}]


def findings(rows: list[dict[str, Any]], folder: Path) -> tuple[list[str], list[Block]]:
    answer = [f"The longest word has {max(row['length'] for row in rows)} letters."]
    return answer, [Table(["word", "letters"], [[row["word"], str(row["length"])] for row in rows])]
