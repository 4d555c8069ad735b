"""Prints the model's table: ``PYTHONPATH=tests python -m kernel_model [H100 ...]``."""

from __future__ import annotations

import sys

from kernel_model.devices import DEVICES
from kernel_model.table import table

sys.stdout.write(
    table(devices=[d for d in DEVICES if not sys.argv[1:] or d.name in sys.argv[1:]]) + "\n"
)
