"""Every loss that can be trained on, against torch's own functions and loops by hand; several inputs; refusals."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatminima.errors import DataError, UnknownName
from flatminima.optim import SAM, FisherTrace
from flatminima.training import MeanLoss, Session, TrainConfig, Training, assess, evaluate, method, train
from flatminima.training.objective import Called, Objective


class Tokens(nn.Module):
    """Logits (batch, tokens, classes) of tokens."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 6), nn.Linear(6, 5)

    def forward(self, x):
        return self.head(torch.tanh(self.embed(x).cumsum(1)))


def made(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def draws(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def masked():
    """Texts of tokens, of which different numbers count."""
    tokens = torch.randint(0, 5, (12, 7), generator=torch.Generator().manual_seed(3))
    labels = tokens.clone()
    labels[torch.arange(7) >= 2 + torch.arange(12).unsqueeze(1) % 5] = -100
    return tokens, labels


def per_text(z, y):
    each = F.cross_entropy(z.movedim(2, 1), y, reduction="none", ignore_index=-100)
    return (each.sum(1) / (y != -100).sum(1)).mean()


CASES = {
    "mse": (made, draws(12, 4), draws(12, 2), F.mse_loss),
    "binary_cross_entropy": (
        made, draws(12, 4), (draws(12, 2) > 0).float(), F.binary_cross_entropy_with_logits,
    ),
    "token_cross_entropy": (lambda: (torch.manual_seed(0), Tokens())[1], *masked(), per_text),
    "causal_lm": (
        lambda: (torch.manual_seed(0), Tokens())[1], *masked(), lambda z, y: per_text(z[:, :-1], y[:, 1:]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("loss", CASES)
def test_gradient_descent_by_hand(loss):
    """Ragged batches would show a mean of means; torch's own function is the truth."""
    make, x, y, truth = CASES[loss]
    ours, theirs = make(), make()
    history = train(ours, x, y, config=TrainConfig(lr=0.2, momentum=0.0, batch_size=12, epochs=5), loss=loss)
    for _ in range(5):
        found = torch.autograd.grad(truth(theirs(x), y), list(theirs.parameters()))
        with torch.no_grad():
            for p, g in zip(theirs.parameters(), found, strict=True):
                p.sub_(0.2 * g)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    assert history.final.loss == pytest.approx(truth(theirs(x), y).item(), rel=1e-5)
    assert assess(ours, x, y, 5, objective=Objective(loss)).loss == pytest.approx(history.final.loss, rel=1e-6)


def test_what_is_wrong_by_each_loss():
    """By hand: one of three; two labels of four; of the tokens that count, those of the next position."""
    z = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]])
    assert Objective().wrong(z, torch.tensor([0, 1, 1])) == 1
    assert Objective(nn.CrossEntropyLoss()).wrong(z, torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.1, 0.9]])) == 1
    assert Objective("binary_cross_entropy").wrong(z[:2] - 0.5, torch.tensor([[1.0, 1.0], [1.0, 1.0]])) == 1.0
    tokens = F.one_hot(torch.tensor([[1, 2, 0], [1, 1, 1]]), 3).float()
    labels = torch.tensor([[0, 1, 0], [2, 1, -100]])
    assert Objective("token_cross_entropy").wrong(tokens, labels) == pytest.approx(2 / 3 + 1 / 2)
    assert Objective("causal_lm").wrong(tokens, labels) == pytest.approx(1 / 2)
    assert Objective("mse").wrong(z, z) is None
    assert Objective(lambda z, y: (z - y).square().sum(1)).wrong(z, z) is None


def test_a_loss_without_errors_in_history_files_and_resumption(tmp_path):
    _, x, y, _ = CASES["mse"]
    config = TrainConfig(lr=0.1, epochs=3, batch_size=5, keep_best=True)

    def training():
        return Training(made(), x, y, config=config, loss="mse", held_out={"validation": (x[:4], y[:4])})

    whole = training()
    history = Session(tmp_path, {"epochs": 3}).run(whole)
    assert isinstance(history.final, MeanLoss) and history.final.error is None
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["error"] for row in rows] == [None] * 3 and rows[0]["validation_error"] is None
    json.dumps(history.to_dict(), allow_nan=False)
    again = training()
    assert Session(tmp_path, {"epochs": 3}).run(again).epochs[0].held_out == history.epochs[0].held_out


@pytest.mark.parametrize("form", ["tuple", "dictionary"])
def test_several_inputs_are_those_of_one_joined(form):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = made()

        def forward(self, a, b):
            return {"logits": self.net(torch.cat([a, b], 1))}

    x, y = draws(20, 4), torch.arange(20) % 2
    parts = (x[:, :3], x[:, 3:])
    inputs = parts if form == "tuple" else dict(zip("ab", parts, strict=True))
    config = TrainConfig(lr=0.3, epochs=2, batch_size=7, average_from=1)
    one, two = made(), Two()
    train(one, x, y, config=config)
    history = train(two, inputs, y, config=config, validation=(inputs, y))
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(p, q)
    assert history.final == evaluate(one, x, y)


def test_the_methods_take_every_loss_and_every_input():
    """FisherTrace's mean over parts weighs them as the loss does: without a penalty it is the plain step."""
    tokens, labels = masked()
    config = TrainConfig(lr=0.2, momentum=0.0, batch_size=12, epochs=1)
    found = []
    for name, options in (("plain", {}), ("fisher_trace", {"beta": 1e-12, "sub_batches": 5}), ("sam", {"rho": 1e-7})):
        torch.manual_seed(0)
        model = Tokens()
        base = torch.optim.SGD(model.parameters(), 0.2)
        chosen = method(name, model, base, options, steps_per_epoch=1)
        train(
            model, tokens, labels, config=config, loss="token_cross_entropy", optimizer=chosen.optimizer,
            backward=chosen.backward,
        )  # fmt: skip
        found.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    assert isinstance(chosen.optimizer, SAM)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)
    assert FisherTrace(Called(made())).model.model is not None


@pytest.mark.parametrize(("loss", "x", "y", "message"), [
    ("mse", draws(6, 4), draws(6), "shape"),
    ("mse", draws(6, 4), draws(5, 2), "got 6 inputs and 5 targets"),
    ("cross_entropy", draws(6, 4), torch.tensor([0, 1, 0, 1, 0, 2]), "a label is 2 but the model has 2 outputs"),
    ("cross_entropy", draws(6, 4), draws(6, 2), "need int64 targets"),
    ("binary_cross_entropy", draws(6, 4), torch.zeros(6, 3), "shape"),
    ("token_cross_entropy", draws(6, 4), torch.zeros(6, dtype=torch.int64), "needs logits"),
    (nn.CrossEntropyLoss(ignore_index=0), draws(6, 4), torch.arange(6) % 2, "label 0 of sample 0 is ignored"),
])  # fmt: skip
def test_targets_that_do_not_fit_are_refused_before_the_first_step(loss, x, y, message):
    model = made()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(DataError, match=message):
        train(model, x, y, loss=loss)
    assert all(map(torch.equal, before, model.parameters()))


def test_an_unknown_loss():
    with pytest.raises(UnknownName, match="unknown loss 'mae'"):
        train(made(), draws(6, 4), draws(6, 2), loss="mae")
