"""The command line: a table of commands, imported when they are used.

`main` runs a command, prints its result (text on stderr, JSON on stdout) and maps errors to exit codes.
"""

from .main import main as main
