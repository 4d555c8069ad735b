"""Runs a script, or a module after -m, and ends the process without the interpreter's teardown.

Torch 2.13's gloo sometimes aborts there on the CPU ("terminate called without an active
exception"), after all work is done and the group is destroyed, also without this package: torchrun
then reports a failure that is none. What goes wrong before that is reported as ever.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

__all__: list[str] = []


def main() -> int:
    del sys.argv[0]
    try:
        if sys.argv[0] == "-m":
            del sys.argv[0]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = str(Path(sys.argv[0]).parent)
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
