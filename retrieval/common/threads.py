"""Threads for loops that run without Python's lock: compiled ones, FAISS, NumPy."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache


@cache
def threads() -> ThreadPoolExecutor:
    """As many as there are cores for this process. Nothing that runs in them may wait for another of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ThreadPoolExecutor(cores, thread_name_prefix="retrieval")
