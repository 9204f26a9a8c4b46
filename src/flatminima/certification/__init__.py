"""Certificates, from bounds to statements: a network, its prior, and a number that holds with probability 1 - delta."""

from flatminima.certification.around import certify_around
from flatminima.certification.certificate import Assumption, Certificate
from flatminima.certification.certifying import certify
from flatminima.certification.gibbs.risk import GibbsRisk, gibbs_risk
from flatminima.certification.gibbs.stochastic import Prior, StochasticNetwork
from flatminima.certification.ledger import Ledger
from flatminima.certification.pipeline import Confidence, Union
from flatminima.certification.prior import Scales
from flatminima.certification.recipe import OBJECTIVES, Recipe
from flatminima.certification.record import Comparison, recompute, recomputed

__all__ = [
    "OBJECTIVES",
    "Assumption",
    "Certificate",
    "Comparison",
    "Confidence",
    "GibbsRisk",
    "Ledger",
    "Prior",
    "Recipe",
    "Scales",
    "StochasticNetwork",
    "Union",
    "certify",
    "certify_around",
    "gibbs_risk",
    "recompute",
    "recomputed",
]


def __dir__() -> list[str]:
    return __all__
