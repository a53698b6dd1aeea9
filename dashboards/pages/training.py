"""The Training page: the log of the run's model, and any other log that was named, side by side."""

from __future__ import annotations

import json
import os
from pathlib import Path

import streamlit as st

from dermaudit.dashboards.exhibits import training, training_log
from dermaudit.dashboards.exhibits.run_view import RunView
from dermaudit.dashboards.pages import session
from dermaudit.errors import DermauditError, UserInputError

LOGS_VARIABLE = "DERMAUDIT_LOGS"


def show() -> None:
    session.page("Training", _body, alone=bool(named_logs()))


def named_logs() -> list[Path]:
    """The logs of `dermaudit explore --log`, a JSON list in the environment."""
    return [Path(name) for name in json.loads(os.environ.get(LOGS_VARIABLE) or "[]")]


def _body(run: RunView | None) -> None:
    paths = named_logs()
    if run is not None:
        try:
            paths = [*_own(run), *paths]
        except DermauditError as error:
            session.note(error)
    # Files are read anew at each rerun, and a press is a rerun: nothing of a log is cached.
    st.button("Read again", help="Reads the logs again, for a training that is still running.")
    logs, wrong = training_log.read_logs(paths)
    for error in wrong:
        session.tell(error)
    if not logs:
        if not wrong and run is not None:
            st.info("No log to show. Name one: dermaudit explore --log FILE_OR_FOLDER")
        return
    for log in logs:
        st.markdown(f"**{session.plain(log.name)}**: {training.in_words(log)}.")
    session.present(training.stages(logs))
    for stage in training.stage_names(logs):
        for make in (training.losses, training.pace):
            try:
                session.present(make(logs, stage), title=True)
            except DermauditError as error:
                st.info(f"Not measured in the {stage} stage: {error.message}")


def _own(run: RunView) -> list[Path]:
    """The log of the run's model."""
    name = (run.run.meta.get("model") or {}).get("name")
    if not isinstance(name, str):
        raise UserInputError("the run names no model: there is no training log to look for")
    return training_log.log_of_model(name)
