"""W2 Fig. 4: generalization gap and pacGen against batch size at lr 0.1, at equal epochs and, beside it, equal loss.

At equal epochs large batches take fewer steps and stay under-trained, which alone shrinks their gap. pacGen here is
with the Gauss-Newton diagonal, which is unbiased; the paper's squared batch gradients scale as 1 / batch size, and
are not run here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

from flatminima.measures import pacgen
from flatminima.minimum import Minimum
from flatminima.models import build
from flatminima.studies.images import images
from flatminima.studies.plot import label, lines, panels
from flatminima.studies.study import Config, Result, Sources, Study
from flatminima.studies.verdict import Verdict, trend
from flatminima.training import TrainConfig, evaluate, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# batch sizes, seeds, epochs, epochs at most to equal loss, that loss, training samples
_SCALES = {
    "smoke": ((16, 64, 256), 1, 2, 10, 0.3, 256),
    "cpu": ((32, 128, 512, 2048), 3, 12, 100, 0.02, 6_000),
    "paper": ((64, 128, 256, 512, 1024, 2048, 4096), 5, 12, 400, 0.01, None),
}
_SIDE = 28  # of the images that the network takes


def _configurations(scale: str) -> list[Config]:
    batches, seeds, epochs, most, loss, limit = _SCALES[scale]
    return [
        {
            "batch_size": batch,
            "seed": seed,
            "epochs": most if equal_loss else epochs,
            "target_loss": loss if equal_loss else None,
            "limit": limit,
            "data": "digits" if scale == "smoke" else "mnist",
        }
        for seed, equal_loss, batch in product(range(seeds), (False, True), batches)
    ]


def run(config: Config, sources: Sources) -> Result:
    """Train PyTorch's 2018 MNIST example network without dropout and measure pacGen on the training set."""
    size = _SIDE if config["data"] != "digits" else None
    source = sources[config["data"]]
    x, y = images(source, "train", config["limit"], size)
    test = images(source, "test", None, size)
    if x.shape[-1] == _SIDE:
        model = build("mnist_cnn", seed=config["seed"])
    else:  # the embedded digits are 8 x 8
        model = build("mlp", seed=config["seed"], widths=(x[0].numel(), 32, 10))
    recipe = TrainConfig(
        lr=0.1,
        momentum=0.0,
        batch_size=config["batch_size"],
        epochs=config["epochs"],
        target_loss=config["target_loss"],
        seed=config["seed"],
    )
    train(model, x, y, config=recipe)
    model.eval()
    own, held_out = evaluate(model, x, y), evaluate(model, *test)
    return {
        "batch_size": config["batch_size"],
        "seed": config["seed"],
        "equal_loss": config["target_loss"] is not None,
        "reached": config["target_loss"] is None or own.loss < config["target_loss"],
        "train_loss": own.loss,
        "gap": held_out.loss - own.loss,
        "error_gap": held_out.error - own.error,
        "pacgen": pacgen(Minimum(model, (x, y), seed=config["seed"])).value,
    }


def _claims(results: Sequence[Result]) -> list[Verdict]:
    verdicts = []
    for control, said in ((False, "equal epochs"), (True, "equal loss")):
        own = [r for r in results if r["equal_loss"] is control and r["reached"]]
        batches, gaps, psi, seeds = ([r[k] for r in own] for k in ("batch_size", "gap", "pacgen", "seed"))
        verdicts += [
            trend(
                f"the gap of the loss grows with the batch size, at {said}", batches, gaps, seeds=seeds, control=control
            ),
            trend(f"pacGen grows with the batch size, at {said}", batches, psi, seeds=seeds, control=control),
            trend(f"pacGen grows with the gap, at {said}", psi, gaps, seeds=seeds, control=control),
        ]
    return verdicts


def _figure(results: Sequence[Result]) -> Figure:
    figure, axes = panels(2)
    for control, said in ((False, "equal epochs"), (True, "equal loss")):
        own = [r for r in results if r["equal_loss"] is control and r["reached"]]
        for panel, name in zip(axes, ("gap", "pacgen"), strict=True):
            values = [r[name] for r in own]
            lines(panel, [r["batch_size"] for r in own], values, label=said, index=int(control), dashed=control)
    label(axes[0], "batch size", "test minus training loss (nats)", log_x=True)
    label(axes[1], "batch size", "pacGen (nats)", log_x=True)
    return figure


STUDY = Study(
    "wang-mnist-batch",
    "Wang et al. 2020 (AISTATS), Fig. 4",
    "Gap and pacGen against the batch size",
    ("mnist",),
    _configurations,
    run,
    _claims,
    _figure,
    {
        "smoke": "256 samples, 1 seed, 3 batch sizes, 2 epochs; on digits an MLP takes the network's place",
        "cpu": "6,000 samples, 3 seeds, 4 batch sizes",
        "paper": "gap and pacGen after the last epoch, not by epoch; Gauss-Newton diagonal",
    },
)
