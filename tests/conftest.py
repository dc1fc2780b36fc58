"""One thread per process: the test models are tiny, and threads that wait for one another on a
busy machine make the suite many times slower. Set before torch is imported, for subprocesses too.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
