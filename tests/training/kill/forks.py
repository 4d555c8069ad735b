"""Runs of the command in forked processes, some of which are killed; torch is imported once.

Run with kill_switch.c preloaded. Reads a JSON line a run, {"words": [...], "folder": ..., "at": n,
"after": seconds}, and answers with {"status": ..., "calls": number of system calls}.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time

import matplotlib.backends.backend_agg  # noqa: F401
import torch

from margin_ext.command_line import main
from margin_ext.training import trial_settings, trials_figure, trials_report  # noqa: F401

torch.set_num_threads(1)
switch = ctypes.CDLL(os.environ["LD_PRELOAD"])
switch.counted.restype = ctypes.c_long
switch.watch.argtypes = ctypes.c_char_p, ctypes.c_long


def child(words: list[str], folder: str, at: int, answer: int) -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    switch.watch(folder.encode(), at)
    status = main(words)
    os.write(answer, json.dumps({"calls": switch.counted()}).encode())
    os._exit(status)


for line in sys.stdin:
    run = json.loads(line)
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reading)
        try:
            child(run["words"], run["folder"], run.get("at", 0), writing)
        finally:
            os._exit(70)
    os.close(writing)
    if "after" in run:
        time.sleep(run["after"])
        os.kill(process, signal.SIGKILL)
    with os.fdopen(reading) as stream:
        said = json.loads(stream.read() or "{}")
    _, status = os.waitpid(process, 0)
    sys.stdout.write(json.dumps({**said, "status": os.waitstatus_to_exitcode(status)}) + "\n")
    sys.stdout.flush()
