"""How prior and posterior of a certificate are made, as one value that JSON can hold."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from flatminima.certification.objective import objective as objective_of
from flatminima.errors import UnknownName, UsageError
from flatminima.training import TrainConfig

LAYERS = ("all", "head")
AUGMENTATIONS = ("none", "shift1", "shift2")
KEPT = ("float16", "float32")


@dataclass(frozen=True)
class Recipe:
    """How prior and posterior are made; where it is fixed before the samples are seen, it can only make a bound loose.

    Args:
        prior_fraction: share of the samples in [0, 1) that train the prior; 0 for a prior from its seed alone.
        prior: how the prior's mean is trained.
        augment: of the prior's samples: "none", "shift1" or "shift2" pixels. The bound's samples never are.
        layers: "all" parameters are random, or the "head": the last linear layer, in its principal basis.
        sigma: standard deviation of the prior, fixed here, before the samples are seen.
        fit_sigma: choose the prior's sigma with the posterior instead, on a grid, at ln(pi^2 j^2 / 6) nats; `sigma`
            is then where the posterior starts.
        objective: of the posterior: "kl", "quadratic", "lambda" or "classic".
        epochs, lr, batch_size: of the posterior; 0 epochs certify the prior itself, KL = 0.
        nats: of cross-entropy that count as one error in the objective; None for ln(1 / p_min). Fewer weigh the errors
            more; the kl objective has no slope where the surrogate exceeds 1, the others have.
        passes: over the bound's samples to estimate the Gibbs risk, each with fresh draws.
        p_min: clamp of the cross-entropy.
        keep: precision that P and Q are rounded to before anything is counted, and kept in: "float32", or "float16" for
            files of half the size.
    """

    prior_fraction: float = 0.5
    prior: TrainConfig = field(
        default_factory=lambda: TrainConfig(lr=0.05, epochs=10, schedule="cosine", nesterov=True, weight_decay=5e-4)
    )
    augment: str = "none"
    layers: str = "all"
    sigma: float = 0.01
    fit_sigma: bool = False
    objective: str = "kl"
    epochs: int = 1
    lr: float = 0.01
    batch_size: int = 250
    nats: float | None = None
    passes: int = 10
    p_min: float = 1e-5
    keep: str = "float32"

    def __post_init__(self) -> None:
        objective_of(self.objective)
        for kind, value, known in (
            ("augment", self.augment, AUGMENTATIONS), ("layers", self.layers, LAYERS), ("keep", self.keep, KEPT),
        ):  # fmt: skip
            if value not in known:
                raise UnknownName(kind, value, known)
        if not 0 <= self.prior_fraction < 1:
            raise UsageError(f"got prior_fraction={self.prior_fraction!r}; expected a share in [0, 1)")
        if self.prior_fraction == 0 and self.augment != "none":
            raise UsageError(
                f"got augment={self.augment!r} without a prior's part: the bound's samples are never augmented, "
                "or they are not independent; use augment='none' or a prior_fraction above 0"
            )
        if not 0 < self.p_min < 1:
            raise UsageError(
                f"got p_min={self.p_min!r}: the cross-entropy is unbounded without a clamp in (0, 1), and only "
                "a loss in [0, 1] can be certified"
            )
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise UsageError(f"got sigma={self.sigma!r}; the prior's standard deviation must be positive")
        for name in ("epochs", "batch_size", "passes"):
            if getattr(self, name) < (0 if name == "epochs" else 1):
                raise UsageError(f"got {name}={getattr(self, name)}; expected at least {int(name != 'epochs')}")

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """The inverse of `to_dict`."""
        return cls(**values | {"prior": TrainConfig(**values["prior"])})
