"""Per-sample losses, margins and mistakes at the minimum: one forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flatminima.core.batch import Batch
from flatminima.core.statistic import Fold, Needs
from flatminima.errors import Undefined

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum


@dataclass(frozen=True)
class OutputSummary:
    """Summary of the network's outputs for each sample, in the order of the data.

    Attributes:
        losses (n,) float64.
        margins (n,) float64: f[y] - max_{j != y} f[j]; None where targets are not classes.
    """

    losses: Tensor
    margins: Tensor | None

    @property
    def errors(self) -> Tensor | None:
        """(n,) bool: the label is not strictly the largest logit."""
        return None if self.margins is None else self.margins <= 0


@dataclass(frozen=True)
class Outputs(Fold["dict[str, Tensor]", OutputSummary]):
    """Losses and margins of every sample."""

    @property
    def needs(self) -> Needs:
        return Needs.LOSSES

    def init(self, minimum: Minimum) -> dict[str, Tensor]:
        n = len(minimum.samples)
        state = {"losses": torch.zeros(n, dtype=torch.float64)}
        if minimum.loss.labels:
            state["margins"] = torch.zeros(n, dtype=torch.float64)
        return state

    def update(self, state: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        state["losses"][batch.indices] = batch.losses.double().cpu()
        if "margins" in state:
            state["margins"][batch.indices] = margins(batch.outputs, batch.targets).cpu()
        return state

    def merge(self, left: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: left[key] + right[key] for key in left}

    def finish(self, state: dict[str, Tensor]) -> OutputSummary:
        return OutputSummary(state["losses"], state.get("margins"))


def margins(outputs: Tensor, targets: Tensor) -> Tensor:
    """f[y] - max_{j != y} f[j] (Neyshabur et al. 2017, eq. 2), (batch,) float64.

    Raises:
        Undefined: one class only.
    """
    if outputs.shape[1] < 2:
        raise Undefined("a margin needs at least two classes")
    scores = outputs.double()
    index = targets.unsqueeze(1)
    rival = scores.scatter(1, index, -torch.inf).amax(1)
    return scores.gather(1, index).squeeze(1) - rival
