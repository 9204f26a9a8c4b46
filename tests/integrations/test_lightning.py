"""Lightning's Trainer around each method, against a loop by hand; accumulation, checkpoints, refusals."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

from flatminima.errors import UsageError  # noqa: E402
from flatminima.integrations.lightning import FlatMinima  # noqa: E402
from flatminima.optim import SAM, FisherTrace, PertOPT  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
WRAP = {
    "pertopt": lambda base: PertOPT(base, gamma=0.3, eta=1e4),
    "sam": lambda base: SAM(base, rho=0.2),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def loader(batch=6):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(24, 4, generator=g, dtype=torch.float64), torch.randint(0, 3, (24,), generator=g)
    return DataLoader(TensorDataset(x, y), batch_size=batch)


class Module(lightning.LightningModule):
    def __init__(self, kind):
        super().__init__()
        self.net, self.kind = network(), kind

    def training_step(self, batch, _):
        x, y = (batch[0].to(self.net[0].weight.dtype), batch[1])
        return cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return WRAP[self.kind](torch.optim.AdamW(self.net.parameters(), 1e-2))


class Manual(lightning.LightningModule):
    """FisherTrace in manual optimization, as the documents show it."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.net = network()
        self.fisher = FisherTrace(self.net, beta=5.0, alpha=0.1, sub_batches=2)

    def training_step(self, batch, _):
        opt = self.optimizers()
        opt.zero_grad()
        self.fisher.backward(cross_entropy, *batch)
        opt.step()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.net.parameters(), 1e-2)


def fit(module, folder, **settings):
    settings = {"max_epochs": 3, "callbacks": [FlatMinima()], **settings}
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=folder, **settings,
    )  # fmt: skip
    trainer.fit(module, loader())
    return trainer


def by_hand(kind, accumulate=1):
    net = network()
    opt = WRAP[kind](torch.optim.AdamW(net.parameters(), 1e-2))
    for epoch in range(3):
        if kind == "pertopt":
            opt.epoch = epoch + 1
        for x, y in loader(6 * accumulate):

            def closure(x=x, y=y):
                opt.zero_grad()
                loss = cross_entropy(net(x), y)
                loss.backward()
                nn.utils.clip_grad_norm_(net.parameters(), 0.3)
                return loss

            opt.step(closure)
    return net


def close(a, b):
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", WRAP)
def test_it_trains_as_a_loop_by_hand(tmp_path, kind):
    """With clipping; PertOPT's epochs counted by the callback."""
    module = Module(kind)
    trainer = fit(module, tmp_path, gradient_clip_val=0.3)
    close(module.net, by_hand(kind))
    if kind == "pertopt":
        assert trainer.optimizers[0].epoch == 3
        assert 0 < trainer.callback_metrics["pertopt/relative_noise"] < 1


def test_accumulated_batches_share_one_perturbation(tmp_path):
    """Without the callback only the last micro-batch of a step would be perturbed."""
    module = Module("pertopt")
    fit(module, tmp_path, gradient_clip_val=0.3, accumulate_grad_batches=2)
    close(module.net, by_hand("pertopt", accumulate=2))


@pytest.mark.parametrize("clip", [None, 100.0])
@pytest.mark.parametrize("kind", WRAP)
def test_accumulated_batches_without_the_callback_are_refused(tmp_path, kind, clip):
    """PertOPT would perturb the last of them only, SAM displace along all and step along the last."""
    with pytest.raises(UsageError, match="outside of a perturbed block"):
        fit(Module(kind), tmp_path, accumulate_grad_batches=2, gradient_clip_val=clip, callbacks=[])


def test_fisher_trace_in_manual_optimization(tmp_path):
    module, net = Manual(), network()
    fit(module, tmp_path)
    opt = torch.optim.AdamW(net.parameters(), 1e-2)
    reg = FisherTrace(net, beta=5.0, alpha=0.1, sub_batches=2)
    for _ in range(3):
        for x, y in loader():
            opt.zero_grad()
            reg.backward(cross_entropy, x, y)
            opt.step()
    close(module.net, net)


@pytest.mark.parametrize("kind", WRAP)
def test_resuming_from_a_checkpoint_ends_with_the_same_bits(tmp_path, kind):
    whole = Module(kind)
    fit(whole, tmp_path)
    first = Module(kind)
    fit(first, tmp_path, max_epochs=2).save_checkpoint(tmp_path / "two.ckpt")
    again = Module(kind)
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=3,
        enable_checkpointing=False, callbacks=[FlatMinima()], default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(again, loader(), ckpt_path=tmp_path / "two.ckpt", weights_only=True)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters(), strict=True))


def test_an_exception_in_a_micro_batch_restores_the_weights(tmp_path):
    module = Module("pertopt")
    before = []

    def broken(batch):
        if module.trainer.global_step == 2:
            raise RuntimeError("broken")
        return cross_entropy(module.net(batch[0]), batch[1])

    module.training_step = broken

    class Before(lightning.Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 2:
                before.append([p.detach().clone() for p in module.net.parameters()])

    with pytest.raises(RuntimeError, match="broken"):
        fit(module, tmp_path, accumulate_grad_batches=2, callbacks=[Before(), FlatMinima()])
    assert all(torch.equal(p, q) for p, q in zip(module.net.parameters(), before[0], strict=True))


def test_sam_repeats_the_accumulated_batches(tmp_path):
    module = Module("sam")
    fit(module, tmp_path, gradient_clip_val=0.3, accumulate_grad_batches=2)
    close(module.net, by_hand("sam", accumulate=2))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", WRAP)
def test_float16_with_its_scaler(tmp_path, kind, accumulate):
    """Lightning runs the closure itself, unscales, clips and steps without one."""
    from lightning.pytorch.plugins.precision import MixedPrecision

    module = Module(kind)
    module.net.float()
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
    fit(module, tmp_path, max_epochs=1, gradient_clip_val=0.3, accumulate_grad_batches=accumulate, plugins=[plugin])
    net = network().float()
    opt = WRAP[kind](torch.optim.AdamW(net.parameters(), 1e-2))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    rows = [(x.float(), y) for x, y in loader()]
    for i in range(0, len(rows), accumulate):

        def passes(some=rows[i : i + accumulate]):
            for x, y in some:
                with torch.autocast("cpu", torch.float16, cache_enabled=False):
                    loss = cross_entropy(net(x), y) / accumulate
                scaler.scale(loss).backward()

        if kind == "sam":
            passes()
        with opt.perturbed():
            passes()
        scaler.unscale_(opt)
        nn.utils.clip_grad_norm_(net.parameters(), 0.3)
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
    assert all(torch.equal(p, q) for p, q in zip(module.net.parameters(), net.parameters(), strict=True))


@pytest.mark.parametrize("skipped", [{3}, {2}, {2, 3}])
@pytest.mark.parametrize("kind", WRAP)
def test_a_skipped_batch_of_accumulated_ones(tmp_path, kind, skipped):
    """The step's other batches count; a step of none is none, also as an epoch's last."""
    module = Module(kind)

    def step(batch, batch_idx):
        return None if batch_idx in skipped else cross_entropy(module.net(batch[0]), batch[1])

    module.training_step = step
    fit(module, tmp_path, max_epochs=2, accumulate_grad_batches=2)
    net = network()
    opt = WRAP[kind](torch.optim.AdamW(net.parameters(), 1e-2))
    for epoch in (1, 2):
        opt.epoch = epoch
        rows = [None if i in skipped else row for i, row in enumerate(loader())]
        for pair in (rows[:2], rows[2:]):
            some = [row for row in pair if row is not None]

            def passes(some=some):
                for x, y in some:
                    (cross_entropy(net(x), y) / 2).backward()

            if not some:
                if kind == "pertopt":
                    with opt.perturbed():
                        pass  # its noise is drawn, and is the next step's
                continue
            if kind == "sam":
                passes()
            with opt.perturbed():
                passes()
            opt.step()
            opt.zero_grad()
    close(module.net, net)


def test_sams_second_pass_logs_and_counts_nothing(tmp_path):
    from torchmetrics import MeanMetric

    module, seen = Module("sam"), []
    module.mean = MeanMetric()

    def step(batch, batch_idx):
        loss = cross_entropy(module.net(batch[0]), batch[1])
        module.mean.update(loss.detach())
        module.log("loss", loss, on_step=True, on_epoch=True)
        module.log("mean", module.mean, on_epoch=True)
        seen.append(float(loss.detach()))
        return loss

    module.training_step = step
    trainer = fit(module, tmp_path, max_epochs=1)
    at_w = seen[::2]
    assert len(seen) == 8
    for name in ("loss_epoch", "mean"):
        assert float(trainer.callback_metrics[name]) == pytest.approx(sum(at_w) / 4)
    assert float(trainer.callback_metrics["loss_step"]) == pytest.approx(at_w[-1])
    assert float(trainer.callback_metrics["sam/rise"]) == pytest.approx(seen[-1] - at_w[-1])
