"""What the checks are made on: small bags of known seeds, and fresh models."""

from collections.abc import Iterator

import torch
from torch import Tensor

from milbench.aggregator import Aggregator
from milbench.bags import Bag
from milbench.plugins import Variant
from milbench.tasks import Subtyping, Survival, SurvivalTarget

IN_DIM = 24
SIZES = (1, 2, 7, 37)
LARGE = 100  # with fewer patches a method that cuts bags into 64 regions has one patch in each, and exchanges nothing


def bag(n: int, seed: int, shift: float = 0.0, *, coords: bool = True) -> Bag:
    """n patches on an irregular piece of a 224-pixel lattice."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, IN_DIM, generator=generator) + shift
    if not coords:
        return Bag(x, slide_id=f"check-{seed}", case_id=f"check-{seed}")
    side = int((2 * n) ** 0.5) + 2
    cell = torch.randperm(side * side, generator=generator)[:n].sort().values
    xy = torch.stack([cell % side, cell // side], dim=1) * 224
    return Bag(x, xy, 224.0, slide_id=f"check-{seed}", case_id=f"check-{seed}")


def fresh(variant: Variant, n_out: int = 3, seed: int = 0) -> Aggregator:
    """A model in eval mode that has seen no gradient, prepared as a trial would prepare it."""
    torch.manual_seed(seed)
    return prepared(variant.build(IN_DIM, n_out))


def prepared(model: Aggregator) -> Aggregator:
    """The model after `prepare`, and after `fit` where it has no gradients; in eval mode."""
    bags = [bag(n, seed=100 + n) for n in (20, 21, 22, 23, 24, 25)]
    model.prepare(bags, torch.Generator().manual_seed(0))
    if not model.trained_by_gradient:
        model.fit(bags, [torch.tensor(i % model.n_out) for i in range(len(bags))])
    return model.eval()


def labelled(task: Subtyping | Survival) -> Iterator[tuple[Bag, Tensor | SurvivalTarget]]:
    """Bags with a target each, every class or time bin twice; the last bag is large."""
    sizes = [*range(30, 29 + 2 * task.n_out), LARGE]
    for i, n in enumerate(sizes):
        target = torch.tensor(i % task.n_out)
        shifted = bag(n, seed=10 + i, shift=0.3 * (i % task.n_out))
        yield shifted, target if isinstance(task, Subtyping) else SurvivalTarget(target, torch.tensor(i % 2 == 0))
