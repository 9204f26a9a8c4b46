"""W1 Fig. 3: generalization gap and pacGen against the batch size at learning rate 0.01, on CIFAR-10."""

from __future__ import annotations

from flatminima.studies._wang_cnn import Scale, Variation, study

_VARIATION = Variation(
    "cifar10",
    "batch_size",
    {"lr": 0.01},
    sign=1,
    scales={
        "smoke": Scale((16, 64, 256), 1, 2, 10, 2.2, 256),
        "cpu": Scale((8, 16, 32, 64), 3, 60, 600, 0.5, 2_000, channels_last=True),
        "half": Scale((8, 16, 32, 64), 5, 300, 600, 0.5, 2_000, channels_last=True, fresh_data=True, curves=True),
        "paper": Scale((64, 128, 256, 512, 1024, 2048, 4096), 5, 100, 400, 0.5, None, channels_last=True),
    },
)
STUDY = study(
    "wang-cifar-batch",
    "Wang et al. 2018 (arXiv 1809.07402), Fig. 3",
    "Gap and pacGen against the batch size, CIFAR-10",
    _VARIATION,
    {
        "smoke": "256 digits, 1 seed, 3 batch sizes, 2 epochs; an MLP takes the network's place",
        "cpu": "2,000 samples, 3 seeds, batch sizes 8 to 64, 60 epochs; to loss 0.5 within 600 epochs",
        "half": "2,000 samples, others for each seed, 5 seeds, batch sizes 8 to 64, 300 epochs; to loss "
        "0.5 within 600 epochs",
        "paper": "100 epochs and batch sizes 64 to 4,096 are ours, as the papers print neither",
    },
)
