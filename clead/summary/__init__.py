"""Several runs on one page: their accuracies over seeds, the papers' rows beside them, figures, flags, commands."""

from clead.summary.page import write_page

__all__ = ["write_page"]
