"""Warm-up, validation, longer training, hooks, memory formats, interruptions, and several processes."""

from __future__ import annotations

import copy
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flatminima import interrupts
from flatminima.core.distributed import Ranks
from flatminima.errors import DataError, ModelError, UsageError
from flatminima.optim import SAM, PertOPT
from flatminima.training import Session, TrainConfig, Training, evaluate, train
from processes import ranks

pytestmark = pytest.mark.slow


def blobs(n: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0]])[y] + torch.randn(n, 2, generator=g), y


def small(dropout: float = 0.0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3))


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_rate_rises_by_the_step_and_then_follows_its_schedule() -> None:
    """Against rates written out by hand; SGD without momentum moves by the rate times the gradient."""
    x, y = blobs()
    config = TrainConfig(lr=0.4, momentum=0.0, batch_size=20, epochs=4, warmup=2, schedule="step", milestones=(3,))
    rates: list[float] = []
    training = Training(small(), x, y, config=config)
    history = training.run(on_step=lambda at: rates.append(at.optimizer.param_groups[0]["lr"]))
    ramp = [0.4 * k / 6 for k in range(1, 7)]
    assert rates == pytest.approx([*ramp, 0.4, 0.4, 0.4, 0.04, 0.04, 0.04])
    assert [e.lr for e in history.epochs] == pytest.approx([0.2, 0.4, 0.4, 0.04])
    assert training.optimizer.param_groups[0]["lr"] == 0.4


def overfitting() -> tuple[nn.Module, dict[str, Any]]:
    """Wrong labels on few samples: the validation loss falls, then rises."""
    x, y = blobs(24)
    y = torch.where(torch.arange(24) % 4 == 0, (y + 1) % 3, y)
    return small(), {"inputs": x, "targets": y, "validation": blobs(60, 1)}


def test_the_best_epoch_by_validation_is_kept_and_the_patience_is_counted_from_it() -> None:
    """Against a loop by hand that looks at the weights after every epoch."""
    config = TrainConfig(lr=0.3, batch_size=8, epochs=60)
    model, data = overfitting()
    seen: list[tuple[float, Tensor]] = []
    history = train(
        model,
        config=config,
        on_epoch=lambda _, m: seen.append((evaluate(m, *data["validation"]).loss, flat(m))),
        **data,
    )
    losses = [loss for loss, _ in seen]
    best = losses.index(min(losses))
    assert 0 < best < 50, "the case overfits"
    assert [e.held_out["validation"].loss for e in history.epochs] == losses and history.best == best + 1
    assert torch.equal(flat(model), seen[-1][1]), "unless it is asked for, the last weights stay"
    model, data = overfitting()
    history = train(model, config=TrainConfig(lr=0.3, batch_size=8, epochs=60, keep_best=True, stop_after=4), **data)
    waited = next(i for i in range(60) if i - losses.index(min(losses[: i + 1])) >= 4)
    assert history.stopped_because == "validation" and len(history.epochs) == waited + 1
    first = losses.index(min(losses[: waited + 1]))
    assert history.best == first + 1 and torch.equal(flat(model), seen[first][1])
    assert history.final == evaluate(model, data["inputs"], data["targets"])


def test_what_goes_by_validation_needs_it() -> None:
    x, y = blobs()
    for options in ({"keep_best": True}, {"stop_after": 2}):
        with pytest.raises(UsageError, match="go by validation samples"):
            train(small(), x, y, config=TrainConfig(**options))
    with pytest.raises(UsageError, match="each decide the final weights"):
        TrainConfig(keep_best=True, average_from=2)
    with pytest.raises(DataError, match=r"validation: 60 inputs need int64 targets"):
        train(small(), x, y, validation=(x, y[:5]))


@pytest.mark.parametrize(
    "options",
    [
        {}, {"schedule": "step", "milestones": (1, 4)}, {"warmup": 4}, {"average_from": 2},
        {"keep_best": True, "stop_after": 50}, {"schedule": "plateau", "patience": 0},
    ],
    ids=str,
)  # fmt: skip
def test_a_finished_training_goes_on_to_the_bits_of_a_longer_one(tmp_path: Path, options: dict[str, Any]) -> None:
    x, y = blobs()
    held_out = {"validation": blobs(30, 1)} if "keep_best" in options or "schedule" in options else {}

    def run(folder: Path, epochs: int) -> tuple[Tensor, list[dict[str, Any]]]:
        config = TrainConfig(lr=0.1, batch_size=20, epochs=epochs, **options)
        model = small(dropout=0.3)
        session = Session(folder, {"epochs": epochs, "lr": 0.1}, fixed=None)
        session.run(Training(model, x, y, config=config, held_out=held_out))
        return flat(model), [{k: v for k, v in row.items() if k != "seconds"} for row in session.rows]

    whole = run(tmp_path / "whole", 6)
    run(tmp_path / "longer", 3)
    longer = run(tmp_path / "longer", 6)
    assert torch.equal(longer[0], whole[0]) and longer[1] == whole[1] and len(longer[1]) == 6
    with pytest.raises(UsageError, match="holds a training with epochs=6, not 3"):
        run(tmp_path / "longer", 3)
    with pytest.raises(UsageError, match=r"epochs=6, not 9 \(its length was given with it\)"):
        Session(tmp_path / "longer", {"epochs": 9, "lr": 0.1})


def test_modes_that_a_hook_changes_are_put_back() -> None:
    """`model.eval()` in a hook, never undone, trained the rest without dropout and without moving BatchNorm."""
    x, y = blobs()
    models = []
    for meddle in (False, True):
        model = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
        model.load_state_dict(models[0][1] if models else model.state_dict())
        start = copy.deepcopy(model.state_dict())
        model[2].eval()  # a choice of the user's, that stays

        def hook(at: Training, meddle: bool = meddle) -> None:
            if meddle:
                at.model.train(at.steps % 2 == 0)

        Training(model, x, y, config=TrainConfig(epochs=3, batch_size=20)).run(on_step=hook, on_epoch=hook)
        assert [m.training for m in model] == [True, True, False, True]
        models.append((model, start))
    (plain, _), (meddled, _) = models
    assert all(torch.equal(v, meddled.state_dict()[k]) for k, v in plain.state_dict().items())


@pytest.mark.parametrize("wrap", [lambda b, _: b, lambda b, _: PertOPT(b, gamma=0.05), lambda b, m: SAM(b, model=m)])
def test_channels_last_twice_with_one_optimizer_is_the_plain_training_to_rounding(wrap: Any) -> None:
    """State that stays in the other order of memory is paired with wrong weights, in silence."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(24, 3, 6, 6, generator=g), torch.arange(24) % 3
    found = []
    for channels_last in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 3)
        )
        if channels_last:  # one layer has that format already, and keeps it
            model[2].weight.data = model[2].weight.data.contiguous(memory_format=torch.channels_last)
        strides = [p.stride() for p in model.parameters()]
        optimizer = wrap(torch.optim.Adam(model.parameters(), 1e-3), model)
        config = TrainConfig(epochs=2, batch_size=12, channels_last=channels_last)
        for _ in range(2):
            train(model, x, y, config=config, optimizer=optimizer)
            assert [p.stride() for p in model.parameters()] == strides
            for p, state in optimizer.state.items():
                assert all(v.stride() == p.stride() for v in state.values() if isinstance(v, Tensor) and v.dim() == 4)
        found.append(flat(model))
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 1e-3


def interrupt_after(steps: int) -> Any:
    def hook(at: Training) -> None:
        if at.steps == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    return hook


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_a_signal_keeps_the_last_step_and_the_same_call_ends_with_the_same_bits(tmp_path: Path, steps: int) -> None:
    """Within an epoch, at its end, and just after it began; the checkpoint's interval has not passed."""
    x, y = blobs()
    config = TrainConfig(lr=0.1, batch_size=20, epochs=3)
    whole = small(0.3)
    train(whole, x, y, config=config)
    model = small(0.3)
    with interrupts.handled(), pytest.raises(interrupts.Interrupted) as stop:
        Session(tmp_path, {}).run(Training(model, x, y, config=config), on_step=interrupt_after(steps))
    assert stop.value.signum == signal.SIGTERM and f"step {steps} of 9 is kept" in stop.value.kept
    model = small(0.3)
    session = Session(tmp_path, {})
    session.run(Training(model, x, y, config=config))
    assert torch.equal(flat(model), flat(whole)) and [row["epoch"] for row in session.rows] == [1, 2, 3]


def test_a_signal_during_an_evaluation_does_not_wait_for_its_end(tmp_path: Path) -> None:
    """Evaluations of many samples may take minutes; the epoch's end is then done again, once."""
    x, y = blobs()
    batches: list[int] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small(0.3)

        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                batches.append(len(x))
                if armed and len(batches) == 3:
                    os.kill(os.getpid(), signal.SIGINT)
            return self.net(x)

    config = TrainConfig(
        lr=0.1, batch_size=20, epochs=3, target_loss=1e-9, keep_best=True, schedule="plateau", patience=0
    )
    held_out = {"validation": blobs(3000, 1)}
    armed = False
    whole = Watched()
    expected = Training(whole, x, y, config=config, held_out=held_out).run()
    armed = True
    batches.clear()
    with interrupts.handled(), pytest.raises(interrupts.Interrupted):
        Session(tmp_path, {}).run(Training(Watched(), x, y, config=config, held_out=held_out))
    assert len(batches) == 3, "six batches of 512 were not waited for"
    model = Watched()
    session = Session(tmp_path, {})
    history = session.run(Training(model, x, y, config=config, held_out=held_out))
    assert torch.equal(flat(model), flat(whole)) and history.best == expected.best
    assert [row["validation_loss"] for row in session.rows] == [e.held_out["validation"].loss for e in expected.epochs]


def test_without_handlers_a_signal_is_pythons_own() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with interrupts.handled():
        assert signal.getsignal(signal.SIGTERM) != before
        with pytest.raises(interrupts.Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
            interrupts.raise_if_interrupted()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "a second one stops at once"
    assert signal.getsignal(signal.SIGTERM) == before and not interrupts.requested()


def shared_run(rank: int, folder: str, port: int) -> None:
    """One of two processes: every method, the refusals, and a signal that only one of them gets."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = {name: trained(name, Ranks()) for name in METHODS}
    refused = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    with pytest.raises(ModelError, match="BatchNorm on 2 processes would see a part of each batch"):
        Training(refused, *blobs(), ranks=Ranks())
    with pytest.raises(UsageError, match="2 processes share this training"):
        Training(small(), *blobs(), backward=lambda *_: torch.zeros(()), ranks=Ranks())
    session = Session(Path(folder), {"a": 1}, writes=rank == 0)
    model = small()
    hook = interrupt_after(4) if rank == 1 else None  # only one of them is told to stop
    with interrupts.handled():
        try:
            session.run(
                Training(model, *blobs(), config=TrainConfig(batch_size=20, epochs=4), ranks=Ranks()), on_step=hook
            )
            raise AssertionError("it was not stopped")
        except interrupts.Interrupted:
            pass
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


METHODS = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), 0.1, momentum=0.9, weight_decay=0.1),
    "adam": lambda m: torch.optim.Adam(m.parameters(), 0.01),
    "sam": lambda m: SAM(torch.optim.SGD(m.parameters(), 0.1), rho=0.2, model=m),
    "pertopt": lambda m: PertOPT(torch.optim.Adam(m.parameters(), 0.01), gamma=0.05, steps_per_epoch=4),
}


class Partly(nn.Module):
    """A parameter without a gradient: with weight decay it must not move, on several processes neither."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.unused = small(), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def trained(name: str, ranks: Ranks | None) -> dict[str, Any]:
    torch.manual_seed(0)
    model = Partly().double()
    x, y = blobs(61)
    training = Training(
        model, x.double(), y, config=TrainConfig(batch_size=15, epochs=3, target_loss=1e-9),
        optimizer=METHODS[name](model),
        augment=lambda x, g: x + 0.1 * torch.randn(x.shape, generator=g, dtype=x.dtype), ranks=ranks,
        held_out={"validation": (x[:1].double(), y[:1])},
    )  # fmt: skip
    history = training.run()
    return {
        "weights": flat(model),
        "losses": [(e.loss, e.error, e.held_out["validation"].loss) for e in history.epochs],
    }


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    """To the order of sums: every method, augmentation, batches of 15, 15, 15 and 16, evaluations, an idle process."""
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    ranks(shared_run, str(tmp_path), port)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    for name in METHODS:
        alone = trained(name, None)
        assert torch.equal(first[name]["weights"], second[name]["weights"]), "they end alike, bit for bit"
        torch.testing.assert_close(first[name]["weights"], alone["weights"], rtol=1e-9, atol=1e-11)
        assert [v for e in first[name]["losses"] for v in e] == pytest.approx([v for e in alone["losses"] for v in e])
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert (
        state["position"][2] >= 4 and json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["epoch"] == 1
    )
    model = small()
    Session(tmp_path, {"a": 1}).run(Training(model, *blobs(), config=TrainConfig(batch_size=20, epochs=4)))
    whole = small()
    train(whole, *blobs(), config=TrainConfig(batch_size=20, epochs=4))
    torch.testing.assert_close(flat(model), flat(whole), rtol=1e-5, atol=1e-6)


def test_the_gradient_by_hand_of_a_shared_step() -> None:
    """The oracle of the test above, once: the mean over 5 samples is not the mean of means over 2 and 3."""
    x, y = blobs(5)
    model = small()
    whole = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
    parts = [
        torch.autograd.grad(cross_entropy(model(x[r]), y[r]), list(model.parameters())) for r in (slice(2), slice(2, 5))
    ]
    assert torch.allclose(whole[0], 0.4 * parts[0][0] + 0.6 * parts[1][0], atol=1e-6)
    assert not torch.allclose(whole[0], (parts[0][0] + parts[1][0]) / 2, atol=1e-6)


class Switching(torch.optim.SGD):
    """As Schedule-Free's: eval() puts other weights in place, train() takes them away again."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr)
        self.param_groups[0]["train_mode"] = False

    @torch.no_grad()
    def _to(self, mode: bool) -> None:
        group = self.param_groups[0]
        if group["train_mode"] != mode:
            for p in group["params"]:
                p.mul_(2.0 if mode else 0.5)
        group["train_mode"] = mode

    def train(self) -> None:
        self._to(True)

    def eval(self) -> None:
        self._to(False)

    def step(self, closure: Any = None) -> Any:
        assert self.param_groups[0]["train_mode"]
        return super().step(closure)


def test_an_optimizer_with_weights_of_its_own_for_evaluation(tmp_path: Path) -> None:
    """Steps meet its training weights; evaluations, hooks at an epoch's end and the result meet the others; so does
    a run that goes on from any step, to the same bits."""
    x, y = blobs()
    config = TrainConfig(lr=0.1, batch_size=20, epochs=3, keep_best=True, target_loss=1e-9, look_every=2)

    def training() -> Training:
        model = small()
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(0.5)
        return Training(
            model, x, y, config=config, optimizer=Switching(model.parameters(), 0.1), held_out={"validation": (x, y)}
        )

    whole, states = training(), []
    history = whole.run(on_step=lambda at: states.append(copy.deepcopy(at.state_dict())))
    by_hand = small()
    opt = torch.optim.SGD(by_hand.parameters(), 0.1)
    order = [torch.cat(training()._order()) for _ in range(1)]  # of the first epoch
    for rows in order[0].split(20):
        opt.zero_grad()
        cross_entropy(by_hand(x[rows]), y[rows]).backward()
        opt.step()
    first = history.epochs[0].held_out["validation"].loss
    halved = copy.deepcopy(by_hand)
    with torch.no_grad():
        for p in halved.parameters():
            p.mul_(0.5)
    assert first == pytest.approx(evaluate(halved, x, y).loss, rel=1e-6)
    assert history.final == evaluate(whole.model, x, y)
    for state in states[:-1:2]:
        again = training()
        again.load_state_dict(state)
        again.run()
        assert torch.equal(flat(again.model), flat(whole.model))
