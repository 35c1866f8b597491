"""Settings: made once, passed on, the same in every process."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from milbench import datasets
from milbench.config import Settings
from milbench.datasets.files.adding import joined
from milbench.datasets.files.manifest import save
from milbench.errors import MilbenchError
from tests.builders import folders
from tests.builders.command import milbench


def test_what_is_given_wins_over_the_environment_and_that_over_the_defaults():
    said = {"MILBENCH_DATA": "d", "MILBENCH_RESULTS": "r", "MILBENCH_CACHE": "c", "MILBENCH_NO_PACK": "1"}
    assert Settings.from_environment(environment={}) == Settings(Path("data"), Path("results"), None, True)
    assert Settings.from_environment(environment=dict.fromkeys(said, "")) == Settings()
    assert Settings.from_environment(environment=said) == Settings(Path("d"), Path("r"), Path("c"), False)
    given = Settings.from_environment(data=Path("x"), results=Path("y"), pack=True, environment=said)
    assert given == Settings(Path("x"), Path("y"), Path("c"), True)


def test_how_often_a_training_is_kept():
    for said, seconds in (("", 60), ("0", 0), ("2.5", 2.5), ("inf", float("inf"))):
        assert Settings.from_environment(environment={"MILBENCH_CHECKPOINT_SECONDS": said}).checkpoint_seconds == seconds
    for said in ("soon", "-1", "nan", "1,5"):
        with pytest.raises(
            MilbenchError, match=f"MILBENCH_CHECKPOINT_SECONDS is '{said}'; it is a number of seconds, 0 for after"
        ):
            Settings.from_environment(environment={"MILBENCH_CHECKPOINT_SECONDS": said})


def test_packs_lie_beside_the_data_or_in_the_cache():
    assert Settings(data=Path("d")).packs == Path("d/.packed")
    assert Settings(data=Path("d"), cache=Path("c")).packs == Path("c")


def test_a_process_that_stands_elsewhere_finds_the_same_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sent = pickle.dumps(Settings(cache=Path("c")).absolute())
    monkeypatch.chdir("/")
    assert pickle.loads(sent) == Settings(tmp_path / "data", tmp_path / "results", tmp_path / "c")


def test_a_dataset_is_found_by_its_settings_whatever_the_environment_says(tmp_path, monkeypatch):
    root = folders.cohort(tmp_path / "in")
    save(joined("mine", features=root / "features", encoder="enc", labels=root / "labels.csv", home=tmp_path / "here"))
    monkeypatch.setenv("MILBENCH_DATA", str(tmp_path / "nowhere"))
    settings = Settings(data=tmp_path / "here")
    assert datasets.load("mine", "enc", settings=settings).read("S-03").features.shape == (13, folders.D)
    assert list(settings.packs.glob("*.pack"))
    assert "mine" in [info.name for info in datasets.infos(settings)]
    assert "mine" not in [info.name for info in datasets.infos()]


def test_options_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    milbench("ls", "datasets", "--data", "elsewhere")
    milbench("run", "--suite", "quickstart", "--data", "elsewhere", "--no-pack", "--dry-run")
    assert dict(os.environ) == before


@pytest.mark.slow
def test_a_worker_in_another_folder_leaves_its_result_where_the_run_looks(tmp_path):
    """As on a cluster; spawned workers run this file under another name, and go elsewhere first."""
    (tmp_path / "away").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "start.py").write_text(f"""
import os
os.chdir({str(tmp_path / "here")!r} if __name__ == "__main__" else {str(tmp_path / "away")!r})
if __name__ == "__main__":
    from milbench.cli import main

    main(["run", "--suite", "quickstart", "--aggregators", "mean", "--folds", "0", "--epochs", "1", "--workers", "1"])
""")
    done = subprocess.run([sys.executable, tmp_path / "start.py"], capture_output=True, text=True, check=False)
    assert (done.returncode, "1 trials, 1 ok" in done.stdout) == (0, True), done.stdout + done.stderr
    assert len(list((tmp_path / "here" / "results" / "trials").iterdir())) == 1
    assert not any((tmp_path / "away").iterdir())
