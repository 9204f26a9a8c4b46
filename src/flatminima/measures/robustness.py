"""Sensitivity of the predicted probabilities, or of the logits, to the input (Jia & Su 2020, sec. 7.1)."""

from __future__ import annotations

from typing import Literal

from flatminima.core.statistic import Statistics
from flatminima.errors import Undefined, UsageError
from flatminima.estimate import Estimate
from flatminima.measures._measure import at_least_one, catalogued_measure, seed_of, until, with_note
from flatminima.measures._positions import mean_of_positions
from flatminima.statistics import InputJacobian, PositionJacobian


@catalogued_measure
def robustness(
    minimum: Statistics,
    *,
    samples: int = 300,
    of: Literal["probabilities", "logits"] = "probabilities",
    rtol: float | None = None,
    seed: int | None = None,
) -> Estimate:
    """``(1/n) sum_x ||d softmax(f(x)) / dx||_2^2``, the mean squared spectral norm of the input Jacobian.

    Where tokens or pixels have labels, the mean is over labelled positions, each with its own probabilities or
    logits; one position of each sample is drawn.

    Of a network of tokens x are their embeddings, the vectors that the tokens are looked up in.

    Args:
        minimum: a Minimum.
        samples: how many at most, drawn from the data by seed.
        of: "probabilities", the paper's, or "logits", ``||df / dx||_2^2``: the outputs themselves, also of networks
            without classes. It does not fade where the network is certain, and grows with the outputs' scale.
        rtol: raise `samples` until the 95% interval is value (1 +- rtol).
        seed: of the draw; None: the Minimum's.

    Returns:
        Estimate; stderr over samples; details: n, of, and for positions their number and unit. Undefined:
        tokens that no embedding looks up; probabilities where targets are not classes.

    Raises:
        UsageError: no samples, an unknown `of`.

    Source:
        Jia & Su, arXiv 1911.08192, sec. 7.1: f are the probabilities, not the logits. Embeddings: Miyato, Dai &
        Goodfellow 2017, arXiv 1605.07725, sec. 3.
    """
    at_least_one(samples=samples)
    if of not in ("probabilities", "logits"):
        raise UsageError(f"got of={of!r}; expected 'probabilities' or 'logits'")
    found = seed_of(minimum, seed)

    def estimate(n: int) -> Estimate:
        if of == "probabilities":
            try:
                return Estimate.mean(minimum[InputJacobian(n, found)].square(), of=of, error_of="new data")
            except Undefined:  # targets are not one class a sample
                pass
        sums = minimum[PositionJacobian(n, of, found)]
        value = mean_of_positions(sums).with_details(of=of)
        return with_note(value, "by the token embeddings") if sums.embedded else value

    return until(rtol, samples, estimate)
