"""Diagnosis of a measured network: what is off, in plain words, and what to do about it.

Everything is read from the table, except for BatchNorm's statistics, for which one batch goes through the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from flatminima.core.minimum import Minimum
from flatminima.estimate import Estimate

Severity = Literal["problem", "caution"]

_UNFITTED = 0.05  # training error above which norms over margins and curvature at "the minimum" say little
_STALE = 0.5  # standard deviations by which a running mean may be off; or ln of the ratio of variances
_WIDE = 0.2  # standard error over value
_FEW = 32  # samples a batch of which says nothing of BatchNorm's statistics
_BATCH = 512


@dataclass(frozen=True)
class Finding:
    """One thing to know.

    Attributes:
        severity: "problem": numbers mislead; "caution": numbers need care.
        what: is off.
        do: about it.
    """

    severity: Severity
    what: str
    do: str

    def __str__(self) -> str:
        return f"{self.what}: {self.do}"


def diagnose(estimates: Mapping[str, Estimate], minimum: Minimum | None = None) -> list[Finding]:
    """List the reasons not to trust these numbers, problems first.

    Args:
        estimates: a MeasureTable, or any measures by name.
        minimum: the network that they are of, for what the table does not hold (one forward pass of at most 512
            samples); it is left as it is.

    Returns:
        Findings; none where nothing was found, which is not a proof that nothing is wrong.

    Examples:
        >>> table = {"margin": Estimate(-0.5, details={"train_error": 0.4, "train_loss": 1.2})}
        >>> print(diagnose(table)[0].what)
        40.0% of the labels are not fitted
    """
    found = [*_labels(estimates), *_curvature(estimates), *_precision(estimates), *_errors(estimates)]
    if minimum is not None:
        found += batchnorm_findings(minimum)
    return sorted(found, key=lambda f: f.severity != "problem")


def _labels(estimates: Mapping[str, Estimate]) -> list[Finding]:
    margin = estimates.get("margin")
    if margin is None or "train_error" not in margin.details:
        return []
    error = float(margin.details["train_error"])
    if (
        margin.details.get("unit") == "token"
    ):  # the next one is never certain: an error is no sign of training too short
        return []
    if error > _UNFITTED:
        return [
            Finding(
                "problem",
                f"{100 * error:.1f}% of the labels are not fitted",
                "train longer, check that the data and its scaling are those of training, or compare losses instead",
            )
        ]
    if margin.value is not None and margin.value <= 0:
        return [
            Finding(
                "caution",
                f"the margin at 5% of the samples is {margin.value:.3g}, not positive",
                "norms over margins are undefined here; train until more labels are fitted",
            )
        ]
    return []


def _curvature(estimates: Mapping[str, Estimate]) -> list[Finding]:
    found = []
    trace = estimates.get("hessian_trace")
    if trace is not None and trace.value is not None and trace.value + 2 * (trace.stderr or 0) < 0:
        found.append(
            Finding(
                "problem", "the Hessian's trace is negative", "this is no minimum of this loss on this data: train on"
            )
        )
    negative = estimates.get("negative_curvature")
    if negative is not None and negative.value is not None and negative.value > 0.25:
        found.append(
            Finding(
                "caution",
                f"{negative.value:.0%} of the curvature is negative",
                "the weights are not at a minimum: sharpness measures describe where training stopped",
            )
        )
    psi = estimates.get("pacgen")
    if psi is not None and psi.details.get("curvature_bound") == 0:
        found.append(
            Finding(
                "caution",
                "curvature decides no term of pacgen, the neighbourhood's width decides all",
                "it measures the scale of the weights here; a larger gamma or epsilon lets curvature speak",
            )
        )
    return found


def _precision(estimates: Mapping[str, Estimate]) -> list[Finding]:
    logdet = estimates.get("fisher_logdet")
    if logdet is None:
        return []
    if logdet.value is None and "duplicate" in (logdet.undefined or ""):
        return [Finding("problem", "per-sample gradients are linearly dependent", "look for duplicate samples")]
    if logdet.details.get("float64"):
        return [
            Finding(
                "caution",
                f"float32 is too coarse for this log-determinant (condition {logdet.details['condition']:.1g})",
                "it was repeated in float64, so the value stands; other code may report noise",
            )
        ]
    return []


def _errors(estimates: Mapping[str, Estimate]) -> list[Finding]:
    wide = [
        name
        for name, e in estimates.items()
        if e.value is not None and e.stderr is not None and e.stderr > _WIDE * abs(e.value)
    ]
    if not wide:
        return []
    return [
        Finding(
            "caution",
            f"standard errors above {_WIDE:.0%} of the value: {', '.join(wide)}",
            "use rtol=0.1 or a larger budget before comparing them",
        )
    ]


def batchnorm_findings(minimum: Minimum) -> list[Finding]:
    """Running statistics of BatchNorm against those of one batch."""
    count = min(_BATCH, len(minimum.samples))
    layers = {name: m for name, m in minimum.model.named_modules() if isinstance(m, _BatchNorm)}
    if not layers or count < _FEW:
        return []
    stale: list[str] = []

    def look(name: str) -> Any:
        def hook(module: _BatchNorm, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach().double()
            if module.running_mean is None or module.running_var is None:
                return
            rest = [d for d in range(x.dim()) if d != 1]
            mean, variance = x.mean(rest), x.var(rest, unbiased=False)
            running = module.running_var.double()
            shift = ((mean - module.running_mean.double()).abs() / (running + module.eps).sqrt()).median()
            ratio = ((variance + module.eps) / (running + module.eps)).log().abs().median()
            if float(shift) > _STALE or float(ratio) > _STALE:
                stale.append(name)

        return hook

    with minimum.open(), torch.no_grad():
        hooks = [m.register_forward_pre_hook(look(name)) for name, m in layers.items()]
        try:
            for part in torch.arange(count).split(minimum.batch_size):
                if len(part) >= _FEW:
                    minimum.forward(minimum.batch(part).inputs)
                    break
        finally:
            for hook in hooks:
                hook.remove()
    if not stale:
        return []
    return [
        Finding(
            "problem",
            f"the running statistics of {len(stale)} of {len(layers)} BatchNorm layers do not fit this data "
            f"(first: {stale[0]})",
            "use the data and scaling of training, or estimate them again (torch.optim.swa_utils.update_bn)",
        )
    ]
