"""The tracker in Lightning, Hugging Face's Trainer, Fabric and accelerate: the same weights, rows where due."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from flatminima.track import Tracker

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def data():
    g = torch.Generator().manual_seed(0)
    return torch.randn(24, 4, generator=g), torch.randint(0, 3, (24,), generator=g)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 3))


class TestLightning:
    def fit(self, folder, callbacks, **settings):
        lightning = pytest.importorskip("lightning.pytorch")

        class Module(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.net, self.losses = network(), []

            def training_step(self, batch, batch_idx):
                if batch_idx == skipped:
                    return None
                self.losses.append(cross_entropy(self.net(batch[0]), batch[1]))
                return self.losses[-1]

            def configure_optimizers(self):
                return torch.optim.Adam(self.net.parameters(), 1e-2)

        skipped = settings.pop("skipped", None)
        module, path = Module(), settings.pop("ckpt_path", None)
        torch.manual_seed(1)
        settings = {"max_epochs": 2, "enable_checkpointing": False, "logger": False, **settings}
        trainer = lightning.Trainer(
            accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
            callbacks=callbacks, **settings,
        )  # fmt: skip
        trainer.fit(module, DataLoader(TensorDataset(*data()), batch_size=4), ckpt_path=path)
        self.losses = [float(loss.detach()) for loss in module.losses]
        return module.state_dict(), trainer

    def callback(self, **options):
        from flatminima.integrations.lightning_track import TrackerCallback

        return TrackerCallback(data(), module="net", every=3, strict=True, **options)

    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_weights_and_steps(self, tmp_path, accumulate):
        expected, _ = self.fit(tmp_path, [], accumulate_grad_batches=accumulate)
        callback = self.callback(log=tmp_path / "a.jsonl")
        found, _ = self.fit(tmp_path, [callback], accumulate_grad_batches=accumulate)
        assert all(torch.equal(found[k], expected[k]) for k in expected)
        rows = callback.tracker.table()
        assert [row["step"] for row in rows] == ([0, 3, 6, 9] if accumulate == 1 else [0, 3])
        assert all(row["loss"] is not None and row["values"]["eigenvalue"] is not None for row in rows)
        assert rows[-1]["threshold"] == pytest.approx(3800)

    @pytest.mark.parametrize("skipped", [None, 1])
    @pytest.mark.parametrize("accumulate", [1, 2, 4])
    def test_the_loss_of_a_row_is_that_of_the_whole_step(self, tmp_path, accumulate, skipped):
        """The mean of its micro-batches, and neither the last one's nor Lightning's share of it; an epoch's last
        step may have fewer."""
        from flatminima.integrations.lightning_track import TrackerCallback

        callback = TrackerCallback(data(), module="net", every=1, quantities=["gradient_norm"], strict=True)
        self.fit(tmp_path, [callback], max_epochs=1, accumulate_grad_batches=accumulate, skipped=skipped)
        of = {i: loss for i, loss in zip([i for i in range(6) if i != skipped], self.losses, strict=True)}
        steps = [[of[i] for i in range(a, min(a + accumulate, 6)) if i in of] for a in range(0, 6, accumulate)]
        found = [row["loss"] for row in callback.tracker.table()]
        expected = [sum(step) / len(step) for step in steps if step]
        assert found[-len(expected) + 1 :] == pytest.approx(expected[1:])
        assert found[0] == pytest.approx(expected[0])

    def test_a_checkpoint_has_the_vector_and_loggers_get_the_numbers(self, tmp_path):
        loggers = pytest.importorskip("lightning.pytorch.loggers")

        callback = self.callback()
        _, trainer = self.fit(tmp_path, [callback], logger=loggers.CSVLogger(tmp_path))
        trainer.save_checkpoint(tmp_path / "a.ckpt")
        assert "flatminima/eigenvalue" in next(tmp_path.rglob("metrics.csv")).read_text()
        again = self.callback()
        self.fit(tmp_path, [again], max_epochs=3, ckpt_path=tmp_path / "a.ckpt")
        first = again.tracker.table()[0]
        assert first["step"] == 12 and not first["details"]["eigenvalue"]["fresh"]


class TestHuggingFace:
    def train(self, folder, callbacks, **settings):
        transformers = pytest.importorskip("transformers")
        pytest.importorskip("accelerate")

        class Network(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = network()

            def forward(self, x, labels=None):
                logits = self.net(x)
                return (
                    {"logits": logits} if labels is None else {"loss": cross_entropy(logits, labels), "logits": logits}
                )

        x, y = data()
        samples = [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]
        arguments = transformers.TrainingArguments(
            output_dir=str(folder), per_device_train_batch_size=4, num_train_epochs=2, report_to=[], use_cpu=True,
            disable_tqdm=True, logging_steps=2, seed=0, **{"save_strategy": "no", **settings},
        )  # fmt: skip
        torch.manual_seed(1)
        model = Network()
        trainer = transformers.Trainer(model, arguments, train_dataset=samples, callbacks=callbacks)
        trainer.train()
        return model.state_dict(), trainer

    def test_weights_steps_and_checkpoints(self, tmp_path):
        from flatminima.integrations.huggingface_track import TrackerCallback

        x, y = data()
        expected, _ = self.train(tmp_path / "a", [])
        callback = TrackerCallback(({"x": x}, y), every=3, strict=True)
        found, trainer = self.train(tmp_path / "b", [callback], save_strategy="epoch")
        assert all(torch.equal(found[k], expected[k]) for k in expected)
        rows = callback.tracker.table()
        assert [row["step"] for row in rows] == [0, 3, 6, 9] and rows[-1]["loss"] is not None
        assert rows[-1]["values"]["preconditioned"] is not None
        assert any("flatminima/eigenvalue" in entry for entry in trainer.state.log_history)
        kept = tmp_path / "b" / "checkpoint-12" / "flatminima_tracker.pt"
        assert torch.load(kept, weights_only=True)["last"]["eigenvalue"] == 9


def _loop(model, optimizer, backward, tracker):
    x, y = data()
    for step in range(6):
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        backward(loss)
        optimizer.step()
        if tracker is not None:
            tracker.step(step, loss)
    return {k.removeprefix("module."): v for k, v in model.state_dict().items()}


def _fabric(model, optimizer):
    fabric = pytest.importorskip("lightning.fabric").Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(model, optimizer)
    return model, optimizer, fabric.backward


def _accelerate(model, optimizer):
    accelerator = pytest.importorskip("accelerate").Accelerator(cpu=True)
    return *accelerator.prepare(model, optimizer), accelerator.backward


@pytest.mark.parametrize("prepare", [_fabric, _accelerate])
def test_the_plain_call_in_fabric_and_accelerate(prepare):
    runs = []
    for track in (False, True):
        model = network()
        model, optimizer, backward = prepare(model, torch.optim.SGD(model.parameters(), 0.1))
        tracker = Tracker(model, data(), optimizer=optimizer, every=2, strict=True) if track else None
        torch.manual_seed(2)
        runs.append(_loop(model, optimizer, backward, tracker))
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])
    row = tracker.table()[-1]
    assert row["threshold"] == pytest.approx(20.0) and row["values"]["eigenvalue"] is not None
