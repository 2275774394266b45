"""What a page is made of, before it is HTML or Markdown."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Table:
    """Text in rows and columns.

    Attributes:
        heads: over the columns.
        rows: as many cells each as there are heads; the first names the row.
        caption: above it; may be empty.
        notes: sentences below it.
        bold: (row, column) of the cells to stress.
    """

    heads: list[str]
    rows: list[list[str]]
    caption: str = ""
    notes: list[str] = field(default_factory=list)
    bold: set[tuple[int, int]] = field(default_factory=set)


@dataclass(frozen=True)
class Bullets:
    """Sentences in a list."""

    items: list[str]


@dataclass(frozen=True)
class Words:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Commands:
    """Lines for a shell."""

    lines: list[str]


@dataclass(frozen=True)
class Pictures:
    """Images with what they show.

    Attributes:
        of: whose they are.
        images: (what it shows, file).
    """

    of: str
    images: list[tuple[str, Path]]


Block = Table | Bullets | Words | Commands | Pictures


@dataclass(frozen=True)
class Section:
    """Blocks under a heading."""

    title: str
    blocks: list[Block]
