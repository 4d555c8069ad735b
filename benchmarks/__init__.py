"""Benchmarks: ``python -m benchmarks`` runs the suite and renders docs/benchmarks.md."""

import os

# The profiler announces every start and stop; between the lines of progress that is noise. It
# reads this when torch is loaded.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
