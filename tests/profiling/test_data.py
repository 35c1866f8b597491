"""What `milbench profile data` measures: the same bags in two ways."""

import json
from dataclasses import asdict

import pytest
import torch

from milbench import MilbenchError
from milbench.config import Settings
from milbench.datasets.files.adding import joined
from milbench.datasets.files.manifest import save
from milbench.datasets.packed import packed
from milbench.profiling import data as profile_data
from milbench.profiling import measure
from tests.builders import folders
from tests.builders.command import milbench


def test_generated_files_give_the_same_bags_from_both(tmp_path):
    for what, layout in profile_data.LAYOUTS.items():
        folder = tmp_path / what
        folder.mkdir()
        sizes = profile_data.write_files(folder, 4, 100, layout)
        assert all(50 <= n <= 150 for n in sizes.values())
        read = lambda id, folder=folder: profile_data.read_file(folder, id)  # noqa: E731
        pack = packed(
            read, sizes, in_dim=profile_data.WIDTH, dtype=layout["dtype"], fingerprint="1", name="x", folder=folder / "pack"
        )
        for id, n in sizes.items():
            assert len(pack(id)) == n
            assert torch.equal(pack(id).features, read(id).features)
            assert torch.equal(pack(id).coords, read(id).coords)


@pytest.mark.slow
def test_rows_say_what_was_read(monkeypatch):
    asked = []
    monkeypatch.setattr(profile_data, "read_all", lambda read, ids: asked.append((type(read).__name__, len(ids))))
    rows = profile_data.synthetic(3, epochs=2, patches=100)
    assert [row.what for row in rows] == list(profile_data.LAYOUTS)
    assert asked == [("partial", 3), ("Pack", 3)] * 3 * len(rows), "one epoch warms up, then both ways in turn"
    for row in rows:
        same = {"float16": 1, "float32": 2}[row.what.split(",")[0]]
        assert row.bytes == same * rows[1].bytes
    assert rows[1].bytes % (profile_data.WIDTH * 2) == 0
    assert all(row.bags == 3 and row.ratio == row.direct_seconds / row.packed_seconds for row in rows)


@pytest.mark.slow
def test_the_command(monkeypatch):
    rows = profile_data.synthetic(2, epochs=1, patches=100)
    monkeypatch.setattr(profile_data, "synthetic", lambda count, epochs: rows)
    monkeypatch.setattr(measure, "others", lambda: None)
    words = ["profile", "data", "--synthetic", "2"]
    told = json.loads(milbench(*words, "--json"))
    assert told == {"noise": None, "rows": [asdict(row) for row in rows]}
    assert f"{rows[0].ratio:.1f}" in milbench(*words)
    monkeypatch.setattr(measure, "others", lambda: "somebody else is here")
    told = milbench(*words)
    assert "No ratio: somebody else is here. Try again on a quiet machine, or pass --noisy." in told
    told = json.loads(milbench(*words, "--json"))
    assert [row["ratio"] for row in told["rows"]] == [None] * len(rows)
    told = json.loads(milbench(*words, "--json", "--noisy"))
    assert told["rows"] == [asdict(row) for row in rows]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "profile data needs --dataset NAME and --encoder NAME, or --synthetic N"),
        (["--dataset", "musk1"], "profile data needs --dataset"),
        (["--synthetic", "2", "--dataset", "musk1", "--encoder", "x"], "profile data needs --dataset"),
        (
            ["--dataset", "musk1", "--encoder", "hand-crafted"],
            "dataset musk1 has no packed store: it comes without feature files",
        ),
        (["--dataset", "bracs", "--encoder", "nobody"], "bracs"),
    ],
)
def test_what_cannot_be_measured(words, says):
    told = milbench("profile", "data", *words, code=2)
    assert told.startswith("milbench: ")
    assert says in told


def test_without_a_pack_there_is_nothing_to_compare(tmp_path):
    root = folders.cohort(tmp_path / "in")
    save(joined("mine", features=root / "features", encoder="enc", labels=root / "labels.csv", home=tmp_path / "data"))
    settings = Settings(data=tmp_path / "data", pack=False)
    with pytest.raises(MilbenchError, match="MILBENCH_NO_PACK is set"):
        profile_data.dataset("mine", "enc", None, None, epochs=1, settings=settings)
