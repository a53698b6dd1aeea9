"""The command line: one table of verbs, loaded only when used.

`main` runs a verb, prints its result (text on stderr, JSON on stdout) and maps errors to exit codes.
"""

from .main import main as main
