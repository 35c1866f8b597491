"""fla's GPU kernels against our definitions, on a CPU under Triton's interpreter.

Optional: runs where fla-core 0.6 and triton 3.7.1 are installed and there is no GPU. The interpreter proves the calls and the
arithmetic, not the speed or the precision of a GPU. It runs in a process of its own, since it must be switched on before any import.
"""

import importlib.util
import subprocess
import sys

import pytest

PROGRAM = """
import builtins, os, sys
os.environ["TRITON_INTERPRET"] = "1"
import triton.runtime.autotuner as autotuner
import torch

run = autotuner.Autotuner.run
def first_configuration_only(self, *args, **keys):  # timing candidates needs a GPU
    self.configs = self.configs[:1]
    return run(self, *args, **keys)
autotuner.Autotuner.run = first_configuration_only

class Index(int):  # kernels cast their loop variable, which the interpreter leaves a plain int
    def to(self, *args, **keys):
        return self
def interpreted_range(*bounds):
    return (Index(i) for i in builtins.range(*map(int, bounds)))

import fla.ops.gla, fla.ops.simple_gla
for name, module in list(sys.modules.items()):
    if name.startswith("fla") and module is not None:
        module.__dict__["range"] = interpreted_range

from milbench.ops import gated_linear_attention_naive, retention_naive
from milbench.ops.gpu import fla_gated_linear_attention, fla_retention

torch.manual_seed(0)
def inputs():
    return [torch.randn(2, 128, 16).requires_grad_() for _ in range(3)]

def compare(name, kernel, naive, *rest):
    q, k, v = inputs()
    ours, theirs = naive(q, k, v, *rest), kernel(q, k, v, *rest)
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)
    weight = torch.randn_like(ours)
    given = [q, k, v, *(r for r in rest if r.requires_grad)]
    a, b = (torch.autograd.grad((out * weight).sum(), given) for out in (ours, theirs))
    for one, other in zip(a, b):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=2e-3)
    print(name, "agrees")

compare("retention", fla_retention, retention_naive, 1 - 2.0 ** (-5 - torch.arange(2.0)))
gate = (torch.nn.functional.logsigmoid(torch.randn(2, 128, 16)) / 16).requires_grad_()
compare("gated_linear_attention", fla_gated_linear_attention, gated_linear_attention_naive, gate)
"""


@pytest.mark.slow
@pytest.mark.parametrize("missing", [[name for name in ("fla", "triton") if importlib.util.find_spec(name) is None]])
def test_fla_kernels_agree_with_our_definitions(missing):
    import torch

    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (optional: pip install --no-deps fla-core==0.6.0 triton==3.7.1)")
    if torch.cuda.is_available():
        pytest.skip("with a GPU the kernels are tested on it (-m gpu)")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["retention", "agrees", "gated_linear_attention", "agrees"]
