"""From bounds to statements: a network, its prior, and a number that holds with probability 1 - delta."""

from flatminima.certification.around import certify_around
from flatminima.certification.certificate import Assumption, Certificate
from flatminima.certification.certifying import certify
from flatminima.certification.gaussian import Union, certify_gaussian, gibbs_error
from flatminima.certification.objective import OBJECTIVES
from flatminima.certification.recipe import Recipe
from flatminima.certification.record import Comparison, recompute
from flatminima.certification.scales import Scales
from flatminima.certification.stochastic import GibbsRisk, Prior, StochasticNetwork, gibbs_risk

__all__ = [
    "OBJECTIVES",
    "Assumption",
    "Certificate",
    "Comparison",
    "GibbsRisk",
    "Prior",
    "Recipe",
    "Scales",
    "StochasticNetwork",
    "Union",
    "certify",
    "certify_around",
    "certify_gaussian",
    "gibbs_error",
    "gibbs_risk",
    "recompute",
]
