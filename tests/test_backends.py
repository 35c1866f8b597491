"""Backends: chosen by a real call, forced or refused, never swapped in silence; on a GPU each against the naive twin."""

import pytest
import torch

from milbench import MilbenchError, ops
from milbench.ops import backends
from milbench.ops.backends import Backend

EXAMPLE = lambda device: (torch.ones(2, 3, device=device),)  # noqa: E731


@pytest.fixture
def made_up(monkeypatch):
    """One operation with a backend that raises, one that lies, one for another device and one that works."""

    def raises(x):
        raise RuntimeError("no kernel image is available")

    def lies(x):
        return x * float("nan")

    some = [
        Backend("made-up", "raises", "any", raises, EXAMPLE),
        Backend("made-up", "lies", "any", lies, EXAMPLE),
        Backend("made-up", "elsewhere", "cuda", lambda x: x, EXAMPLE),
        Backend("made-up", "half", "any", lambda x: x, EXAMPLE, dtypes=(torch.float16,)),
        Backend("made-up", "works", "any", lambda x: x + 1, EXAMPLE),
    ]
    monkeypatch.setattr(backends, "_backends", {**backends._backends, "made-up": some})
    monkeypatch.setattr(backends, "_forced", {})
    monkeypatch.setattr(backends, "_used", {})


def test_only_what_was_shown_to_work_is_chosen(made_up):
    assert backends.choose("made-up", "cpu", torch.float32).name == "works"
    assert backends.choose("made-up", "cpu", torch.float16).name == "half"
    assert backends.used() == {"made-up": "half"}
    rows = {row["backend"]: row for row in backends.table("cpu") if row["op"] == "made-up"}
    assert rows["raises"]["why_not"] == "RuntimeError: no kernel image is available"
    assert rows["lies"]["why_not"] == "a tiny call gave values that are not finite"
    assert rows["elsewhere"]["why_not"] == "needs cuda"
    assert rows["works"]["available"]


def test_a_forced_backend_is_used_or_an_error(made_up):
    backends.force(["made-up=works"])
    assert backends.choose("made-up", "cpu").name == "works"
    for name, reason in (("raises", "no kernel image"), ("elsewhere", "needs cuda")):
        backends.force([f"made-up={name}"])
        with pytest.raises(MilbenchError, match=f"backend {name} of made-up was asked for and does not work on cpu: .*{reason}"):
            backends.check_forced("cpu")
    backends.force(["half"])
    with pytest.raises(MilbenchError, match=r"computes in torch.float16, not in torch.float32"):
        backends.choose("made-up", "cpu", torch.float32)


def test_unknown_backends_have_near_misses(made_up):
    with pytest.raises(MilbenchError, match="unknown backend 'wroks'; did you mean works"):
        backends.force(["wroks"])
    with pytest.raises(MilbenchError, match="unknown operation 'made-down'"):
        backends.force(["made-down=works"])
    with pytest.raises(MilbenchError, match="unknown backend of made-up 'sdpa'"):
        backends.force(["made-up=sdpa"])


def test_full_attention_never_materialises_scores_for_dropout(monkeypatch):
    """torch's CPU kernel has no dropout, so the call with it is ours, and torch's is refused when forced."""
    monkeypatch.setattr(backends, "_forced", {})
    monkeypatch.setattr(backends, "_used", {})
    q = torch.randn(1, 30, 8)
    ops.full_attention(q, q, q, dropout=0.5)
    assert backends.used() == {"full_attention": "tiles"}
    backends.force(["full_attention=sdpa"])
    torch.testing.assert_close(ops.full_attention(q, q, q), ops.full_attention_naive(q, q, q))
    with pytest.raises(MilbenchError, match=r"sdpa of full_attention .* has no dropout on a CPU"):
        ops.full_attention(q, q, q, dropout=0.5)


@pytest.mark.parametrize("op", sorted(ops.OPERATIONS))
def test_every_operation_works_on_a_cpu_without_extras(op):
    """Somewhere in its list each operation has a backend of our own."""
    assert any(row["available"] for row in backends.table("cpu") if row["op"] == op)


@pytest.mark.gpu
@pytest.mark.parametrize(("op", "backend"), [(op, b.name) for op in sorted(ops.OPERATIONS) for b in backends._backends[op]])
def test_backend_against_the_naive_twin_on_a_gpu(op, backend):
    """Values and gradients, in whatever precision the backend computes in."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    chosen = next(b for b in backends._backends[op] if b.name == backend)
    if reason := chosen.why_not("cuda"):
        pytest.skip(reason)
    arguments = chosen.example("cuda")
    twin_arguments = [a.detach().clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    for some in (arguments, twin_arguments):
        for a in some:
            if isinstance(a, torch.Tensor) and a.is_floating_point():
                a.requires_grad_()
    ours, naive = chosen.call(*arguments), ops.OPERATIONS[op](*twin_arguments)
    loose = 3e-2 if ours.dtype in (torch.float16, torch.bfloat16) else 1e-3
    torch.testing.assert_close(ours, naive, rtol=loose, atol=loose)
    ours.float().square().sum().backward()
    naive.float().square().sum().backward()
    for a, b in zip(arguments, twin_arguments, strict=True):
        if isinstance(a, torch.Tensor) and a.is_floating_point():
            torch.testing.assert_close(a.grad, b.grad, rtol=loose * 3, atol=loose * 3)
