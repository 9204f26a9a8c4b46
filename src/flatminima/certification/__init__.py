"""From bounds to statements: a network, its prior, and a number that holds with probability 1 - delta."""

from flatminima.certification.around import certify_around, certify_gaussian, gibbs_error
from flatminima.certification.certificate import Assumption, Certificate
from flatminima.certification.certifying import certify
from flatminima.certification.learned import certify_recipe
from flatminima.certification.ledger import Ledger
from flatminima.certification.objective import OBJECTIVES
from flatminima.certification.pipeline import Confidence, Union
from flatminima.certification.prior import Scales
from flatminima.certification.recipe import Recipe
from flatminima.certification.record import Comparison, recompute, recomputed
from flatminima.certification.risk import GibbsRisk, gibbs_risk
from flatminima.certification.stochastic import Prior, StochasticNetwork

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
    "certify_gaussian",
    "certify_recipe",
    "gibbs_error",
    "gibbs_risk",
    "recompute",
    "recomputed",
]
