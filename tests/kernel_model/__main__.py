"""Prints the model's table: ``PYTHONPATH=tests python -m kernel_model [H100 ...]``."""

from __future__ import annotations

import sys

from kernel_model.model import DEVICES, SHAPES, table

wanted = [device for device in DEVICES if not sys.argv[1:] or device.name in sys.argv[1:]]
sys.stdout.write(table(SHAPES, tuple(wanted)) + "\n")
