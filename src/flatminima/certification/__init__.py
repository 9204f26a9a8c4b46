"""From bounds to statements: a network, its prior, and a number that holds with probability 1 - delta."""

from flatminima.certification.certificate import Assumption, Certificate
from flatminima.certification.gaussian import Union, certify_gaussian, gibbs_error

__all__ = ["Assumption", "Certificate", "Union", "certify_gaussian", "gibbs_error"]
