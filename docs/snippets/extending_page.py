"""A page of the explorer: the images whose label the classifier of the run does not predict."""

from dermaudit.dashboards.exhibits import image
from dermaudit.dashboards.exhibits.run_view import RunView
from dermaudit.dashboards.pages import display
from dermaudit.dashboards.pages.page import Page


def _show(run: RunView) -> None:
    marks = [(row, image.mistake(run, row)) for row in range(run.n)]
    wrong = [(row, (run.labels[row], mark)) for row, mark in marks if mark]
    display.caption(f"{len(wrong)} of {run.n} images have another label than the predicted one.")
    display.paged_grid(run, wrong, key="mistakes")


PAGE = Page(path="mistakes", title="Mistakes", show=_show, order=6)
