"""A page in HTML that needs no other file: its style and its pictures are inside, and no script."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from clead.figures.files import read_bytes
from clead.summary.blocks import Block, Bullets, Commands, Section, Table, Words

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1rem 4rem; max-width: 76rem; color: #222; background: #fff;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-top: .75rem; border-top: 1px solid #ddd; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; }
a { color: #0059a8; }
.table { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
caption { text-align: left; font-weight: 600; padding: .25rem 0; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid #e6e6e6; white-space: nowrap; }
thead th { border-bottom: 2px solid #999; font-weight: 600; vertical-align: bottom; white-space: normal; }
th:first-child { text-align: left; position: sticky; left: 0; background: #fff; padding-left: 0; }
tbody th { font-weight: 400; white-space: normal; min-width: 8rem; max-width: 20rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) { th, td { padding: .35rem; font-size: .9rem; } ul { padding-left: 1.25rem; } }
.note { color: #555; font-size: .9rem; margin: .25rem 0; }
.figures { columns: 26rem; column-gap: 1.5rem; }
img { display: block; width: 100%; height: auto; margin-bottom: 1.5rem; border: 1px solid #e6e6e6; }
pre { overflow-x: auto; background: #f5f5f5; padding: .75rem; font-size: .85rem; }
li { margin: .3rem 0; }
"""


def to_html(title: str, sections: Sequence[Section]) -> str:
    """The page as text; a UserError names a picture that cannot be read.

    Args:
        title: the heading.
        sections: below it.
    """
    links = "".join(f'<a href="#{_anchor(section)}">{escape(section.title)}</a>' for section in sections)
    body = "".join(map(_section, sections))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n<nav>{links}</nav>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    blocks = "".join(map(_block, section.blocks))
    return f'<section id="{_anchor(section)}"><h2>{escape(section.title)}</h2>\n{blocks}</section>\n'


def _anchor(section: Section) -> str:
    return section.title.lower().replace(" ", "-")


def _block(block: Block) -> str:
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Bullets):
        return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in block.items)}</ul>\n"
    if isinstance(block, Words):
        return f"<p>{escape(block.text)}</p>\n"
    if isinstance(block, Commands):
        return f"<pre><code>{escape(chr(10).join(block.lines))}</code></pre>\n"
    pictures = "".join(_image(f"{caption}, {block.of}", file) for caption, file in block.images)
    return f'<h3>{escape(block.of)}</h3>\n<div class="figures">{pictures}</div>\n'


def _table(table: Table) -> str:
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in table.heads)
    rows = ""
    for at, row in enumerate(table.rows):
        first, *cells = (f"<b>{escape(of)}</b>" if (at, i) in table.bold else escape(of) for i, of in enumerate(row))
        first = first.replace("_", "_<wbr>")  # long names of protocols break there, not inside a word
        rows += f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>\n'
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    notes = "".join(f'<p class="note">{escape(note)}</p>\n' for note in table.notes)
    text = f"<table>{caption}<thead><tr>{heads}</tr></thead><tbody>\n{rows}</tbody></table>"
    return f'<div class="table" tabindex="0">{text}</div>\n{notes}'


def _image(words: str, file: Path) -> str:
    """The picture as it is; it has its title inside."""
    data = base64.b64encode(read_bytes(file)).decode()
    return f'<img alt="{escape(words)}" src="data:image/png;base64,{data}">\n'
