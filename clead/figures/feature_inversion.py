"""Images that excite one component of the features most, from several seeds (ASCL's fig. 2)."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from clead.errors import UserError
from clead.figures.data import Shape, read_pictures
from clead.figures.files import write_figure
from clead.figures.image_grid import show
from clead.figures.style import INK, SMALL, TEXT, new_figure, subtitle

SHAPES: dict[str, Shape] = {
    "seeds": ("S", "C", "H", "W"),
    "inverted": ("S", "K", "C", "H", "W"),
    "components": ("K",),
}
ROW = 1.12  # inches


def figure(run: Path) -> Figure:
    """Draw for each model of ``run`` a block of rows: the seed, then what it became for each component.

    A column whose images are alike, whatever the seed, is a component that stands for a pattern.
    """
    pictures = read_pictures(run, "feature_inversion", SHAPES)
    first = next(iter(pictures.values()))
    for picture in pictures.values():
        if picture.arrays["seeds"].shape[1] not in (1, 3):
            raise UserError(f"{picture.path}: expected images with 1 or 3 channels")
    words = f"a column is one component of the features, maximised from the seed in {first.facts.get('steps')} steps"
    rows = sum(len(picture.arrays["seeds"]) for picture in pictures.values())
    room = 0.3 + ROW * rows + 0.35 * len(pictures)
    drawn = new_figure(room, "Feature inversion", subtitle(first.facts["data"], words, run.name))
    blocks = drawn.subfigures(len(pictures), 1, squeeze=False)[:, 0]
    for block, (name, picture) in zip(blocks, pictures.items(), strict=True):
        block.suptitle(name, size=TEXT, color=INK, weight="bold")
        seeds, inverted = picture.arrays["seeds"], picture.arrays["inverted"]
        components = picture.arrays["components"]
        grid = block.subplots(len(seeds), 1 + len(components), squeeze=False)
        for seed, line in enumerate(grid):
            for axes, image in zip(line, [seeds[seed], *inverted[seed]], strict=True):
                show(axes, image, "gray")
        for axes, title in zip(grid[0], ["seed", *(f"no. {of}" for of in components)], strict=True):
            axes.set_title(title, size=SMALL, color=INK, pad=3)
    return drawn


def draw(run: Path) -> Path:
    """Write ``run/figures/feature_inversion.png``; returns its path."""
    return write_figure(figure(run), run, "feature_inversion")
