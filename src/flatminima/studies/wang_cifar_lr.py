"""W1 Fig. 5: generalization gap and pacGen against the learning rate at batch size 256, on CIFAR-10."""

from __future__ import annotations

from flatminima.studies._wang_cnn import Scale, Variation, study

_VARIATION = Variation(
    "cifar10",
    "lr",
    {"batch_size": 256},
    sign=-1,
    scales={
        "smoke": Scale((0.03, 0.1, 0.3), 1, 2, 10, 2.2, 256),
        "cpu": Scale((0.1, 0.2, 0.3, 0.4), 3, 60, 600, 0.5, 2_000, channels_last=True),
        "half": Scale((0.1, 0.2, 0.3, 0.4), 5, 300, 600, 0.5, 2_000, channels_last=True, fresh_data=True, curves=True),
        "paper": Scale((0.005, 0.01, 0.05, 0.1, 0.5), 5, 100, 400, 0.5, None, channels_last=True),
    },
)
STUDY = study(
    "wang-cifar-lr",
    "Wang et al. 2018 (arXiv 1809.07402), Fig. 5",
    "Gap and pacGen against the learning rate, CIFAR-10",
    _VARIATION,
    {
        "smoke": "256 digits, 1 seed, 3 rates, 2 epochs; an MLP takes the network's place",
        "cpu": "2,000 samples, 3 seeds, rates 0.1 to 0.4 at batch 256, 60 epochs; to loss 0.5 within 600 epochs",
        "half": "2,000 samples, others for each seed, 5 seeds, rates 0.1 to 0.4 at batch 256, 300 epochs; to loss "
        "0.5 within 600 epochs",
        "paper": "100 epochs and rates 0.005 to 0.5 are ours, as the papers print neither",
    },
)
