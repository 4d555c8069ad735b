"""Store the values that the version at hand computes.

``python -m tests.unchanged.store [file]``; without a file, those that the test compares with.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .situations import SITUATIONS, computed
from .stored import PATH, write


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else PATH
    values = {name: computed(situation) for name, situation in SITUATIONS.items()}
    write(path, values)
    sys.stdout.write(f"{len(values)} situations, {path.stat().st_size / 1000:.0f} kB: {path}\n")


if __name__ == "__main__":
    main()
