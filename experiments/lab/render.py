"""A report as a list of blocks, written as Markdown and as one self-contained HTML page.

Text may hold `code` in backquotes; all else is taken literally.
"""

import base64
import dataclasses
import html
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Heading:
    text: str


@dataclasses.dataclass(frozen=True)
class Paragraph:
    text: str
    kind: str = ""  # "answer", "warning" or ""


@dataclasses.dataclass(frozen=True)
class Bullets:
    items: Sequence[str]
    kind: str = ""


@dataclasses.dataclass(frozen=True)
class Spark:
    """A cell that shows the shape of a curve: finite values at even distances."""

    values: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells; the first column names the row, the others are set as figures (or as text). A page sorts it by
    the column whose header is pressed, if it has one. `marks`: text of a cell -> the colour of a dot before it."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Spark]]
    caption: str = ""
    text: bool = False
    marks: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Picture:
    """figures/<stem>.svg and .png."""

    stem: str
    alt: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Details:
    """Blocks that a page shows on demand, and on paper."""

    summary: str
    blocks: Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Choice:
    """Blocks of which a page shows those of one button, at first the first: label of the button -> blocks."""

    label: str
    options: Mapping[str, Sequence[Any]]


Block = Heading | Paragraph | Bullets | Table | Picture | Details | Choice

STYLE, SCRIPT = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """The report for a terminal or a code host; pictures are links to figures/*.png."""
    return "\n\n".join([f"# {title}", *(part for block in blocks for part in _markdown(block))]) + "\n"


def _markdown(block: Block) -> list[str]:
    match block:
        case Heading(text):
            return [f"## {text}"]
        case Paragraph(text, kind):
            return [f"> {_escape(text)}" if kind == "warning" else _escape(text)]
        case Bullets(items):
            return ["\n".join(f"- {_escape(item)}" for item in items)]
        case Table(header, rows, caption):
            texts = [[_escape(_bars(cell)) for cell in row] for row in (header, *rows)]
            cells = [[text.replace("|", "\\|").replace("\n", " ") for text in row] for row in texts]
            lines = ["| " + " | ".join(row) + " |" for row in cells]
            lines.insert(1, "|" + "|".join([" --- ", *[" --- " if block.text else " ---: "] * (len(header) - 1)]) + "|")
            return [*([_escape(caption)] if caption else []), "\n".join(lines)]
        case Picture(stem, alt, caption):
            return [f"![{alt}](figures/{stem}.png)", _escape(caption)]
        case Details(summary, blocks):
            return [f"## {summary}", *(part for inner in blocks for part in _markdown(inner))]
        case Choice(_, options):
            return [part for inner in next(iter(options.values())) for part in _markdown(inner)]


def page(title: str, blocks: Sequence[Block], figures: Path) -> str:
    """The report as one HTML file that needs no other; pictures are read from figures/*.svg and held inline."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{html.escape(title)}</h1>\n{_blocks(blocks, figures)}\n</main>\n<script>{SCRIPT}</script>\n"
        "</body>\n</html>\n"
    )


def _blocks(blocks: Sequence[Block], figures: Path) -> str:
    parts = []
    for pictures, group in itertools.groupby(blocks, lambda block: isinstance(block, Picture)):
        inner = "\n".join(_block(block, figures) for block in group)
        parts.append(f'<div class="figures">{inner}</div>' if pictures else inner)
    return "\n".join(parts)


def _block(block: Block, figures: Path) -> str:
    match block:
        case Heading(text):
            return f"<h2>{_html(text)}</h2>"
        case Paragraph(text, kind):
            return f"<p{_class(kind)}>{_html(text)}</p>"
        case Bullets(items, kind):
            return f"<ul{_class(kind)}>" + "".join(f"<li>{_html(item)}</li>" for item in items) + "</ul>"
        case Table():
            return _table(block)
        case Picture(stem, alt, caption):
            data = base64.b64encode((figures / f"{stem}.svg").read_bytes()).decode()
            return (
                f'<figure><img alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{data}">'
                f"<figcaption>{_html(caption)}</figcaption></figure>"
            )
        case Details(summary, inner):
            return f"<details><summary>{_html(summary)}</summary>\n{_blocks(inner, figures)}</details>"
        case Choice(label, options):
            buttons = [
                f'<button type="button" aria-pressed="{str(not i).lower()}">{_html(name)}</button>'
                for i, name in enumerate(options)
            ]
            inside = [_blocks(inner, figures) for inner in options.values()]
            parts = [f"<div{' hidden' if i else ''}>{inner}</div>" for i, inner in enumerate(inside)]
            return f'<div class="choice"><span>{_html(label)}</span>{"".join(buttons)}{"".join(parts)}</div>'


def _table(table: Table) -> str:
    # Outside of the table, which scrolls on a narrow page where the caption would be cut off.
    caption = f'<p class="caption">{_html(table.caption)}</p>\n' if table.caption else ""
    label = f' aria-label="{html.escape(table.caption)}"' if table.caption else ""
    head = "".join(f'<th scope="col">{_html(cell)}</th>' for cell in table.header)
    head = f"<thead><tr>{head}</tr></thead>" if any(table.header) else ""
    body = ""
    for first, *others in table.rows:
        cells = "".join(f"<td>{_cell(cell, table.marks)}</td>" for cell in others)
        body += f'<tr><th scope="row">{_cell(first, {})}</th>{cells}</tr>\n'
    kind = ("text " if table.text else "") + ("sortable" if any(table.header) and len(table.rows) > 1 else "")
    return (
        f'{caption}<div class="scroll" tabindex="0"><table{_class(kind.strip())}{label}>{head}'
        f"<tbody>\n{body}</tbody></table></div>"
    )


def _cell(cell: str | Spark, marks: Mapping[str, str]) -> str:
    if isinstance(cell, Spark):
        points = " ".join(f"{80 * x:.1f},{20 - 20 * y:.1f}" for x, y in _shape(cell))
        return f'<svg class="spark" viewBox="0 0 80 20" aria-hidden="true"><polyline points="{points}"/></svg>'
    return f'<span class="mark" style="--mark: {marks[cell]}">{_html(cell)}</span>' if cell in marks else _html(cell)


def _shape(spark: Spark) -> list[tuple[float, float]]:
    """Places and heights from 0 to 1."""
    low, high, last = min(spark.values), max(spark.values), max(len(spark.values) - 1, 1)
    return [(i / last, (value - low) / ((high - low) or 1.0)) for i, value in enumerate(spark.values)]


def _bars(cell: str | Spark) -> str:
    return cell if isinstance(cell, str) else "".join("▁▂▃▄▅▆▇█"[round(7 * height)] for _, height in _shape(cell))


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _html(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def _escape(text: str) -> str:
    """Markdown's own marks as plain characters, outside of `code`."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*<])", r"\\\1", part) for part in parts)
