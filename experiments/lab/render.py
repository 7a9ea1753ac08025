"""A report as a list of blocks, written as Markdown and as one self-contained HTML page.

Text may hold `code` in backquotes; all else is taken literally.
"""

import base64
import dataclasses
import html
import re
from collections.abc import Sequence
from pathlib import Path


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
class Table:
    """Rows of text; the first column names the row, the others are set as figures (or as text)."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    text: bool = False


@dataclasses.dataclass(frozen=True)
class Picture:
    """figures/<stem>.svg and .png."""

    stem: str
    alt: str
    caption: str


Block = Heading | Paragraph | Bullets | Table | Picture

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --page: #ffffff; --card: #f6f8fa; --line: #d0d7de;
  --accent: #0058a3; --warn: #fff4d6; --warn-line: #b7791f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa5b1; --page: #101418; --card: #1a2027;
  --line: #38424d; --accent: #6cb6ff; --warn: #33290f; --warn-line: #d9a441; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 66rem; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", "Liberation Sans", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1rem; text-wrap: balance; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; padding-bottom: .2rem; border-bottom: 1px solid var(--line); }
p, ul { max-width: 46rem; margin: .6rem 0; }
li { margin: .3rem 0; }
code { font: .9em ui-monospace, "DejaVu Sans Mono", Menlo, monospace; background: var(--card); padding: .1em .3em;
  border-radius: 3px; overflow-wrap: anywhere; }
.answer { background: var(--card); border-left: 4px solid var(--accent); padding: .7rem 1rem; max-width: none; }
ul.answer, ul.warning { padding-left: 2rem; }
.warning { background: var(--warn); border-left: 4px solid var(--warn-line); padding: .6rem 1rem; max-width: none; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .92rem; }
.caption { color: var(--soft); font-size: .92rem; margin: 1rem 0 0; }
.caption + .scroll { margin-top: .2rem; }
th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; vertical-align: top; }
thead th { vertical-align: bottom; white-space: normal; border-bottom: 2px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
table.text td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
table.text th { text-align: left; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 29rem), 1fr)); gap: 1rem;
  margin: 1rem 0; align-items: start; }
figure { margin: 0; background: #ffffff; color: #333333; border: 1px solid var(--line); border-radius: 6px;
  padding: .6rem; }
figure img { display: block; width: 100%; height: auto; max-width: 36rem; margin: 0 auto; }
figcaption { font-size: .88rem; line-height: 1.4; padding: .4rem .3rem .1rem; }
@media (max-width: 30rem) { body { padding: 1rem .75rem 3rem; } h1 { font-size: 1.35rem; }
  th, td { padding: .3rem .55rem; } }
"""


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """The report for a terminal or a code host; pictures are links to figures/*.png."""
    parts = [f"# {title}"]
    for block in blocks:
        match block:
            case Heading(text):
                parts.append(f"## {text}")
            case Paragraph(text, kind):
                parts.append(f"> {_escape(text)}" if kind == "warning" else _escape(text))
            case Bullets(items):
                parts.append("\n".join(f"- {_escape(item)}" for item in items))
            case Table(header, rows, caption):
                cells = [[_escape(cell).replace("|", "\\|") for cell in row] for row in (header, *rows)]
                lines = ["| " + " | ".join(row) + " |" for row in cells]
                lines.insert(
                    1, "|" + "|".join([" --- "] + [" --- " if block.text else " ---: "] * (len(header) - 1)) + "|"
                )
                parts.append((f"{_escape(caption)}\n\n" if caption else "") + "\n".join(lines))
            case Picture(stem, alt, caption):
                parts.append(f"![{alt}](figures/{stem}.png)\n\n{_escape(caption)}")
    return "\n\n".join(parts) + "\n"


def page(title: str, blocks: Sequence[Block], figures: Path) -> str:
    """The report as one HTML file that needs no other; pictures are read from figures/*.svg and held inline."""
    parts: list[str] = []
    for block in blocks:
        if not isinstance(block, Picture) and parts and parts[-1].endswith("</figure>"):
            parts.append("</div>")
        match block:
            case Heading(text):
                parts.append(f"<h2>{_html(text)}</h2>")
            case Paragraph(text, kind):
                parts.append(f"<p{_class(kind)}>{_html(text)}</p>")
            case Bullets(items, kind):
                parts.append(f"<ul{_class(kind)}>" + "".join(f"<li>{_html(item)}</li>" for item in items) + "</ul>")
            case Table():
                parts.append(_table(block))
            case Picture(stem, alt, caption):
                if not (parts and parts[-1].endswith("</figure>")):
                    parts.append('<div class="figures">')
                data = base64.b64encode((figures / f"{stem}.svg").read_bytes()).decode()
                parts.append(
                    f'<figure><img alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{data}">'
                    f"<figcaption>{_html(caption)}</figcaption></figure>"
                )
    if parts and parts[-1].endswith("</figure>"):
        parts.append("</div>")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{html.escape(title)}</h1>\n" + "\n".join(parts) + "\n</main>\n</body>\n</html>\n"
    )


def _table(table: Table) -> str:
    # Outside of the table, which scrolls on a narrow page where the caption would be cut off.
    caption = f'<p class="caption">{_html(table.caption)}</p>\n' if table.caption else ""
    label = f' aria-label="{html.escape(table.caption)}"' if table.caption else ""
    head = "".join(f'<th scope="col">{_html(cell)}</th>' for cell in table.header)
    body = ""
    for first, *others in table.rows:
        cells = "".join(f"<td>{_html(cell)}</td>" for cell in others)
        body += f'<tr><th scope="row" style="font-weight:500">{_html(first)}</th>{cells}</tr>\n'
    kind = _class("text" if table.text else "")
    return (
        f'{caption}<div class="scroll" tabindex="0"><table{kind}{label}><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{body}</tbody></table></div>"
    )


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _html(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def _escape(text: str) -> str:
    """Markdown's own marks as plain characters, outside of `code`."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*<])", r"\\\1", part) for part in parts)
