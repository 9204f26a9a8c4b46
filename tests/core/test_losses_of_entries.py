"""torch's losses that have no formulas here: of entries, of probabilities and of margins, and those of other arguments.

The truth is torch's own module in float64, with its gradient, or the dense Hessian of what a user wraps around it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatminima import Minimum
from flatminima.core.losses import Loss
from flatminima.errors import DataError
from flatminima.measures import hessian_top_eigenvalue, hessian_trace

SOFT = torch.tensor([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.25, 0.5, 0.25], [0.0, 0.0, 1.0]])
LABELS = torch.tensor([0, 1, 2, 0, 1])
CONFIDENT = torch.tensor(
    [[30.0, 1.0, -4.0], [-20.0, 25.0, 0.0], [40.0, -3.0, 2.0], [0.5, -0.25, 0.0], [-60.0, 50.0, 1.0]]
)
SIGNS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.3, 0.0, 1.0], [0.0, 1.0, 1.0]])
PROBABILITIES = SIGNS * 0.8 + 0.1
OTHERS: list[tuple[nn.Module, Callable[..., Tensor], Tensor, Tensor]] = [
    (nn.L1Loss(), F.l1_loss, CONFIDENT, SIGNS),
    (nn.SmoothL1Loss(), F.smooth_l1_loss, CONFIDENT / 30, SIGNS),
    (nn.HuberLoss(), F.huber_loss, CONFIDENT / 30, SIGNS),
    (nn.PoissonNLLLoss(), F.poisson_nll_loss, CONFIDENT / 30, SIGNS),
    (nn.SoftMarginLoss(), F.soft_margin_loss, CONFIDENT / 30, SIGNS.round() * 2 - 1),
    (nn.HingeEmbeddingLoss(), F.hinge_embedding_loss, CONFIDENT / 30, SIGNS.round() * 2 - 1),
    (nn.BCELoss(), F.binary_cross_entropy, PROBABILITIES.roll(1, 0), SIGNS),
    (nn.KLDivLoss(), F.kl_div, CONFIDENT.log_softmax(1), SOFT),
    (nn.KLDivLoss(reduction="batchmean"), functools.partial(F.kl_div, reduction="batchmean"), CONFIDENT, SOFT),
    (nn.MultiMarginLoss(), F.multi_margin_loss, CONFIDENT / 30, LABELS),
    (nn.MultiLabelMarginLoss(), F.multilabel_margin_loss, CONFIDENT / 30, LABELS[:, None] + torch.tensor([0, -9, -9])),
    (nn.MultiLabelSoftMarginLoss(), F.multilabel_soft_margin_loss, CONFIDENT / 30, SIGNS),
]


@pytest.mark.parametrize("row", OTHERS, ids=lambda row: type(row[0]).__name__ + row[0].reduction)
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss:UserWarning")  # torch's, of KLDivLoss
def test_torchs_other_losses_as_they_are_used(row: tuple[nn.Module, Callable[..., Tensor], Tensor, Tensor]) -> None:
    """The mean of the samples' losses is the number that torch's own module trains with, to the gradient."""
    module, function, output, targets = row
    targets = torch.where(targets < -1, -1, targets) if type(module) is nn.MultiLabelMarginLoss else targets
    reduction = module.reduction
    truth_at, at = (output.double().requires_grad_() for _ in range(2))
    doubled = targets.double() if targets.is_floating_point() else targets
    truth = module(truth_at, doubled)
    named = type("Named", (type(module),), {})(reduction=reduction)  # a subclass that overrides nothing
    for given in (module, module.forward, named, function):
        found = Loss.of(given)(at, targets)
        torch.testing.assert_close(found.mean(), truth)
        torch.testing.assert_close(
            *(
                torch.autograd.grad(loss, leaf, retain_graph=True)[0]
                for loss, leaf in ((found.mean(), at), (truth, truth_at))
            )
        )
    assert module.reduction == reduction  # the user's own is untouched


def test_a_mean_over_entries_measures_as_unreduced() -> None:
    g = torch.Generator().manual_seed(0)
    x, t = torch.randn(12, 4, generator=g), torch.randn(12, 1, generator=g)
    model = nn.Linear(4, 1)
    nn.init.zeros_(model.weight)
    one, other = (
        hessian_trace(Minimum(model, (x, t), loss)) for loss in (nn.HuberLoss(), nn.HuberLoss(reduction="none"))
    )
    assert one.value == other.value and one.value > 0
    column = Minimum(nn.Sequential(model, nn.Flatten(0)), (x, t), nn.HuberLoss())  # files give a column
    assert hessian_trace(column).value == pytest.approx(one.value)
    with pytest.raises(
        DataError, match=r"output of shape \(1,\) and a target of shape \(\) a sample; HuberLoss needs equal"
    ):
        hessian_trace(Minimum(model, (x, t[:, 0]), nn.HuberLoss()))


@pytest.mark.parametrize("loss", [nn.HuberLoss(reduction="sum"), nn.KLDivLoss(reduction="sum")])
def test_other_reductions_are_refused(loss: nn.Module) -> None:
    with pytest.raises(DataError, match=r"with reduction='sum', which mixes the samples.*pass reduction='none'"):
        Loss.of(loss)


class _Weighted(nn.Module):
    def forward(self, output: Tensor, target: Tensor, *, weight: Tensor) -> Tensor:
        return (output - target).square().mean(1) * weight


@pytest.mark.parametrize(
    ("loss", "named"),
    [
        (nn.GaussianNLLLoss(), "GaussianNLLLoss(input, target, var)"),
        (nn.TripletMarginLoss(reduction="none"), "TripletMarginLoss(anchor, positive, negative)"),
        (F.gaussian_nll_loss, "gaussian_nll_loss(input, target, var, full"),
        (functools.partial(F.ctc_loss, blank=1), "ctc_loss(log_probs, targets, input_lengths"),
        (functools.partial(nn.GaussianNLLLoss()), "GaussianNLLLoss(input, target, var)"),
        (_Weighted(), "_Weighted(output, target, weight)"),
        (lambda output: output.sum(1), "<lambda>(output)"),
    ],
)
def test_losses_of_other_arguments_are_named(loss: Any, named: str) -> None:
    with pytest.raises(DataError, match=r"not called with \(output, target\) alone.*wrap it") as caught:
        Loss.of(loss)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_a_partial_that_fills_in_the_rest_is_taken() -> None:
    found = Loss.of(functools.partial(_Weighted(), weight=torch.tensor(2.0)))(CONFIDENT, SIGNS)
    torch.testing.assert_close(found, 2 * (CONFIDENT.double() - SIGNS.double()).square().mean(1))


def test_a_wrapped_loss_of_three_arguments() -> None:
    """The variance is the network's second output, as people wrap `GaussianNLLLoss`."""
    g = torch.Generator().manual_seed(0)
    x, t = torch.randn(12, 4, generator=g).double(), torch.randn(12, 1, generator=g).double()
    model, torchs = nn.Linear(4, 2).double(), nn.GaussianNLLLoss(reduction="none")

    def wrapped(output: Tensor, target: Tensor) -> Tensor:
        found: Tensor = torchs(output[:, :1], target, output[:, 1:].exp()).squeeze(1)
        return found

    def mean(weights: Tensor) -> Tensor:
        return wrapped(F.linear(x, weights[:8].view(2, 4), weights[8:]), t).mean()

    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    dense = torch.autograd.functional.hessian(mean, weights)  # type: ignore[no-untyped-call]
    found = hessian_top_eigenvalue(Minimum(model, (x, t), wrapped), tolerance=1e-8)
    assert found.value == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-7)
