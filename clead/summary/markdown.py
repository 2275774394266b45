"""A page in Markdown; pictures are links relative to its folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from clead.summary.blocks import Block, Bullets, Commands, Section, Table, Words


def to_markdown(title: str, sections: Sequence[Section], folder: Path) -> str:
    """The page as text.

    Args:
        title: the heading.
        sections: below it.
        folder: where the text will be.
    """
    parts = [f"# {escape(title)}"]
    for section in sections:
        parts.append(f"## {escape(section.title)}")
        parts += [_block(block, folder) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Text without a meaning in Markdown or in a cell of its tables."""
    for letter in "\\|*_`<[":
        text = text.replace(letter, "\\" + letter)
    return " ".join(text.split())


def _block(block: Block, folder: Path) -> str:
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Bullets):
        return "\n".join(f"- {escape(item)}" for item in block.items)
    if isinstance(block, Words):
        return escape(block.text)
    if isinstance(block, Commands):
        return "\n".join(["```bash", *block.lines, "```"])
    lines = [f"### {escape(block.of)}"]
    for caption, file in block.images:
        lines.append(f"![{escape(caption)}]({quote(os.path.relpath(file, folder))})")
    return "\n\n".join(lines)


def _table(table: Table) -> str:
    lines = [f"**{escape(table.caption)}**", ""] if table.caption else []
    lines.append("| " + " | ".join(map(escape, table.heads)) + " |")
    lines.append("| --- " + "| ---: " * (len(table.heads) - 1) + "|")
    for at, row in enumerate(table.rows):
        cells = [f"**{escape(cell)}**" if (at, index) in table.bold else escape(cell) for index, cell in enumerate(row)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, *(f"\n{escape(note)}" for note in table.notes)])
