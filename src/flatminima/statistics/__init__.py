"""Statistics that measures are made of; each is computed once and shared."""

from flatminima.statistics.adaptive import AdaptiveWorstLoss
from flatminima.statistics.conditions import Conditions, SampleConditions
from flatminima.statistics.curvature import Curvature, Products, curvature_operator
from flatminima.statistics.derived import At, Change, DiagonalChange, InFloat64
from flatminima.statistics.diagonal import (
    BatchGradientSquares,
    DrawnGaussNewtonDiagonal,
    FisherDiagonal,
    GaussNewtonDiagonal,
    PiecewiseLinearDiagonal,
    SketchedDiagonal,
)
from flatminima.statistics.eigenvalues import Eigenvalues, TopEigenvalues
from flatminima.statistics.entropy import OutputEntropies, PositionSums
from flatminima.statistics.factor import FisherFactor, GaussNewtonFactor
from flatminima.statistics.feedforward import FeedForward
from flatminima.statistics.fisher_variants import FisherMatrix, FisherParts, RescaledLogits, TrainingGram
from flatminima.statistics.gram import Gram, GramMatrices
from flatminima.statistics.hessian import HessianDiagonal, HessianProbes, ProbedHessian
from flatminima.statistics.jacobian import InputJacobian
from flatminima.statistics.lanczos import Eigenpairs, Tridiagonal, extreme_eigenvalues, lanczos
from flatminima.statistics.loss_ascent import Worst
from flatminima.statistics.margins import Margins, SortedMargins
from flatminima.statistics.matrices import MatrixNorm, MatrixNorms
from flatminima.statistics.mean_gradient import MeanGradient
from flatminima.statistics.moments import Moments
from flatminima.statistics.network_graph import FeedForwardNetwork, LinearLayer, Node, SampleOperator
from flatminima.statistics.noise_level import Level, NoiseLevel
from flatminima.statistics.operator_norms import NetworkNorms, OperatorNorm, OperatorNorms
from flatminima.statistics.outputs import Outputs, OutputSummary
from flatminima.statistics.perturbed import LossRises, PerturbedLoss
from flatminima.statistics.position_jacobian import PositionJacobian
from flatminima.statistics.power_law import PowerLaw, fit_power_law
from flatminima.statistics.radial import RadialCurvature, RadialGradients
from flatminima.statistics.redrawn import Redrawn
from flatminima.statistics.sketch import hutch_pp, xdiag, xtrace
from flatminima.statistics.spectrum import SpectralDensity, Spectrum
from flatminima.statistics.trace import ExactTraces, GroupTraces, SketchedTraces
from flatminima.statistics.weight_spectra import WeightSpectra
from flatminima.statistics.weights import FlatWeights, ParameterCount, SampleCount, Weights
from flatminima.statistics.worst_case import WorstCaseLoss

__all__ = [
    "AdaptiveWorstLoss",
    "At",
    "BatchGradientSquares",
    "Change",
    "Conditions",
    "Curvature",
    "DiagonalChange",
    "DrawnGaussNewtonDiagonal",
    "Eigenpairs",
    "Eigenvalues",
    "ExactTraces",
    "FeedForward",
    "FeedForwardNetwork",
    "FisherDiagonal",
    "FisherFactor",
    "FisherMatrix",
    "FisherParts",
    "FlatWeights",
    "GaussNewtonDiagonal",
    "GaussNewtonFactor",
    "Gram",
    "GramMatrices",
    "GroupTraces",
    "HessianDiagonal",
    "HessianProbes",
    "InFloat64",
    "InputJacobian",
    "Level",
    "LinearLayer",
    "LossRises",
    "Margins",
    "MatrixNorm",
    "MatrixNorms",
    "MeanGradient",
    "Moments",
    "NetworkNorms",
    "Node",
    "NoiseLevel",
    "OperatorNorm",
    "OperatorNorms",
    "OutputEntropies",
    "OutputSummary",
    "Outputs",
    "ParameterCount",
    "PerturbedLoss",
    "PiecewiseLinearDiagonal",
    "PositionJacobian",
    "PositionSums",
    "PowerLaw",
    "ProbedHessian",
    "Products",
    "RadialCurvature",
    "RadialGradients",
    "Redrawn",
    "RescaledLogits",
    "SampleConditions",
    "SampleCount",
    "SampleOperator",
    "SketchedDiagonal",
    "SketchedTraces",
    "SortedMargins",
    "SpectralDensity",
    "Spectrum",
    "TopEigenvalues",
    "TrainingGram",
    "Tridiagonal",
    "WeightSpectra",
    "Weights",
    "Worst",
    "WorstCaseLoss",
    "curvature_operator",
    "extreme_eigenvalues",
    "fit_power_law",
    "hutch_pp",
    "lanczos",
    "xdiag",
    "xtrace",
]


def __dir__() -> list[str]:
    return __all__
