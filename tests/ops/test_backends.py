"""Backends: chosen by a real call, forced or refused, never swapped in silence; on a GPU each against the naive twin."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from milbench import Bag, MilbenchError, ops, plugins
from milbench.ops import backends
from milbench.ops.backends import Backend
from milbench.recipes import get as get_recipe
from milbench.tasks import Subtyping

EXAMPLE = lambda device: (torch.ones(2, 3, device=device),)  # noqa: E731


@pytest.fixture
def made_up():
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
    with backends.restored():
        for backend in some:
            backends.offer(backend)
        yield some


def test_only_what_was_shown_to_work_is_chosen(made_up):
    assert backends.choose("made-up", "cpu", torch.float32).name == "works"
    assert backends.choose("made-up", "cpu", torch.float16).name == "half"
    assert backends.used() == {"made-up": "half + works"}
    backends.forget()
    assert backends.chosen(["made-up", "retention"], "cpu") == {"made-up": "works", "retention": "chunks"}
    assert backends.used() == {}, "asking is not using"
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


def test_no_backend_that_works_is_an_error_with_every_reason(made_up):
    for backend in made_up[:3]:
        backends.offer(replace(backend, op="broken"))
    says = r"^no backend of broken works on cpu: raises: RuntimeError: no kernel image is available; lies: .* not finite; elsewhere: needs cuda$"
    for ask in (lambda: backends.choose("broken", "cpu"), lambda: backends.chosen(["broken"], "cpu")):
        with pytest.raises(MilbenchError, match=says):
            ask()
    with pytest.raises(MilbenchError, match="unknown operation 'full_atention'; did you mean full_attention"):
        backends.chosen(["full_atention"], "cpu")


def test_asking_tries_no_more_than_it_must(made_up):
    """A probe may compile for seconds: what stands behind the first that works is left alone."""
    tried = []
    for name in ("first", "second"):
        backends.offer(Backend("costly", name, "any", lambda x, name=name: tried.append(name) or x, EXAMPLE))
    assert backends.chosen(["costly"], "cpu") == {"costly": "first"}
    assert tried == ["first"]


@contextmanager
def recomputation():
    """What torch.utils.checkpoint does to whatever is computed inside it: nothing may be saved for the backward pass."""

    def refuse(tensor):
        raise RuntimeError("saved inside a recomputed block")

    with torch.autograd.graph.saved_tensors_hooks(refuse, refuse):
        yield


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def undetermined():
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("default")
    try:
        yield
        assert torch.get_deterministic_debug_mode() == 0
    finally:
        torch.set_deterministic_debug_mode(before)


@pytest.mark.parametrize(
    "context",
    [
        recomputation, torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu"), lambda: default_dtype(torch.float64),
        lambda: default_dtype(torch.bfloat16), lambda: torch.device("meta"), lambda: FlopCounterMode(display=False),
        lambda: torch.autograd.set_detect_anomaly(True), undetermined,
    ],
    ids=["recomputation", "no grad", "inference", "autocast", "float64", "bfloat16", "device", "counting", "anomaly", "undetermined"],
)  # fmt: skip
def test_a_probe_neither_sees_nor_changes_what_its_caller_has_set(context):
    seen = []

    def looks(x):
        seen.append((
            torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), torch.get_default_dtype(),
            torch.get_default_device().type, torch.is_anomaly_enabled(), torch.get_deterministic_debug_mode(), torch.rand(1).dtype,
        ))  # fmt: skip
        return (x @ x.mT).square()  # saves tensors

    def look_from_outside():
        return (
            torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), torch.get_default_dtype(),
            torch.is_anomaly_enabled(), torch.get_deterministic_debug_mode(),
        )  # fmt: skip

    probed = Backend("made-up", "looks", "any", looks, EXAMPLE)
    numbers = torch.get_rng_state()
    with context():
        before = look_from_outside()
        assert probed.why_not("cpu") is None
        assert look_from_outside() == before
    assert seen == [(True, False, False, torch.float32, "cpu", False, 2, torch.float32)]
    assert torch.equal(torch.get_rng_state(), numbers)


@pytest.mark.parametrize("name", ["longmil", "longmil-gla", "retnet", "gla", "mamba-single", "vmamba", "full-attention"])
def test_the_first_use_of_an_operation_may_be_inside_a_recomputed_block(name):
    """Bags above 32,000 patches begin so; here every bag does. The step is the one that keeps its activations."""
    at = torch.arange(40)
    bag = Bag(torch.randn(40, 6), torch.stack([at % 7, at // 7], dim=1) * 256, 256.0)
    task, after = Subtyping("ab"), []
    for above in (1, 32_000):
        backends.probe.cache_clear()
        torch.manual_seed(0)
        model = plugins.resolve(f"{name}[dim=16]").build(6, 2).train()
        for module in model.modules():
            if hasattr(module, "recompute_above"):
                module.recompute_above = above
        loss = model.training_step(bag, torch.tensor(1), task, model.optimisers(get_recipe("paper", "subtyping", lr=0.1)))
        after.append([loss, *(p.detach() for p in model.parameters())])
    for a, b in zip(*after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_unknown_backends_have_near_misses(made_up):
    with pytest.raises(MilbenchError, match="unknown backend 'wroks'; did you mean works"):
        backends.force(["wroks"])
    with pytest.raises(MilbenchError, match="unknown operation 'made-down'"):
        backends.force(["made-down=works"])
    with pytest.raises(MilbenchError, match="unknown backend of made-up 'sdpa'"):
        backends.force(["made-up=sdpa"])


def test_full_attention_never_materialises_scores_for_dropout():
    """torch's CPU kernel has no dropout, so the call with it is ours, and torch's is refused when forced."""
    q = torch.randn(1, 30, 8)
    with backends.restored():
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
@pytest.mark.parametrize(("op", "backend"), [(op, b.name) for op in sorted(ops.OPERATIONS) for b in backends.offered(op)])
def test_backend_against_the_naive_twin_on_a_gpu(op, backend):
    """Values and gradients, in whatever precision the backend computes in."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    chosen = next(b for b in backends.offered(op) if b.name == backend)
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
