"""W2 Fig. 4: generalization gap and pacGen against the batch size at learning rate 0.1, on MNIST."""

from __future__ import annotations

from flatminima.studies._wang_cnn import Scale, Variation, study

_VARIATION = Variation(
    "mnist",
    "batch_size",
    {"lr": 0.1},
    sign=1,
    scales={
        "smoke": Scale((16, 64, 256), 1, 2, 10, 0.3, 256),
        "cpu": Scale((16, 64, 256, 1024), 3, 12, 60, 0.35, 3_000),
        "paper": Scale((64, 128, 256, 512, 1024, 2048, 4096), 3, 12, 200, 0.15, None, 50, channels_last=True),
    },
)
STUDY = study(
    "wang-mnist-batch",
    "Wang et al. 2020 (AISTATS), Fig. 4",
    "Gap and pacGen against the batch size, MNIST",
    _VARIATION,
    {
        "smoke": "256 digits, 1 seed, 3 batch sizes, 2 epochs; an MLP takes the network's place",
        "cpu": "3,000 samples, 3 seeds, 4 batch sizes, 12 epochs; to loss 0.35 within 60 epochs",
        "paper": "3 seeds, also to loss 0.15; 12 epochs and batch sizes 64 to 4,096 are ours: the papers print neither",
    },
)
