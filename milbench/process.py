"""The global state that numbers depend on: set before every trial, because any plug-in can change it at any time.

Many research files begin with a line such as `torch.set_float32_matmul_precision("medium")`. Importing such a file, or running
its aggregator first, must not change a digit of another trial.
"""

import contextlib
import logging
import os
import random
import signal
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from milbench import interrupt


def settle(device: str = "cpu", threads: int | None = None) -> None:
    """Set all global state that arithmetic or messages depend on to fixed values.

    Float32 means float32 (no TF32, no bfloat16 products, no flushed denormals), algorithms are deterministic: on a CPU bytes are
    equal, on CUDA an operation that has no deterministic form warns and runs.

    Args:
        device: what will be computed on.
        threads: of torch's operations; None leaves their number.
    """
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)
    for kind in ("cpu", "cuda"):
        torch.set_autocast_enabled(kind, False)
    torch.set_flush_denormal(False)
    torch.autograd.set_detect_anomaly(False)
    if threads is not None:
        torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # noqa: TID251 - cuBLAS reads it; else its order of summation may vary
    if device == "cpu":
        torch.set_deterministic_debug_mode("error")  # the same as below without importing torch's compiler, a second's work
    else:
        torch.use_deterministic_algorithms(True, warn_only=True)
    _settle_kernels()
    np.seterr(divide="warn", over="warn", under="ignore", invalid="warn")
    logging.disable(logging.NOTSET)
    for name in ("milbench", *(n for n in logging.root.manager.loggerDict if n.startswith("milbench."))):
        logging.getLogger(name).disabled = False
        logging.getLogger(name).setLevel(logging.WARNING if name == "milbench" else logging.NOTSET)


def _settle_kernels() -> None:
    """Which kernels torch may choose from, and in what precision they multiply."""
    backends: Any = torch.backends  # whose parts are made when asked for
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = False
    if hasattr(backends, "fp32_precision"):  # torch 2.9 and later have a second set of switches beside those two
        cuda, cudnn, onednn = backends.cuda.matmul, backends.cudnn, backends.mkldnn
        for part in (backends, cuda, cudnn, cudnn.conv, cudnn.rnn, onednn, onednn.conv, onednn.matmul, onednn.rnn):
            part.fp32_precision = "ieee"
    backends.mkldnn.enabled = backends.cudnn.enabled = backends.cudnn.deterministic = True
    backends.cudnn.benchmark = False
    backends.mha.set_fastpath_enabled(True)
    for enable in ("flash", "mem_efficient", "math", "cudnn"):  # a CPU's attention goes by these, too
        getattr(backends.cuda, f"enable_{enable}_sdp")(True)


def seed(value: int) -> None:
    """Seed the global generators of torch, NumPy and Python."""
    # As torch.manual_seed, which without a GPU writes down the whole stack for each kind of GPU that might come.
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(value)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002 - plug-ins and libraries draw from the global generator
    random.seed(value)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Afterwards the current folder, the filters of warnings and the handlers of signals are as before."""
    handlers = {s: signal.getsignal(s) for s in interrupt.SIGNALS}
    with contextlib.chdir(os.curdir), warnings.catch_warnings():
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():  # no other thread may set handlers
                for number, handler in handlers.items():
                    signal.signal(number, signal.SIG_DFL if handler is None else handler)
