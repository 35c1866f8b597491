"""What is published of the cohorts that the built-in suites name: how many, of which class, in which parts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Sizes = tuple[int, int, int]  # of the training, validation and test part


@dataclass(frozen=True)
class Cohort:
    """A cohort by its published numbers.

    Args:
        label, task, unit, classes: as in :class:`milbench.datasets.Dataset`.
        counts: samples of each class, or cases without and with an event.
        instances: patches of a slide, on average, at 20x and `patch_size`.
        splits: name -> sizes of the parts of each fold.
        official_by_class: sizes of the parts of the official split, class by class.
    """

    label: str
    task: Any
    unit: Any
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    instances: int
    patch_size: int
    splits: Mapping[str, tuple[Sizes, ...]] = field(default_factory=dict)
    official_by_class: tuple[Sizes, ...] = ()

    @property
    def official(self) -> Sizes | None:
        """Sizes of the parts of the official split, where there is one."""
        return self.splits["official"][0] if "official" in self.splits else None


# LongMIL prints one average: 50,000 patches of a TCGA-BRCA slide at 40x (appendix A.1), a quarter of that at 20x. Of BRACS it
# shows a histogram (Figure 1, 20x, axis to 17,500); we take the middle of its axis. Of the other cohorts it says nothing.
_TCGA, _BRACS = 50_000 // 4, 17_500 // 2
# The sizes of the folds are those of the files in HIPT's repository; its survival folds have no validation part.
COHORTS = {
    "bracs": Cohort(
        "BRACS", "subtyping", "slide", ("benign", "atypical", "malignant"), (265, 89, 193), _BRACS, 224,
        {"official": ((395, 65, 87),)}, ((203, 30, 32), (52, 14, 23), (140, 21, 32)),
    ),
    "tcga-brca": Cohort(
        "TCGA-BRCA", "subtyping", "slide", ("IDC", "ILC"), (831, 210), _TCGA, 256, {"hipt10": ((845, 98, 98),) * 10}
    ),
    "tcga-brca-survival": Cohort(
        "TCGA-BRCA", "survival", "case", (), (826, 130), _TCGA, 256, {"hipt5": ((764, 0, 192), *((765, 0, 191),) * 4)}
    ),
    "tcga-coadread-survival": Cohort(
        "TCGA-COADREAD", "survival", "case", (), (260, 80), _TCGA, 256, {"hipt5": ((272, 0, 68),) * 5}
    ),
    "tcga-stad-survival": Cohort(
        "TCGA-STAD", "survival", "case", (), (210, 139), _TCGA, 256, {"hipt5": (*((279, 0, 70),) * 4, (280, 0, 69))}
    ),
}  # fmt: skip

# The three classes of BRACS (benign, atypical, malignant) from its seven lesion types.
BRACS_TYPES = {"benign": ["N", "PB", "UDH"], "atypical": ["FEA", "ADH"], "malignant": ["DCIS", "IC"]}
# Some tables number the types in this order.
BRACS_ORDER = ("N", "PB", "UDH", "FEA", "ADH", "DCIS", "IC")

# Patch encoders of the LongMIL paper and the width of their features. Any other name works; its width is read from files.
ENCODERS = {"vits-lunit": 384, "vits-dino": 384, "hipt": 384, "resnet50": 1024, "uni": 1024, "gigapath": 1536}
