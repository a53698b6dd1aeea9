"""The Training page: the log of the run's model, and any other log that was named, side by side."""

from __future__ import annotations

import json
import os
from pathlib import Path

import streamlit as st

from dermaudit.dashboards.exhibits import training, training_log
from dermaudit.dashboards.exhibits.run_view import RunView
from dermaudit.dashboards.pages import display, session
from dermaudit.dashboards.pages.page import Page
from dermaudit.errors import DermauditError, UserInputError

LOGS_VARIABLE = "DERMAUDIT_LOGS"


def named_logs() -> list[Path]:
    """Return the logs of `dermaudit explore --log`, a JSON list in the environment."""
    return [Path(name) for name in json.loads(os.environ.get(LOGS_VARIABLE) or "[]")]


def _show(run: RunView | None) -> None:
    paths = named_logs()
    if run is not None:
        display.links("Continue with:", [("overview", session.address("./"))])
        try:
            paths = [*_own(run), *paths]
        except DermauditError as error:
            display.note(error)
    if not paths:
        session.run_path()  # neither a run nor a log: say how to name one
    # Files are read again at each run of the script, and a press of the button is one.
    st.button("Read again", help="Reads the logs again, for a training that is still running.")
    logs, wrong = training_log.read_logs(paths)
    for error in wrong:
        display.warn(error)
    if not logs:
        if not wrong and run is not None:
            st.info("No log to show. Name one: dermaudit explore --log FILE_OR_FOLDER")
        return
    for log in logs:
        st.markdown(f"**{display.plain(log.name)}**: {training.in_words(log)}.")
    display.present(training.stages(logs), key="stages")
    for stage in training.stage_names(logs):
        st.header(f"Stage {display.plain(stage)}", anchor=False)
        for make in (training.losses, training.pace):
            try:
                made = make(logs, stage)
            except DermauditError as error:
                st.info(f"Not measured in the {stage} stage: {error.message}")
                continue
            st.subheader(display.plain(made.title), anchor=False)
            display.present(made, key=f"{stage} {made.title}")


def _own(run: RunView) -> list[Path]:
    """Return the log of the run's model."""
    name = (run.run.meta.get("model") or {}).get("name")
    if not isinstance(name, str):
        raise UserInputError("the run names no model: there is no training log to look for")
    return training_log.log_of_model(name)


PAGE = Page("training", "Training", _show, order=5, needs_run=False)
