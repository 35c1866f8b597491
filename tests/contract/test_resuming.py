"""The contract notices what a trial that is cut off would lose, and says what to write."""

import pytest

from milbench import contract, plugins, register
from tests.builders.keeping import KEPT, LOST, Counts, OwnOptimiser

RUN = next(check.run for check in contract.CHECKS if check.name == "resumes")


@pytest.mark.parametrize("cls", KEPT)
def test_what_comes_back_is_sound(cls):
    register("kept", label="Kept")(cls)
    RUN(plugins.resolve("kept"))


@pytest.mark.parametrize(("cls", "says"), LOST.items())
def test_what_would_be_lost_is_a_fault(cls, says):
    register("lost", label="Lost")(cls)
    with pytest.raises(contract.ContractError, match=says):
        RUN(plugins.resolve("lost"))


def test_a_plain_counter_is_named_with_its_line_and_what_to_write():
    register("lost", label="Lost")(Counts)
    with pytest.raises(contract.ContractError) as fault:
        RUN(plugins.resolve("lost"))
    assert "keeping.py:" in str(fault.value)
    assert 'write carried = ("steps",) in the class, or register_buffer; if no later step needs it, do not keep it' in str(
        fault.value
    )
    register("optimiser", label="Optimiser")(OwnOptimiser)
    with pytest.raises(contract.ContractError, match=r"is not in the optimiser's state_dict\(\)"):
        RUN(plugins.resolve("optimiser"))


class ForgetsOnTheWay(Counts):
    """Says that it keeps its counter and gives another one back."""

    def get_extra_state(self):
        return self.steps

    def set_extra_state(self, state):
        self.steps = 0


class ForgetsWhatMattersLater(ForgetsOnTheWay):
    def factor(self):
        self.steps += self.training
        return 1.0 if self.steps < 1000 else 2.0


class LearnsFromThePast(Counts):
    carried = ("steps",)

    def optimisers(self, recipe):
        class Momentum:
            """An optimiser that says nothing of its velocity."""

            def __init__(self, inner):
                self.inner, self.param_groups, self.velocity = inner, inner.param_groups, {}

            def zero_grad(self):
                self.inner.zero_grad()

            def step(self):
                for p in self.inner.param_groups[0]["params"]:
                    self.velocity[p] = p.grad = 0.9 * self.velocity.get(p, 0) + p.grad
                self.inner.step()

            def state_dict(self):
                return self.inner.state_dict()

            def load_state_dict(self, state):
                self.inner.load_state_dict(state)

        return [Momentum(optimiser) for optimiser in super().optimisers(recipe)]


@pytest.mark.parametrize("cls", [ForgetsOnTheWay, ForgetsWhatMattersLater, LearnsFromThePast])
def test_numbers_that_differ_are_noticed_whatever_a_class_says(cls):
    register("lost", label="Lost")(cls)
    with pytest.raises(contract.ContractError, match="differs after a training that was cut off and went on; keep what training"):
        RUN(plugins.resolve("lost"))


def test_an_optimiser_must_say_what_it_has():
    class Silent:
        def __init__(self, inner):
            self.zero_grad, self.step, self.param_groups = inner.zero_grad, inner.step, inner.param_groups

    class HasSilent(Counts):
        carried = ("steps",)

        def optimisers(self, recipe):
            return [Silent(optimiser) for optimiser in super().optimisers(recipe)]

    register("silent", label="Silent")(HasSilent)
    with pytest.raises(contract.ContractError, match="state_dict"):
        RUN(plugins.resolve("silent"))
