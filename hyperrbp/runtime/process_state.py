"""What all threads of a process share, and one of them changes for a while at a time."""

from __future__ import annotations

import threading

ONE_THREAD = threading.RLock()
"""Held where PyTorch's global generators are seeded, or a module has other weights or another mode.

Without it, two runs in two threads draw each other's random numbers, or see each other's weights.
"""
