"""Which epoch is kept and when training ends: the selection object alone, epoch by epoch."""

import math

import pytest
import torch
from torch import nn

from milbench import plugins
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


def official(name, task="subtyping", **changes):
    variant = plugins.resolve(name)
    return get_recipe("official", task, official=variant.official, **changes)


def losses(values):
    """A validation curve of which only the loss counts."""
    return [(0.5, loss) for loss in values]


@pytest.mark.parametrize("name", ["clam-sb", "clam-mb", "abmil", "max[pick=instance]"])
@pytest.mark.parametrize(
    ("curve", "ends", "epoch"),
    [
        ([1.0] + [2.0] * 199, 52, 1),  # patience ends long before: nothing stops before epoch 52
        ([2.0] * 31 + [1.0] + [2.0] * 168, 52, 32),  # 20 epochs later is epoch 52
        ([2.0] * 32 + [1.0] + [2.0] * 167, 53, 33),
        ([2.0] * 99 + [1.0] + [2.0] * 100, 120, 100),  # an equal loss counts as better, so the plateau does not wait
        ([1.0] + [2.0] * 49 + [1.0] + [2.0] * 149, 71, 51),  # as good as epoch 1, and so a better one
        ([3.0 - n / 100 for n in range(200)], 200, 200),
    ],
)
def test_clam_stops_and_selects(name, curve, ends, epoch):
    assert play(BestEpoch(official(name)), losses(curve)) == (ends, epoch)


@pytest.mark.parametrize(
    ("curve", "ends", "epoch"),
    [
        ([0.9] + [0.1] * 49, 12, 1),  # after eleven epochs without a better one
        ([0.9] * 50, 12, 1),  # an equal one is no better, whatever its loss
        ([0.1] * 11 + [0.9] + [0.1] * 38, 23, 12),  # just in time
        ([0.1] * 12 + [0.9] + [0.1] * 37, 12, 1),
        ([0.1] * 10 + [0.9] + [0.1] * 39, 22, 11),
    ],
)
def test_dsmil_stops_and_selects(curve, ends, epoch):
    recipe = official("dsmil")
    assert recipe.select == "best val accuracy and AUCs"
    falling = [(metric, 1 - at / 100) for at, metric in enumerate(curve)]
    assert play(BestEpoch(recipe), falling) == (ends, epoch)


@pytest.mark.parametrize("name", ["mambamil", "s4mil"])
@pytest.mark.parametrize(
    ("curve", "ends", "epoch"),
    [
        ([1.0] + [2.0] * 199, 52, 1),
        ([2.0] * 99 + [1.0] + [2.0] * 100, 52, 1),  # unlike CLAM's: an equal loss is no better, so the plateau waits
        ([1.0] + [2.0] * 49 + [1.0] + [2.0] * 149, 52, 1),
    ],
)
def test_mambamil_stops_and_selects(name, curve, ends, epoch):
    assert play(BestEpoch(official(name)), losses(curve)) == (ends, epoch)


@pytest.mark.parametrize("name", ["mambamil", "s4mil"])
def test_mambamil_selects_on_the_c_index_in_survival(name):
    falling = [(0.5 + at / 1000 if at < 30 else 0.4, 1.0 + at) for at in range(200)]
    assert play(BestEpoch(official(name, "survival")), falling) == (50, 30), "whatever the loss"
    assert play(BestEpoch(official(name, "survival")), [(0.5, 1.0)] * 200) == (42, 1)


def test_rrt_stops_at_epoch_72_at_the_earliest():
    assert play(BestEpoch(official("rrt")), [(0.9, 1.0)] + [(0.5, 1.0)] * 199) == (72, 1)


@pytest.mark.parametrize("name", ["dtfd-afs", "dtfd-maxs", "dtfd-maxmins"])
def test_dtfd_selects_from_the_last_fifth(name):
    falling = [(1 - at / 1000, 1.0) for at in range(200)]
    assert play(BestEpoch(official(name)), falling) == (200, 162)
    plateau = [(0.5, 1 - at / 1000) for at in range(200)]
    assert play(BestEpoch(official(name)), plateau) == (200, 162), "a lower loss is no reason"


def test_transmil_stops_after_ten_epochs_without_a_lower_loss():
    assert play(BestEpoch(official("transmil")), losses([1.0] * 200)) == (11, 1)
    assert play(BestEpoch(official("transmil")), losses([1.0] * 10 + [0.9] + [1.0] * 189)) == (21, 11)


@pytest.mark.parametrize(("ties", "epoch"), [("lower loss", 3), ("first", 2), ("last", 4)])
def test_which_of_equal_epochs(ties, epoch):
    assert play(best(ties=ties), [(0.1, 0.1), (0.8, 0.5), (0.8, 0.4), (0.8, 0.6), (0.7, 0.1)]) == (5, epoch)
    undefined = [(math.nan, loss) for loss in (1.0, 0.5, 0.5, 2.0)]
    assert play(best(ties=ties), undefined)[1] == (3 if ties == "last" else 2), "where none has a metric the loss decides"


@pytest.mark.parametrize("name", ["clam-sb", "abmil", "dsmil", "dtfd-afs", "transmil"])
def test_official_without_a_validation_part_says_that_it_is_not(name):
    recipe = official(name, has_validation=False)
    assert (recipe.name, recipe.select, recipe.max_epochs) == ("official without selection", "last", 20)
    assert official(name).name == "official"


@pytest.mark.parametrize("name", ["gigapath-random", "hipt", "abmil[lineage=original]"])
def test_a_recipe_that_never_selects_needs_no_validation_part(name):
    assert official(name, has_validation=False) == official(name)
