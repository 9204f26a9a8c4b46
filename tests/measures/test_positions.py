"""Margin, entropy and robustness where tokens and pixels have labels, against loops over positions."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from measure_oracle import blobs, generator, mlp, randomise
from torch import nn

from case_networks import Net
from flatminima import Minimum
from flatminima.core.statistic import Fixed
from flatminima.errors import UsageError
from flatminima.measures import margin, output_entropy, robustness
from flatminima.statistics import PositionJacobian, PositionSums

N, CLASSES, SIDE, TOKENS = 11, 3, 4, 5


def focal(output, target):
    kept = target != 255
    log_p = output.log_softmax(1).gather(1, torch.where(kept, target, 0).unsqueeze(1)).squeeze(1)
    losses = -((1 - log_p.exp()) ** 2) * log_p * kept
    return losses.flatten(1).sum(1) / kept.flatten(1).sum(1)


def pixels(ignored):
    net = randomise(nn.Conv2d(2, CLASSES, 3, padding=1), 1)
    x = torch.randn(N, 2, SIDE, SIDE, generator=generator(2), dtype=torch.float64)
    y = torch.randint(0, CLASSES, (N, SIDE, SIDE), generator=generator(3))
    if ignored is not None:
        drop = torch.rand(y.shape, generator=generator(4)) < 0.4
        drop[0] = True
        drop[0, 1, 2] = False
        y = torch.where(drop, ignored, y)
    return net, x, y, ignored


def tokens(width=CLASSES):
    net = randomise(nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, width)), 1)
    x = torch.randn(N, TOKENS, 2, generator=generator(2), dtype=torch.float64)
    y = torch.randint(0, width, (N, TOKENS), generator=generator(3))
    y[torch.rand(y.shape, generator=generator(4)) < 0.3] = -100
    y[:, 1] = 0  # one label a sample at least, also behind the first
    return net, x, y, -100


def mean_over_pixels(output, target):
    return F.cross_entropy(output, target, reduction="none").mean((1, 2))


def mean_over_tokens(output, target):
    losses = F.cross_entropy(output.transpose(1, 2), target, reduction="none")
    return losses.sum(1) / (target != -100).sum(1)


def hardest(output, target):
    """The mean over each image's four hardest pixels that are not ignored."""
    losses = F.cross_entropy(output, target, reduction="none", ignore_index=0)
    return losses.flatten(1).topk(4, 1).values.mean(1)


def inner(output, target):
    """All but the border, which has labels that do not count."""
    return F.cross_entropy(output, target, reduction="none")[:, 1:-1, 1:-1].mean((1, 2))


def of_float32(output, target):
    """Its class weights are in float32."""
    return F.cross_entropy(output, target, reduction="none", weight=torch.tensor([1.0, 2.0, 3.0])).mean((1, 2))


# loss, network and data, dimension of the classes, unit
PROBLEMS = {
    "pixels, a callable": (mean_over_pixels, partial(pixels, None), 1, "position"),
    "pixels, torch's loss": (
        nn.CrossEntropyLoss(reduction="none", ignore_index=255), partial(pixels, 255), 1, "position"),
    "pixels, weights and smoothing": (
        partial(F.cross_entropy, reduction="none", weight=torch.tensor([1.0, 2.0, 3.0]).double(), label_smoothing=0.1),
        partial(pixels, -100), 1, "position"),
    "pixels, the hardest": (hardest, partial(pixels, 0), 1, "position"),
    "pixels, within the border": (inner, partial(pixels, None), 1, "position"),
    "pixels, weights in float32": (of_float32, partial(pixels, None), 1, "position"),
    "pixels, focal loss": (focal, partial(pixels, 255), 1, "position"),
    "tokens": ("token_cross_entropy", tokens, -1, "token"),
    "tokens, a callable": (mean_over_tokens, tokens, -1, "token"),
    "tokens, as many as classes": (mean_over_tokens, partial(tokens, TOKENS), -1, "token"),
    "next tokens": ("causal_lm", tokens, -1, "token"),
}  # fmt: skip


def by_position(name):
    """(logits, label, sample, position) of each labelled position, by a loop."""
    loss, make, dim, _ = PROBLEMS[name]
    net, x, y, ignored = make()
    rows = net(x).detach().movedim(dim, -1).reshape(N, -1, net(x).shape[dim])
    labels = y.reshape(N, -1)
    shift = int(loss == "causal_lm")
    for i in range(N):
        for t in range(labels.shape[1] - shift):
            label = int(labels[i, t + shift])
            border = loss is inner and not (0 < t // SIDE < SIDE - 1 and 0 < t % SIDE < SIDE - 1)
            if label != ignored and not border:
                yield rows[i, t], label, i, t


def minimum(name, batch_size=4):
    loss, make, _, _ = PROBLEMS[name]
    net, x, y, _ = make()
    if loss is of_float32:
        net, x = net.float(), x.float()
    return Minimum(net, (x, y), loss, batch_size=batch_size)


def rounding(name, double):
    return 1e-5 if PROBLEMS[name][0] is of_float32 else double


@pytest.mark.parametrize("name", PROBLEMS)
def test_each_labelled_position_has_a_margin(name):
    margins = sorted(float(z[y] - max(v for j, v in enumerate(z) if j != y)) for z, y, _, _ in by_position(name))
    for fraction in (0.05, 0.4):
        found = margin(minimum(name), fraction=fraction)
        expected = margins[math.ceil(fraction * len(margins)) - 1]
        assert found.value == pytest.approx(expected, rel=rounding(name, 1e-12))
    assert found.details["n"] == len(margins) and found.details["unit"] == PROBLEMS[name][3]
    assert found.details["train_error"] == pytest.approx(sum(m <= 0 for m in margins) / len(margins))


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_entropy_is_the_mean_over_labelled_positions(name):
    """Catches a mean of the samples' means where their counts differ, and ignored positions."""
    entropies = [float(torch.special.entr(z.softmax(0)).sum()) for z, _, _, _ in by_position(name)]
    found = output_entropy(minimum(name))
    assert found.value == pytest.approx(sum(entropies) / len(entropies), rel=rounding(name, 1e-12))
    assert (found.details["n"], found.details["positions"]) == (N, len(entropies))
    # a jackknife over samples: positions of one sample are not independent
    samples = [i for *_, i, _ in by_position(name)]
    without = [
        sum(e for e, s in zip(entropies, samples, strict=True) if s != i)
        / sum(s != i for s in samples) for i in range(N)
    ]  # fmt: skip
    middle = sum(without) / N
    jackknife = math.sqrt((N - 1) / N * sum((w - middle) ** 2 for w in without))
    assert found.stderr == pytest.approx(jackknife, rel=0.15)


def squares(net, x, i, t, dim, of):
    """||d f_t / dx_i||_2^2."""

    def f(sample):
        z = net(sample.unsqueeze(0)).movedim(dim, -1).reshape(-1, net(x[:1]).shape[dim])[t]
        return z if of == "logits" else z.softmax(0)

    return float(torch.linalg.svdvals(torch.autograd.functional.jacobian(f, x[i]).flatten(1))[0] ** 2)


@pytest.mark.parametrize("of", ["probabilities", "logits"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_robustness_looks_at_a_labelled_position_of_each_sample(name, of):
    """Each sum is the number of positions times one position's squared norm, in any batches."""
    _, make, dim, unit = PROBLEMS[name]
    net, x, _, _ = make()
    truth = {}
    for _, _, i, t in by_position(name):
        truth.setdefault(i, []).append(squares(net, x, i, t, dim, of))
    m = minimum(name)
    found = m[PositionJacobian(9, of, 5)]
    for place, i in enumerate(m.samples.order(5)[:9].tolist()):
        assert float(found.counts[place]) == len(truth.get(i, []))
        if i not in truth:
            continue  # without a single label
        one = float(found.sums[place]) / len(truth[i])
        assert min(abs(one / v - 1) for v in truth[i]) < rounding(name, 1e-8)
    again = minimum(name, batch_size=100)[PositionJacobian(9, of, 5)]
    torch.testing.assert_close(found.sums, again.sums, rtol=rounding(name, 1e-10), atol=0)
    estimate = robustness(m, samples=9, of=of, seed=5)
    assert estimate.value == pytest.approx(float(found.sums.sum() / found.counts.sum()), rel=1e-12)
    assert estimate.details["unit"] == unit and estimate.details["of"] == of


def test_robustness_is_unbiased_over_positions():
    """200 draws of positions, at their expectation within 4 standard errors; counts from 1 to 16."""
    _, make, dim, _ = PROBLEMS["pixels, torch's loss"]
    net, x, _, _ = make()
    every = [squares(net, x, i, t, dim, "probabilities") for _, _, i, t in by_position("pixels, torch's loss")]
    m = minimum("pixels, torch's loss", batch_size=64)
    found = torch.tensor([robustness(m, seed=s).value for s in range(200)])
    assert abs(float(found.mean()) - sum(every) / len(every)) < 4 * float(found.std()) / math.sqrt(200)


def test_the_mean_of_counts_that_differ():
    given = Fixed(
        {PositionJacobian(300, "logits", 0): PositionSums(torch.tensor([6.0, 1.0]), torch.tensor([2.0, 1.0]), "token")}
    )
    assert robustness(given, of="logits").value == pytest.approx(7 / 3)


# -- logits ----------------------------------------------------------------------------------------------------------


def _logit_norms(model, x):
    jacobians = [torch.autograd.functional.jacobian(lambda t: model(t.unsqueeze(0))[0], s).flatten(1) for s in x]
    return torch.stack([torch.linalg.svdvals(j)[0] ** 2 for j in jacobians])


@pytest.mark.parametrize("classes", [3, 70])
def test_robustness_of_the_logits(classes):
    """A backward pass a class, and Lanczos above 64; the loss does not matter."""
    x, y = blobs(23, 5, 3)
    model = mlp(5, 80, classes)
    norms = _logit_norms(model, x)
    for target, loss in (
        (y, "cross_entropy"),
        (model(x).detach() + 1, "mse"),
        ((model(x) > 0).double(), "binary_cross_entropy"),
    ):
        found = robustness(Minimum(model, (x, target), loss, batch_size=7), of="logits")
        assert found.value == pytest.approx(float(norms.mean()), rel=1e-7)
        assert found.stderr == pytest.approx(float(norms.std() / 23**0.5), rel=1e-6)


def test_robustness_of_the_logits_scales_with_them():
    x, y = blobs(9, 5, 3)
    model = mlp(5, 8, 3)
    before = robustness(Minimum(model, (x, y)), of="logits").value
    with torch.no_grad():
        model[-1].weight *= 1000
        model[-1].bias *= 1000
    assert robustness(Minimum(model, (x, y)), of="logits").value == pytest.approx(1e6 * before, rel=1e-9)


def test_unknown_outputs_are_refused():
    with pytest.raises(UsageError, match="'probabilities' or 'logits'"):
        robustness(Minimum(mlp(3, 4, 2), blobs(9, 3, 2)), of="softmax")


# -- what has no labels ----------------------------------------------------------------------------------------------


def poisson(output, target):
    return F.poisson_nll_loss(output, target.to(output), reduction="none").mean(1)


NONE = {
    "a count": (poisson, lambda x: torch.randint(0, 4, (len(x), 2), generator=generator(0))),
    "a squared distance to integers": (
        lambda o, t: (o[:, 0] - t.to(o)).square(), lambda x: torch.randint(0, 2, (len(x),), generator=generator(0))),
    "several labels": ("binary_cross_entropy", lambda x: (x[:, :2] > 0).double()),
    "soft labels": (nn.CrossEntropyLoss(reduction="none"), lambda x: x[:, :2].softmax(1)),
}  # fmt: skip


@pytest.mark.parametrize("name", NONE)
def test_targets_that_are_no_classes_are_undefined(name):
    """Integers alone make no classes: the loss must lead each position to its label's logit."""
    loss, targets = NONE[name]
    x = blobs(9, 3, 2)[0]
    m = Minimum(mlp(3, 4, 2), (x, targets(x)), loss)
    for measure in (margin, output_entropy, robustness):
        assert "targets are not classes" in measure(m).undefined
    assert robustness(m, of="logits").value > 0


def test_a_callable_of_one_label_a_sample_is_read_as_one():
    x, y = blobs(23, 5, 3)
    model = mlp(5, 8, 3)
    named = Minimum(model, (x, y))
    called = Minimum(model, (x, y), lambda o, t: -o.log_softmax(1)[torch.arange(len(o)), t])
    hinge = Minimum(model, (x, y), lambda o, t: F.multi_margin_loss(o, t, reduction="none"))
    for measure in (margin, output_entropy, robustness):
        for other in (called, hinge):
            assert measure(other).value == pytest.approx(measure(named).value, rel=1e-9)
    assert margin(called).details["unit"] == "sample"


def test_log_probabilities_picked_by_the_label():
    x, y = blobs(23, 5, 3)
    model = nn.Sequential(mlp(5, 8, 3), nn.LogSoftmax(1))
    named, called = Minimum(model[0], (x, y)), Minimum(model, (x, y), lambda o, t: -o.gather(1, t[:, None])[:, 0])
    assert margin(called).value == pytest.approx(margin(named).value, rel=1e-9)
    assert output_entropy(called).value == pytest.approx(output_entropy(named).value, rel=1e-9)


def test_token_ids_are_differentiated_by_their_embeddings():
    net = randomise(Net(lambda s, x: s.out(s.table(x)), table=nn.Embedding(5, 3), out=nn.Linear(3, 4)), 1)
    x = torch.randint(0, 5, (9, 6), generator=generator(0))
    m = Minimum(net, (x, torch.randint(0, 4, (9, 6), generator=generator(1))), "token_cross_entropy")
    found = robustness(m)
    jacobians = []
    for token in range(5):  # a row of the table to the probabilities of its own position
        e = net.table.weight[token].detach()
        j = torch.autograd.functional.jacobian(lambda e: net.out(e).softmax(0), e)
        jacobians.append(float(torch.linalg.matrix_norm(j, 2)) ** 2)
    assert min(jacobians) <= found.value <= max(jacobians)
    assert output_entropy(m).value > 0


def test_data_without_a_label_is_undefined():
    net, x, y, _ = pixels(None)
    m = Minimum(net, (x, torch.full_like(y, -100)), lambda o, t: F.cross_entropy(o, t, reduction="none").sum((1, 2)))
    for measure in (margin, output_entropy, robustness):
        assert measure(m).undefined == "no position of the data has a label that counts"
