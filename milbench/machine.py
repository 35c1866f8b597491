"""The machine and the software that compute: their names and versions, and how much memory is in use."""

import contextlib
import ctypes
import gc
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import milbench


def reset_peak_memory(device: str) -> None:
    """Let :func:`peak_memory` start again from what is in use now."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        with contextlib.suppress(OSError):  # some containers forbid it; the peak is then an upper bound
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak of resident memory


def peak_memory(device: str) -> int | None:
    """Bytes: allocated on CUDA, resident in this process on Linux, unknown elsewhere."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def release_memory() -> None:
    """Return freed memory to the system, so that it does not count in the next peak."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc only; elsewhere the peak is an upper bound
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@cache
def provenance() -> dict[str, Any]:
    """Where a number comes from: code, libraries, machine."""
    home = Path(milbench.__file__).parent.parent
    in_checkout = (home / ".git").exists()
    return {
        "milbench": milbench.__version__,
        "git": _git(home, "rev-parse", "--short=12", "HEAD") or None if in_checkout else None,
        "dirty": bool(_git(home, "status", "--porcelain", "--", "milbench", "registry")) if in_checkout else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, check=False).stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
