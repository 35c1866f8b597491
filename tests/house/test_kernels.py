"""Reports are the same on every machine: the last digits of a sum follow the BLAS kernel, the reports do not."""

import os
import subprocess
import sys

import pytest

from milbench.report import build
from tests import ROOT
from tests.builders.reports import CHANCES, GOLDEN, golden, sized_suite

KERNELS = ("Prescott", "SkylakeX", "Haswell")  # the extremes and one between; OpenBLAS takes the nearest that the processor has
SCRIPT = """
import sys
from pathlib import Path
from threadpoolctl import threadpool_info
from tests.house import test_kernels
test_kernels.everything(Path(sys.argv[1]))
print(*(info["architecture"] for info in threadpool_info() if info["internal_api"] == "openblas"))
"""


def everything(folder):
    """The stored report, as files and as a page, and the numbers behind the figures of a suite whose bags have sizes."""
    import milbench.compare.pairing
    import milbench.trials.predictions
    import milbench.trials.store

    milbench.trials.store.flush = lambda path: None
    milbench.trials.predictions.disagreement = lambda columns, result: ""  # metrics of the second suite are made up apart
    golden(folder, ["latex", "md", "csv", "html"])
    milbench.compare.pairing.REPLICATES = 500
    store, _ = sized_suite(folder / "sized", CHANCES, splits=("extrapolation",))
    for figure in build(store, "sized").sections[0].figures:
        (folder / "report" / f"{figure.name}.csv").write_text(figure.numbers() + figure.caption)


@pytest.mark.slow
def test_reports_are_the_same_under_every_kernel(tmp_path):
    pytest.importorskip("threadpoolctl", reason="threadpoolctl is not installed, which tells the kernel in use")
    started = {
        kernel: subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path / kernel)],
            cwd=ROOT,
            env=os.environ | {"OPENBLAS_CORETYPE": kernel, "OPENBLAS_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for kernel in KERNELS
    }
    told = {kernel: process.communicate() for kernel, process in started.items()}
    for kernel, process in started.items():
        assert process.returncode == 0, told[kernel][1]
    used = {out.split()[-1] if out.split() else "no OpenBLAS" for out, _ in told.values()}
    if len(used) < 2:
        pytest.skip(f"numpy does not honour OPENBLAS_CORETYPE here: it used {used.pop()} whatever was asked for")
    made = {kernel: files(tmp_path / kernel / "report") for kernel in KERNELS}
    first = made[KERNELS[0]]
    assert {"report.html", "sized-size.csv", "sized-macro-f1-larger-slides.csv", "tables/made-up-anova.csv"} <= first.keys()
    for kernel in KERNELS:
        assert made[kernel].keys() == first.keys()
        for name, text in made[kernel].items():
            assert text == first[name], (kernel, name)
    for name, text in files(GOLDEN).items():
        assert first[name] == text, name


def files(folder):
    kept = (".csv", ".md", ".tex", ".html")  # pictures depend on fonts, too
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.suffix in kept}
