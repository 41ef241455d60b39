"""The command line: ``moetrace`` with demo, run, report, show and version; also ``python -m moetrace``.

Exit codes: 0, done; 1, an error that the message explains (a file, a model, too few cases); 2, the command
was not understood (an unknown option or setting, a value out of its range); 130, stopped with Ctrl-C, after
which the same command goes on. Results are printed to standard output; progress, warnings and errors, one
line each, to standard error.
"""

from moetrace.cli.app import app, main

__all__ = ["app", "main"]
