"""Time and memory of a call, and whether this machine is quiet enough to quote them."""

import ctypes
import gc
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

QUIET_LOAD = 0.7  # one-minute load average below which nothing else can be running
QUIET_SHARE = 0.15  # of one core, that other processes may take


def seconds(call: Callable[[], object], *, repeats: int = 5, budget: float = 10.0, warm_up: bool = True) -> float:
    """Median duration of `call` after one warm-up, over `repeats` runs or until `budget` seconds are spent (one run at least)."""
    if warm_up:
        call()
    taken: list[float] = []
    while len(taken) < repeats and (not taken or sum(taken) + taken[-1] < budget):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def extra_bytes(call: Callable[[], object], device: str = "cpu") -> int | None:
    """Largest growth of memory during `call`: of what torch allocated on CUDA, else of what is resident in this process.

    Freed memory is first given back, so that it cannot hide growth. None where the system does not tell (Linux does).
    """
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - allocated
    status = Path("/proc/self/status")
    try:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # high-water mark := now
    except (OSError, AttributeError):
        return None
    before = _field(status, "VmRSS:")
    call()
    return max(0, _field(status, "VmHWM:") - before)


def _field(status: Path, name: str) -> int:
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith(name))


def others() -> str | None:
    """What says that something else is running: None on a quiet machine.

    The load average decays slowly, so a high one is checked against a second of what other processes really take.
    """
    load = os.getloadavg()[0]
    if load < QUIET_LOAD:
        return None
    busy, ours = _busy(), time.process_time()
    time.sleep(1.0)
    share = _busy() - busy - (time.process_time() - ours)
    return f"load average {load:.2f}, other processes take {share:.2f} cores" if share > QUIET_SHARE else None


def _busy() -> float:
    """Seconds of CPU that all processes together have used."""
    try:
        user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    except OSError:
        return 0.0
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")
