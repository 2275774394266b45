"""The data of figures that show more of a model than its accuracies: one file per figure, under the figure's name.

``clead.figures`` draws them, from files only.
"""

from collections.abc import Callable

from clead.protocols.figure_data.base import FigureData, Look, NotApplicable
from clead.protocols.figure_data.batch_norm import batch_norm
from clead.protocols.figure_data.class_distances import class_distances
from clead.protocols.figure_data.feature_inversion import feature_inversion
from clead.protocols.figure_data.input_surface import input_surface
from clead.protocols.figure_data.perturbation_losses import perturbation_losses
from clead.protocols.figure_data.tsne import tsne
from clead.protocols.figure_data.weight_surface import weight_surface

FIGURE_DATA: dict[str, Callable[[Look], FigureData]] = {
    "tsne": tsne,
    "class_distances": class_distances,
    "feature_inversion": feature_inversion,
    "input_surface": input_surface,
    "weight_surface": weight_surface,
    "perturbation_losses": perturbation_losses,
    "batch_norm": batch_norm,
}

__all__ = ["FIGURE_DATA", "FigureData", "Look", "NotApplicable"]
