"""Survival losses: the discrete-time likelihood, Cox's partial likelihood, and the cross-entropy variant nobody should train with."""

import torch

from milbench.tasks import Survival, survival_nll
from tests.fidelity.harness import DOUBLE, FORWARD, GRADIENT, adapter, close


def survival_ce(logits, bin, event, alpha):
    """Reference only: cross-entropy on "failed by the end of its bin", plus the likelihood of the events.

    (1 - alpha) CE + alpha NLL of events, CE = -log(1 - S_Y) for an event and -log S_Y for a censored case. Where S_Y rounds to 1
    the official form multiplies 0 by infinity; here the terms are chosen, not multiplied. Arguments of log are clamped at 1e-7,
    except S_{Y-1}, to which 1e-7 is added.
    """
    hazard = logits.sigmoid()
    survival = (1 - hazard).cumprod(-1)
    before = torch.cat([torch.ones_like(survival[:, :1]), survival], dim=1).gather(1, bin[:, None])[:, 0]  # S_{Y-1}
    hazard, survival = (x.gather(1, bin[:, None])[:, 0] for x in (hazard, survival))
    ce = -torch.where(event, 1 - survival, survival).clamp(min=1e-7).log()
    nll = -(before + 1e-7).log() - hazard.clamp(min=1e-7).log()
    return (1 - alpha) * ce + alpha * torch.where(event, nll, 0.0)


def cox_loss(risk, time, event):
    """Reference only, since batches of one bag have no risk set: Cox's negative log partial likelihood, a mean over all cases.

    -1/b sum over events i of [risk_i - log sum over {j: time_j >= time_i} of exp(risk_j)]; tied times share a risk set (Breslow).
    """
    at_risk = time[None, :] >= time[:, None]  # (b, b), row i: the risk set of case i
    log_sum = torch.where(at_risk, risk[None, :], -torch.inf).logsumexp(dim=1)
    return -torch.where(event, risk - log_sum, 0.0).mean()


@adapter("survival_losses")
def survival_losses(vector):
    arrays = {key: torch.from_numpy(value) for key, value in vector.arrays.items()}
    logits, bin, event = arrays["logits"], arrays["Y"], arrays["c"] == 0
    hazards = logits.sigmoid()
    close(hazards, vector.arrays["hazards"], FORWARD, "hazards")
    close((1 - hazards).cumprod(-1), vector.arrays["S"], FORWARD, "survival")
    close(Survival([1.0, 2.0, 3.0]).scores(logits), vector.arrays["risk"], FORWARD, "risk")
    for kind, loss in (("nll", survival_nll), ("ce", survival_ce)):
        alphas = sorted({key.split("/")[1] for key in arrays if key.startswith(f"{kind}/")})
        assert alphas
        for name in alphas:
            key, alpha = f"{kind}/{name}", float(name[1:])
            rows = slice(len(logits) - len(vector.arrays[f"{key}/per_row"]), None)  # the official ce is NaN on the first two
            x = logits[rows].clone().requires_grad_()
            per_row = loss(x, bin[rows], event[rows], alpha)
            close(per_row, vector.arrays[f"{key}/per_row"], FORWARD, f"{key} rows")
            close(per_row.mean(), vector.arrays[key], FORWARD, key)
            per_row.mean().backward()
            close(x.grad, vector.arrays[f"{key}/grad"], GRADIENT, f"{key} gradient")
            double = loss(logits[rows].double(), bin[rows], event[rows], alpha).mean()
            close(double, vector.arrays[f"{key}/f64"], DOUBLE, f"{key} float64")
    assert torch.isfinite(survival_ce(logits, bin, event, 0.15)).all(), "finite where the official form is not"
    close(cox_loss(arrays["cox/risk"][:, 0], arrays["cox/time"], arrays["cox/c"] == 0), vector.arrays["cox/loss"], FORWARD, "cox")
