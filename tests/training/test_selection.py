"""Which epoch is kept and when training ends: the selection object alone, epoch by epoch."""

import math

import pytest
import torch
from torch import nn

from milbench.recipes import get as get_recipe
from milbench.training import BestEpoch, LastEpoch, Stopping, Validation


class Weights(nn.Module):
    """A model whose weights say in which epoch it is."""

    def __init__(self):
        super().__init__()
        self.register_buffer("epoch", torch.zeros(()))


def play(selection, validations):
    """Shows the epochs one after the other until the selection ends training; returns the last epoch and the weights it keeps."""
    model, ended = Weights(), len(validations)
    for number, (metric, loss) in enumerate(validations, 1):
        model.epoch.fill_(number)
        if selection.update(number, model, Validation(metric, loss)):
            ended = number
            break
    selection.restore(model)
    return ended, int(model.epoch)


def best(**values):
    return BestEpoch(get_recipe("paper", "subtyping", **{"patience": None, **values}))


@pytest.mark.parametrize(
    ("validations", "epoch"),
    [
        ([(0.5, 1.0), (0.8, 2.0), (0.7, 0.1)], 2),  # the highest metric
        ([(0.8, 1.0), (0.8, 0.5), (0.8, 0.7)], 2),  # of equals the lowest loss
        ([(0.8, 0.5), (0.8, 0.5), (0.8, 0.5)], 1),  # of equals in both the earliest
        ([(0.1, 1.0), (0.8, 0.5), (0.8, 0.5)], 2),
        ([(math.nan, 0.5), (0.0, 9.0), (math.nan, 0.1)], 2),  # an undefined metric is below every defined one
        ([(math.nan, 0.5), (math.nan, 0.2), (math.nan, 0.2)], 2),  # and where all are undefined the loss decides
    ],
)
def test_which_epoch_is_the_best(validations, epoch):
    selection = best()
    assert play(selection, validations) == (len(validations), epoch)
    assert (selection.epoch, selection.selected_on) == (epoch, "val")


def test_an_equal_epoch_is_not_better_and_counts_as_waiting():
    """Of equal epochs the earlier one wins: a plateau does not start the patience anew."""
    assert play(best(patience=2), [(0.8, 0.5)] * 9) == (3, 1)


def test_the_loss_alone_may_select():
    assert play(best(select="best val loss"), [(0.9, 1.0), (0.1, 0.5), (0.9, 0.5)]) == (3, 2)


def test_epochs_up_to_select_after_cannot_be_selected_and_do_not_count_as_waiting():
    falling = [(1 - 0.1 * n, 1.0) for n in range(9)]
    assert play(best(select_after=3), falling) == (9, 4), "the first that may be"
    assert play(best(select_after=3, patience=2), falling) == (6, 4)
    assert play(best(select_after=9, max_epochs=9), falling) == (9, 1), "a shorter run than that selects from all epochs"
    assert play(best(select_after=8, max_epochs=9), falling) == (9, 9)


@pytest.mark.parametrize(("patience", "min_epochs", "ends"), [(3, 0, 4), (3, 4, 4), (3, 5, 5), (1, 0, 2), (None, 0, 9)])
def test_patience_and_the_fewest_epochs(patience, min_epochs, ends):
    """The first epoch is the best: training ends `patience` epochs later, in no case before `min_epochs`."""
    stopping = Stopping(get_recipe("paper", "subtyping", patience=patience, min_epochs=min_epochs))
    assert next((n for n in range(1, 10) if stopping.update(n, n == 1, 0.5)), 9) == ends


def test_a_better_epoch_starts_the_patience_anew():
    stopping = Stopping(get_recipe("paper", "subtyping", patience=2))
    assert [stopping.update(n, n in (1, 3), 0.5) for n in range(1, 6)] == [False, False, False, False, True]


@pytest.mark.parametrize(
    ("enough", "min_epochs", "ends"), [(0.8, 0, 2), (0.80001, 0, 3), (0.8, 2, 2), (0.8, 3, 3), (0.95, 0, 9), (None, 0, 9)]
)
def test_a_metric_that_is_enough_ends_training(enough, min_epochs, ends):
    metrics = [math.nan, 0.8, 0.9, *[0.9] * 6]
    stopping = Stopping(get_recipe("paper", "subtyping", patience=None, enough=enough, min_epochs=min_epochs))
    assert next((n for n, metric in enumerate(metrics, 1) if stopping.update(n, True, metric)), 9) == ends


def test_the_last_epoch_is_whatever_comes_last():
    selection = LastEpoch()
    assert play(selection, [(1.0, 0.0), (0.0, 9.0), (math.nan, math.nan)]) == (3, 3)
    assert (selection.epoch, selection.selected_on) == (3, "none")
