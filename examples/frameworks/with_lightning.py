"""SAM in Lightning: return it from `configure_optimizers` and add the callback.

python examples/frameworks/with_lightning.py         pip install 'flatminima[lightning]'
"""

from __future__ import annotations

import lightning.pytorch as lightning
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from flatminima.data import load_tensors
from flatminima.integrations.lightning import FlatMinima
from flatminima.models import mlp
from flatminima.optim import SAM


class Digits(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp((64, 32, 10))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        loss = cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)  # the loss at w; SAM's second pass logs nothing
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return SAM(torch.optim.AdamW(self.parameters(), 1e-3), rho=0.05)


def main(epochs: int = 3) -> float:
    """The loss logged last."""
    loader = DataLoader(TensorDataset(*load_tensors("digits", "train", limit=512)), batch_size=64)
    trainer = lightning.Trainer(
        max_epochs=epochs, accumulate_grad_batches=2, callbacks=[FlatMinima()], logger=False, accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Digits(), loader)
    return float(trainer.callback_metrics["train_loss"])


if __name__ == "__main__":
    print(f"loss {main():.3f}")
