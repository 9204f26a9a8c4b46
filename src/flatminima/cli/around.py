"""`flatminima certify --posterior NAME`: a certificate around a network that is trained already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatminima.catalog.choices import POSTERIORS
from flatminima.cli.source import Source
from flatminima.errors import CheckpointError, UnknownName, UsageError

if TYPE_CHECKING:
    from torch import nn

    from flatminima.certification import Certificate


@dataclass(frozen=True)
class Around:
    """Posterior and prior, as typed.

    Args:
        source: of the trained network, and of the bound's samples.
        posterior: a name of `POSTERIORS`.
        prior_checkpoint: weights of the prior's mean; None for the factory's own, from the seed.
        prior_split: what those weights were trained on.
    """

    source: Source
    posterior: str
    prior_checkpoint: Path | None
    prior_split: str | None

    def check(self) -> None:
        """Refuse what can be refused without torch.

        Raises:
            UsageError: naming the option.
        """
        self.source.check()
        if self.posterior not in POSTERIORS:
            raise UnknownName("posterior", self.posterior, POSTERIORS)
        if self.source.checkpoint is None:
            raise UsageError("--posterior needs --checkpoint, the weights of the network that is trained already")
        if self.prior_checkpoint is not None and not self.prior_checkpoint.exists():
            raise CheckpointError(f"no file {self.prior_checkpoint} for --prior-checkpoint; check the path")
        if (self.prior_checkpoint is None) != (self.prior_split is None):
            raise UsageError(
                "--prior-checkpoint and --prior-split go together: the prior's weights, and the split that they were "
                "trained on; without both the prior is the factory's network from the seed"
            )

    def certify(self, device: str | None, output: Path | None, **options: Any) -> Certificate:
        """Read everything, then certify."""
        from flatminima.certification import certify_around
        from flatminima.core.minimum import Minimum

        minimum = Minimum(self.source.network().eval(), self.source.samples(self.source.split, device), device=device)
        prior: Any = maker(self.source)
        data = None
        if self.prior_checkpoint is not None and self.prior_split is not None:
            prior = replace(self.source, checkpoint=str(self.prior_checkpoint)).network().eval()
            data = self.source.whole().samples(self.prior_split, None)
        if options.pop("keep_ledger") and options["ledger"] is None and output is not None:
            options["ledger"] = output / f"ledger-{minimum.samples.fingerprint}.json"
        return certify_around(
            minimum,
            self.posterior,
            prior=prior,
            prior_data=data,
            prior_seed=self.source.seed,
            output=output,
            source=self.source.document() | {"prior_split": self.prior_split},
            seed=self.source.seed,
            **options,
        )


def maker(source: Source, device: str | None = None) -> Callable[[], nn.Module]:
    """The function that --model names, which certify calls under seeds of its own."""

    def make() -> nn.Module:
        return source.build().to(device or "cpu")

    return make
