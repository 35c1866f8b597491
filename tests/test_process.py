"""The state that numbers depend on: whatever was set, the same afterwards."""

import logging
import os
import random
import signal
import warnings

import numpy as np
import pytest
import torch

from milbench import process


def float32_parts():
    """Every switch of torch's that says in what precision float32 is multiplied, old and new."""
    switches = torch.backends
    found = {"matmul": torch.get_float32_matmul_precision(), "cudnn": switches.cudnn.allow_tf32}
    if hasattr(switches, "fp32_precision"):
        parts = {
            "all": switches,
            "cuda": switches.cuda.matmul,
            "convolution": switches.mkldnn.conv,
            "product": switches.mkldnn.matmul,
        }
        found |= {name: part.fp32_precision for name, part in parts.items()}
    return found


def new_precision(value):
    if hasattr(torch.backends, "fp32_precision"):
        torch.backends.fp32_precision = torch.backends.mkldnn.conv.fp32_precision = value


ASK = {
    "default dtype": torch.get_default_dtype,
    "default device": lambda: torch.get_default_device().type,
    "grad": torch.is_grad_enabled,
    "autocast": lambda: torch.is_autocast_enabled("cpu"),
    "autocast on CUDA": lambda: torch.is_autocast_enabled("cuda"),
    "threads": torch.get_num_threads,
    "determinism": torch.get_deterministic_debug_mode,
    "anomaly": torch.is_anomaly_enabled,
    "float32": float32_parts,
    "denormals": lambda: float(torch.full((64,), 1e-40, dtype=torch.float32).mul(0.5).sum()) > 0,
    "oneDNN": lambda: torch.backends.mkldnn.enabled,
    "cuDNN": lambda: (torch.backends.cudnn.enabled, torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
    "fast path": torch.backends.mha.get_fastpath_enabled,
    "attention": lambda: (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()),
    "NumPy's errors": np.geterr,
    "logging": lambda: logging.getLogger("milbench.analysis").isEnabledFor(logging.WARNING),
}
SPOIL = {
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "default device": lambda: torch.set_default_device("meta"),
    "grad": lambda: torch.set_grad_enabled(False),
    "autocast": lambda: torch.set_autocast_enabled("cpu", True),
    "autocast on CUDA": lambda: torch.set_autocast_enabled("cuda", True),
    "threads": lambda: torch.set_num_threads(2),
    "determinism": lambda: torch.set_deterministic_debug_mode("default"),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "float32": lambda: (torch.set_float32_matmul_precision("medium"), new_precision("bf16")),
    "denormals": lambda: torch.set_flush_denormal(True),
    "oneDNN": lambda: setattr(torch.backends.mkldnn, "enabled", False),
    "cuDNN": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "fast path": lambda: torch.backends.mha.set_fastpath_enabled(False),
    "attention": lambda: (torch.backends.cuda.enable_flash_sdp(False), torch.backends.cuda.enable_math_sdp(False)),
    "NumPy's errors": lambda: np.seterr(all="raise"),
    "logging": lambda: (
        logging.disable(logging.CRITICAL),
        logging.getLogger("milbench").setLevel(logging.CRITICAL),
        setattr(logging.getLogger("milbench.analysis"), "disabled", True),
    ),
}
WANTED = {
    "default dtype": torch.float32, "default device": "cpu", "grad": True, "autocast": False, "autocast on CUDA": False, "threads": 1,
    "determinism": 2, "anomaly": False, "denormals": True, "oneDNN": True, "cuDNN": (True, True, False), "fast path": True,
    "attention": (True, True), "NumPy's errors": {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"},
    "logging": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def settled():
    yield
    process.settle(threads=1)


@pytest.mark.parametrize("what", SPOIL)
def test_whatever_was_set_is_set_anew(what):
    process.settle(threads=1)
    wanted = {name: ask() for name, ask in ASK.items()}
    SPOIL[what]()
    assert ASK[what]() != wanted[what], "else this test would hold without a remedy"
    process.settle(threads=1)
    assert {name: ask() for name, ask in ASK.items()} == wanted
    assert {name: wanted[name] for name in WANTED} == WANTED
    assert set(wanted["float32"].values()) <= {"highest", "ieee", False}


def test_a_deterministic_form_is_demanded_on_a_cpu_only():
    process.settle("cuda")
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.are_deterministic_algorithms_enabled()
    process.settle("cpu")
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_one_seed_seeds_all_generators():
    def draw(seed):
        process.seed(seed)
        return float(torch.rand(())), float(np.random.rand()), random.random()  # noqa: NPY002

    big = 2**62 + 12345
    assert draw(big) == draw(big)
    assert all(a != b for a, b in zip(draw(big), draw(big + 1), strict=True))


def test_folder_warnings_and_signals_are_kept_when_others_run_or_fail(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)], list(warnings.filters)

    def spoil():
        os.chdir("/")
        warnings.simplefilter("error")
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), process.kept():
        spoil()
    assert ([signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)], list(warnings.filters)) == before
    assert os.getcwd() == str(tmp_path)
