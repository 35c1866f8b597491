"""Tasks: what is predicted, with its target, loss, scores and metrics."""

from milbench.tasks.survival import Subtyping, Survival, SurvivalTarget, for_fold, survival_nll

__all__ = ["Subtyping", "Survival", "SurvivalTarget", "for_fold", "survival_nll"]
