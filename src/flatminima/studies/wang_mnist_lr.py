"""W2 Fig. 5: generalization gap and pacGen against the learning rate at batch size 256, on MNIST."""

from __future__ import annotations

from flatminima.studies._wang_cnn import Scale, Variation, study

_VARIATION = Variation(
    "mnist",
    "lr",
    {"batch_size": 256},
    sign=-1,
    scales={
        "smoke": Scale((0.03, 0.1, 0.3), 1, 2, 10, 0.5, 256),
        "cpu": Scale((0.05, 0.1, 0.2, 0.4), 3, 12, 60, 0.35, 3_000),
        "paper": Scale((0.005, 0.01, 0.05, 0.1, 0.5), 3, 12, 200, 0.15, None, 50, channels_last=True),
    },
)
STUDY = study(
    "wang-mnist-lr",
    "Wang et al. 2020 (AISTATS), Fig. 5",
    "Gap and pacGen against the learning rate, MNIST",
    _VARIATION,
    {
        "smoke": "256 digits, 1 seed, 3 rates, 2 epochs; an MLP takes the network's place",
        "cpu": "3,000 samples, 3 seeds, 4 rates, 12 epochs; to loss 0.35 within 60 epochs",
        "paper": "3 seeds, also to loss 0.15; 12 epochs and rates 0.005 to 0.5 are ours, as the papers print neither",
    },
)
