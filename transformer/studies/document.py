"""A report as blocks, written as Markdown and as one HTML page that needs nothing from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .drawing import VERDICTS
from .figures import Picture


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Words:
    text: str


@dataclass(frozen=True)
class Points:
    items: Sequence[str]


@dataclass(frozen=True)
class Code:
    text: str
    folded: str = ""  # the words on a fold that hides it


@dataclass(frozen=True)
class Table:
    """Cells are text; all but the first `left` columns are set as numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    folded: str = ""


@dataclass(frozen=True)
class Answer:
    """A question, its verdict, the sentence behind it, the claim, and what limits it."""

    number: int
    ask: str
    verdict: str
    words: str
    claim: str
    notes: Sequence[str]


Block = Heading | Words | Points | Code | Table | Answer | Picture


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """GitHub's Markdown; pictures are `figures/NAME.png` beside it."""
    return "\n\n".join([f"# {_md(title)}", *map(_markdown, blocks)]) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"## {_md(block.text)}"
    if isinstance(block, Words):
        return _md(block.text)
    if isinstance(block, Points):
        return "\n".join(f"- {_md(item)}" for item in block.items)
    if isinstance(block, Code):
        return _fenced(block)
    if isinstance(block, Picture):
        image = f"![{_md(block.title)}](figures/{block.name}.png)"
        return f"### {_md(block.title)}\n\n{image}\n\n{_md(block.caption)}"
    if isinstance(block, Answer):
        lines = [f"**{block.number}. {_md(block.ask)}**  \n**{block.verdict}**: {_md(block.words)}"]
        lines += [f"Claim: {_md(block.claim)}"] if block.claim else []
        return "  \n".join([*lines, *(f"*{_md(note)}*" for note in block.notes)])
    rule = ["---"] * block.left + ["---:"] * (len(block.head) - block.left)
    rows = [block.head, rule, *block.rows]
    table = "\n".join("| " + " | ".join(_md(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)
    return f"{_md(block.folded)}:\n\n{table}" if block.folded else table


def _fenced(block: Code) -> str:
    fence = "```"
    while fence in block.text:
        fence += "`"
    code = f"{fence}\n{block.text.rstrip()}\n{fence}"
    if not block.folded:
        return code
    return f"<details>\n<summary>{escape(block.folded)}</summary>\n\n{code}\n\n</details>"


def _md(text: str) -> str:
    """Text that Markdown takes for nothing else: no marks, no entities, no mathematics."""
    for mark in ("\\", "*", "_", "`", "<", "[", "&", "~"):
        text = text.replace(mark, f"\\{mark}")
    text = text.replace("$", "<span>$</span>")  # GitHub's own way: there a backslash does not help
    return " ".join(text.split())


STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; padding: 1rem 1rem 4rem; max-width: 50rem; font: 1rem/1.5 system-ui, sans-serif;
  color: #1a1a1a; background: #fff; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1rem 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-bottom: .25rem; border-bottom: 1px solid #ddd; }
h3 { font-size: 1.05rem; margin: 0 0 .25rem; }
p { margin: .5rem 0; }
.answer { border: 1px solid #ddd; border-left: .35rem solid; border-radius: .3rem; padding: .75rem 1rem;
  margin: .75rem 0; }
.verdict { display: inline-block; color: #fff; border-radius: 1rem; padding: .05rem .7rem; font-weight: 600;
  font-size: .9rem; }
.claim, .note, figcaption, .fold { color: #555; font-size: .9rem; }
figure { margin: 1.5rem 0; }
img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem .25rem 0; text-align: right; border-bottom: 1px solid #eee;
  white-space: nowrap; }
th { border-bottom: 1px solid #999; vertical-align: bottom; }
.text { text-align: left; }
pre { overflow-x: auto; background: #f6f6f6; padding: .75rem; border-radius: .3rem; font-size: .85rem; }
summary { cursor: pointer; }
@media print { body { max-width: none; } .answer, figure { break-inside: avoid; } }
"""


def html(title: str, blocks: Sequence[Block]) -> str:
    """One page with everything in it: no script, no address, pictures as data."""
    body = "\n".join(map(_html, blocks))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h2>{escape(block.text)}</h2>"
    if isinstance(block, Words):
        return f"<p>{escape(block.text)}</p>"
    if isinstance(block, Points):
        items = "\n".join(f"<li>{escape(item)}</li>" for item in block.items)
        return f"<ul>\n{items}\n</ul>"
    if isinstance(block, Code):
        return _folded(f"<pre><code>{escape(block.text)}</code></pre>", block.folded)
    if isinstance(block, Picture):
        data = base64.b64encode(block.data).decode()
        image = (
            f'<img src="data:image/png;base64,{data}" alt="{escape(block.title)}. {escape(block.caption)}">'
        )
        caption = f"<figcaption>{escape(block.caption)}</figcaption>"
        return f"<figure>\n<h3>{escape(block.title)}</h3>\n{image}\n{caption}\n</figure>"
    if isinstance(block, Answer):
        return _answer(block)
    return _table(block)


def _answer(block: Answer) -> str:
    colour = VERDICTS[block.verdict]
    badge = f'<span class="verdict" style="background: {colour}">{block.verdict}</span>'
    lines = [f"<h3>{block.number}. {escape(block.ask)}</h3>", f"<p>{badge} {escape(block.words)}</p>"]
    lines += [f'<p class="claim">Claim: {escape(block.claim)}</p>'] if block.claim else []
    lines += [f'<p class="note">{escape(note)}</p>' for note in block.notes]
    inner = "\n".join(lines)
    return f'<section class="answer" style="border-left-color: {colour}">\n{inner}\n</section>'


def _table(block: Table) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="text"' if i < block.left else "" for i in range(len(cells))]
        inner = "".join(f"<{tag}{k}>{escape(c)}</{tag}>" for k, c in zip(kinds, cells, strict=True))
        return f"<tr>{inner}</tr>"

    rows = "\n".join(line(row, "td") for row in block.rows)
    table = f"<table>\n<thead>\n{line(block.head, 'th')}\n</thead>\n<tbody>\n{rows}\n</tbody>\n</table>"
    return _folded(f'<div class="wide">\n{table}\n</div>', block.folded)


def _folded(inner: str, words: str) -> str:
    if not words:
        return inner
    return f'<details>\n<summary class="fold">{escape(words)}</summary>\n{inner}\n</details>'
