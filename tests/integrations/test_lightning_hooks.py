"""Lightning's rarer ways through an epoch: batches that a hook skips, epochs cut short, passes that only measure."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
from lightning.pytorch.callbacks import StochasticWeightAveraging  # noqa: E402

from flatminima.integrations.lightning import FlatMinima  # noqa: E402
from flatminima.optim import SAM, PertOPT  # noqa: E402
from flatminima.optim.diagnostics import PerturbationWarning  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
WRAP = {"pertopt": lambda base: PertOPT(base, gamma=1.0), "sam": lambda base: SAM(base, rho=0.5)}
both = pytest.mark.parametrize("kind", WRAP)


def flat(module):
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


def loader(rows=96, batch=12):
    g = torch.Generator().manual_seed(5)
    return DataLoader(TensorDataset(torch.randn(rows, 6, generator=g).double(), torch.arange(rows) % 3), batch)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3)).double()


class Module(lightning.LightningModule):
    """Stops its epochs at a batch, in the way that is asked for; notes the weights after each batch."""

    def __init__(self, kind, stop_at=None, how="-1"):
        super().__init__()
        self.net, self.kind, self.stop_at, self.how = network(), kind, stop_at, how
        self.after = []

    def on_train_batch_start(self, batch, batch_idx):
        if self.after:
            assert torch.equal(flat(self.net), self.after[-1]), "noise in a hook"
        return -1 if self.how == "-1" and batch_idx == self.stop_at else None

    def training_step(self, batch, batch_idx):
        if batch_idx == self.stop_at:
            if self.how == "StopIteration":
                raise StopIteration
            if self.how == "None":
                return None
        return cross_entropy(self.net(batch[0]), batch[1])

    def on_train_batch_end(self, *_):
        self.after.append(flat(self.net))

    def configure_optimizers(self):
        return WRAP[self.kind](torch.optim.SGD(self.net.parameters(), 0.1))


def fit(module, callbacks, epochs, **settings):
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=epochs,
        callbacks=callbacks, **{"enable_checkpointing": False, **settings},
    )  # fmt: skip
    trainer.fit(module, loader())
    return trainer


@both
@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("how", ["-1", "StopIteration", "None"])
def test_no_noise_stays_after_an_epoch_that_is_cut_short(kind, how, epochs, tmp_path):
    """A block opened ahead of the module's hook would stay open, in the weights that fit() leaves and saves."""
    module = Module(kind, 4, how)
    fit(module, [FlatMinima()], epochs, accumulate_grad_batches=2, enable_checkpointing=True, default_root_dir=tmp_path)
    assert torch.equal(flat(module.net), module.after[-1])
    (saved,) = tmp_path.rglob("*.ckpt")
    state = torch.load(saved, weights_only=False)["state_dict"]
    assert torch.equal(state["net.0.weight"], module.net[0].weight)


def test_sam_forgets_the_micro_batches_of_a_step_that_was_cut_off():
    """Batch 2 of each epoch has no partner: Lightning drops its gradient, so it has no place in the next ascent."""
    module, net = Module("sam", 3), network()
    fit(module, [FlatMinima()], 2, accumulate_grad_batches=2)
    opt = WRAP["sam"](torch.optim.SGD(net.parameters(), 0.1))
    for _ in range(2):
        rows = list(loader())

        def passes(rows=rows):
            for x, y in rows[:2]:
                (cross_entropy(net(x), y) / 2).backward()

        passes()
        with opt.perturbed():
            passes()
        opt.step()
        opt.zero_grad()
        with torch.no_grad():
            net(rows[2][0])  # moves the running statistics only
    torch.testing.assert_close(flat(module.net), flat(net), rtol=1e-9, atol=1e-12)


@both
@pytest.mark.parametrize("place", ["ours first", "ours last", "without ours"])
def test_statistics_of_averaged_weights_are_measured_at_these(kind, place):
    """StochasticWeightAveraging's last epoch makes no backward pass: no noise, no ascent, no step is in it."""
    module, average = Module(kind), StochasticWeightAveraging(0.05, swa_epoch_start=2)
    module.on_train_batch_start = lambda *_: None  # the weights do change, to their average
    callbacks = {"ours first": [FlatMinima(), average], "ours last": [average, FlatMinima()], "without ours": [average]}
    trainer = fit(module, callbacks[place], 4)
    found = {name: b.clone() for name, b in module.net.named_buffers()}
    torch.optim.swa_utils.update_bn(loader(), module.net)
    for name, b in module.net.named_buffers():
        torch.testing.assert_close(found[name], b)
    assert not trainer.optimizers[0]._at.idle
    assert not vars(trainer.strategy).get("training_step")


def test_a_scaler_steps_not_in_an_epoch_that_only_measures():
    from lightning.pytorch.plugins.precision import MixedPrecision

    module, average = Module("pertopt"), StochasticWeightAveraging(0.05, swa_epoch_start=2)
    module.on_train_batch_start = lambda *_: None
    module.net.float()
    module.training_step = lambda batch, batch_idx: cross_entropy(module.net(batch[0].float()), batch[1])
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
    trainer = fit(module, [FlatMinima(), average], 4, plugins=[plugin])
    assert trainer.optimizers[0].clock.step == 4 * 8
    assert all(torch.equal(module.after[-1], other) for other in module.after[-8:])


class ByHand(Module):
    def __init__(self, kind, **options):
        super().__init__(kind)
        self.automatic_optimization = False
        self.options = options

    def training_step(self, batch, batch_idx):
        opt = self.optimizers()
        opt.zero_grad()
        if self.kind == "sam":
            self.manual_backward(cross_entropy(self.net(batch[0]), batch[1]))
        if self.kind == "pertopt" or opt.due:
            with opt.perturbed():
                self.manual_backward(cross_entropy(self.net(batch[0]), batch[1]))
        opt.step()

    def configure_optimizers(self):
        base = torch.optim.SGD(self.net.parameters(), 0.1)
        return (SAM if self.kind == "sam" else PertOPT)(base, **self.options)


@both
@pytest.mark.parametrize("manual", [False, True])
def test_an_epoch_that_nobody_tells_is_missed(kind, manual):
    """Without the callback PertOPT's noise never falls; from the Trainer's second epoch on that is known."""
    module = ByHand(kind) if manual else Module(kind)
    with pytest.warns(PerturbationWarning, match="takes every epoch for the first, and the Trainer's is 2"):
        fit(module, [], 2)
    again = ByHand(kind) if manual else Module(kind)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        trainer = fit(again, [FlatMinima(log=False)], 2)
    assert trainer.optimizers[0].epoch == 2
    assert not [w for w in seen if issubclass(w.category, PerturbationWarning)]


def test_a_start_that_never_comes_is_told_at_the_first_step():
    with pytest.warns(PerturbationWarning, match="start_epoch=2 goes by it"):
        fit(ByHand("sam", start_epoch=2), [], 1)
