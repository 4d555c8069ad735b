"""``python -m margin_ext`` is ``margin-ext``."""

from __future__ import annotations

import sys

from margin_ext.command_line import main

sys.exit(main())
