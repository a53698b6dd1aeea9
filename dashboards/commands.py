"""The command `explore`. Input is validated before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dermaudit.errors import DermauditError, UserInputError

STREAMLIT_OPTIONS = (
    # The server listens on this machine only.
    "--server.address=127.0.0.1",
    # Otherwise Streamlit's first start asks for an e-mail address and waits.
    "--server.headless=true",
    "--browser.gatherUsageStats=false",
    "--server.fileWatcherType=none",
    # Both palettes: with one alone Streamlit shows the light theme, whatever the reader has set.
    "--theme.light.primaryColor=#0072B2",
    "--theme.dark.primaryColor=#56B4E9",
    "--client.toolbarMode=minimal",
    "--client.showErrorDetails=none",
    "--logger.level=warning",
)


def explore(
    run: Annotated[
        Path | None,
        typer.Option("--run", help="folder of the run (default: the newest; with --log: none)"),
    ] = None,
    log: Annotated[
        list[Path] | None,
        typer.Option(
            help="training log to plot, or the folder of a checkpoint or of a training that runs; "
            "give it several times to compare"
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="port on 127.0.0.1", min=1, max=65535)] = 8501,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="open the web browser")
    ] = True,
) -> dict[str, Any]:
    """Open the web explorer of a run, or of training logs; it ends with Ctrl-C."""
    logs = _readable_logs(log or [])
    target = _readable(run) if run is not None or not logs else None
    _check_port(port)
    import os
    import signal
    import subprocess
    import sys

    from dermaudit.console import say

    url = f"http://127.0.0.1:{port}"
    shown = ", ".join(str(path) for path in ([] if target is None else [target]) + logs)
    say(f"explorer of {shown}: {url}   (Ctrl-C ends it)")
    app = Path(__file__).parent / "app" / "app.py"
    command = [sys.executable, "-m", "streamlit", "run", str(app), "--server.port", str(port)]
    # If this process is asked to end, the server must end too.
    signal.signal(signal.SIGTERM, _interrupt)
    server = subprocess.Popen(
        [*command, *STREAMLIT_OPTIONS],
        env=_environment(os.environ, target, logs),
        stdout=sys.stderr,
    )
    if browser:
        _open_browser(port)
    result = {
        "run": None if target is None else str(target),
        "logs": [str(path) for path in logs],
        "url": url,
    }
    try:
        code = server.wait()
    except KeyboardInterrupt:
        _end(server)
        return result
    if code not in (0, 130, -2, -15):
        raise DermauditError(
            f"the explorer ended with code {code}", "Streamlit's own message is printed above"
        )
    return result


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _open_browser(port: int) -> None:
    """Open the page in a browser once the server answers, if the machine has a screen."""
    import os
    import sys
    import threading

    if not (
        sys.platform in ("darwin", "win32") or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    ):
        return

    def wait_and_open() -> None:
        import socket
        import time
        import webbrowser

        for _ in range(120):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                time.sleep(0.5)
                continue
            webbrowser.open(f"http://127.0.0.1:{port}")
            return

    threading.Thread(target=wait_and_open, daemon=True).start()


def _end(server: Any) -> None:
    """Stop the server, by force if it does not end within five seconds."""
    import subprocess

    server.terminate()
    try:
        server.wait(timeout=5)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        server.kill()
        server.wait()


def _readable(run: Path | None) -> Path:
    """Return the run to show. UserInputError if it has no images yet."""
    from dermaudit.run.directory import newest_run, open_run

    target = run or newest_run()
    open_run(target).require("images")
    return target


def _check_port(port: int) -> None:
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserInputError(
                f"port {port} of 127.0.0.1 cannot be used ({error.strerror})",
                "choose another with --port",
            ) from error


def _readable_logs(paths: list[Path]) -> list[Path]:
    """Return the logs to plot, after reading each once: errors are raised here, not in the browser."""
    from .exhibits.training_log import find_logs, read_log

    for path in paths:
        for found in find_logs(path):
            read_log(found)
    return paths


def _environment(inherited: Any, target: Path | None, logs: list[Path]) -> dict[str, str]:
    """Return the environment of the server: the run, the logs, and the folder of this package.

    The package may not be installed. A run or a log that was set from outside is not used.
    """
    import json
    import os

    import dermaudit

    root = str(Path(dermaudit.__file__).parent.parent)
    paths = [root, *filter(None, inherited.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        **inherited,
        "DERMAUDIT_RUN": "" if target is None else str(target),
        "DERMAUDIT_LOGS": json.dumps([str(path) for path in logs]),
        "PYTHONPATH": os.pathsep.join(paths),
    }
