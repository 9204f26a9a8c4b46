"""The networks that every measure meets: a table of models and data, float64, ragged in their batches."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from flatminima import Minimum, catalog

torch.set_num_threads(1)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def randomise(model, seed=1, scale=0.6):
    """Float64, eval mode, normal weights."""
    model, source = model.double().eval(), generator(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=source, dtype=torch.float64))
    return model


@dataclass(frozen=True)
class Network:
    """A model, its data and its loss.

    `undefined`: measures without a value on it, with a word of the reason; None where there may be one or not.
    """

    model: Any
    x: Any
    y: torch.Tensor
    loss: str = "cross_entropy"
    undefined: dict[str, str | None] = field(default_factory=dict)

    def minimum(self, **options):
        return Minimum(self.model, (self.x, self.y), self.loss, **{"batch_size": 8, **options})


def _real(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def _answers(model, x):
    """Labels the network agrees with, so that margins are positive."""
    with torch.no_grad():
        return model(x).argmax(1)


_NORMS = ("frobenius_norm", "group_norm", "lipschitz", "path_norm", "spectral_complexity", "spectral_norm")
_RELU = (*_NORMS, "vc_dimension")
_NORMED = dict.fromkeys(("group_norm", "path_norm", "vc_dimension"), "norm") | {"lipschitz": "attention"}


def _table():
    images, rows = _real(21, 2, 5, 6), _real(21, 4)
    tokens = torch.randint(0, 9, (21, 3), generator=generator(5))
    mlp = randomise(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    cnn = randomise(
        nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 3)
        )
    )
    normed = randomise(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)))
    words = randomise(nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 3)))
    regression = randomise(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)))
    single = randomise(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1)))
    confused = randomise(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    margins = dict.fromkeys((*_NORMS, "margin", "output_entropy"), "not classes")
    one_class = dict.fromkeys((*_NORMS, "margin"), "at least two classes")
    wrong = dict.fromkeys(_NORMS, "margin is not positive")
    networks = {
        "mlp": Network(mlp, rows, _answers(mlp, rows)),
        "mislabelled mlp": Network(confused, rows, torch.arange(21) % 3, undefined=wrong),
        "cnn with BatchNorm": Network(cnn, images, _answers(cnn, images)),
        "LayerNorm and GELU": Network(normed, rows, _answers(normed, rows), undefined=_NORMED),
        "embedding": Network(
            words,
            tokens,
            _answers(words, tokens),
            undefined=dict.fromkeys(_RELU, "input"),
        ),
        "regression": Network(
            regression, rows, _real(21, 2, seed=4), "mse", {**margins, "robustness": "needs a classifier"}
        ),
        "one class": Network(
            single,
            rows,
            torch.zeros(21, dtype=torch.long),
            # its loss is 0 whatever the weights
            undefined={
                **one_class,
                "fisher_logdet": None,
                "fisher_logdet_full": "no curvature",
                "expected_sharpness": None,
                "negative_curvature": "no eigenvalue has a sign",
                "noise_complexity": "at least two classes",
                "noise_flatness": "at least two classes",
                "gradient_noise_scale": "mean gradient is 0",
                "gradient_signal_to_noise": "no noise",
                "bicriteria": None,
            },
        ),
    }
    bare = randomise(nn.Sequential(nn.Linear(4, 8, False), nn.ReLU(), nn.Linear(8, 3, False)))
    for network in networks.values():
        network.undefined.update(dict.fromkeys(("conditions", "perturbation_score")))  # biases or other layers
    networks["mlp without biases"] = Network(bare, rows, _answers(bare, rows))
    for network in networks.values():
        network.undefined["distance_from_init"] = "initial weights"
    return networks


NETWORKS = _table()
# options that make a measure small enough for 21 samples
SMALL = {name: row.small for name, row in catalog.MEASURES.items()}
