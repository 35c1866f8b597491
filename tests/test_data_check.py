"""`milbench data add` and `data check`: every mistake has its own message, stops with an error and leaves nothing behind."""

import json
import re

import folders
import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from milbench import MilbenchError, datasets
from milbench.cli import main
from milbench.errors import NotHere


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """The data folder of the test."""
    monkeypatch.setenv("MILBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def milbench(*words, code=0):
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == code, done.output + repr(done.exception)
    return done.output


def arguments(root, **other):
    """What adds the cohort in `root`, with other values or without those that are None."""
    given = {"name": "mine", "--features": root / "features", "--encoder": "enc", "--labels": root / "labels.csv", "--splits": root / "labels.csv", **other}  # fmt: skip
    name = given.pop("name")
    return ["data", "add", name, *(word for option, value in given.items() if value is not None for word in (option, value))]


def test_there_are_enough_mistakes_and_each_has_words_of_its_own():
    assert len(folders.BROKEN) >= 25
    assert len({says for _, says in folders.BROKEN.values()}) == len(folders.BROKEN)


@pytest.mark.parametrize("name", folders.BROKEN)
def test_a_mistake_is_told_and_nothing_is_written(name, tmp_path, data):
    breaks, says = folders.BROKEN[name]
    other = breaks(folders.cohort(tmp_path / "in")) or {}
    done = CliRunner().invoke(main, [str(word) for word in arguments(tmp_path / "in", **other)])
    assert done.exit_code in (1, 2), done.output
    told = [line for line in done.output.splitlines() if line.startswith(("ERROR", "milbench:"))]
    assert re.search(says, "\n".join(told)), done.output
    others = [key for key, (_, words) in folders.BROKEN.items() if key != name and re.search(words, "\n".join(told))]
    assert not others, "the message of another mistake fits as well"
    assert not data.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert not (tmp_path / "in" / "trapped").exists(), "code of a pickle was run"
