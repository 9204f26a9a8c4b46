"""The public surface: sorted names, light imports, documented kinds, examples that run."""

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest

from flatminima import bounds, catalog

MODULES = [m.name for m in pkgutil.iter_modules(bounds.__path__, "flatminima.bounds.")]


def test_all_is_sorted_and_complete():
    assert bounds.__all__ == sorted(bounds.__all__)
    ours = {n: f for n, f in vars(bounds).items() if getattr(f, "__module__", "").startswith("flatminima.bounds")}
    public = {n for n, f in ours.items() if not n.startswith("_") and callable(f)}
    assert set(bounds.__all__) == public


def test_import_loads_neither_torch_nor_scipy():
    """Both are paid for by the functions that need them."""
    code = "import sys, flatminima.bounds; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", bounds.__all__)
def test_docstrings(name):
    doc = getattr(bounds, name).__doc__
    for part in ("Args:", "Returns:", "Raises:", "Source:", ">>> "):
        assert part in doc, part


BOUNDS = "catoni hoeffding hoeffding_grid holdout_kl jia_su lambda_bound lambda_max mc_certificate mcallester "
BOUNDS += "neyshabur_5 neyshabur_6 neyshabur_8 neyshabur_score pac_bayes_kl quadratic truncated_gaussian "
BOUNDS += "uniform_perturbation uniform_perturbation_grid uniform_perturbation_printed binomial_tail_inverse"


@pytest.mark.parametrize("name", catalog.BOUNDS)
def test_every_bound_says_whether_it_certifies(name):
    kind = getattr(bounds, name).__doc__.split("Kind:")[1].split("\n\n")[0]
    assert "CERT" in kind or "SCORE" in kind or "as uniform_perturbation" in kind


def test_the_catalogue_says_what_the_docstrings_say():
    """`flatminima list` labels each bound as its function does, and leaves none out."""
    assert list(catalog.BOUNDS) == sorted(catalog.BOUNDS)
    assert set(catalog.BOUNDS) >= {*BOUNDS.split(), "monte_carlo_risk", "uniform_perturbation_simplified"}
    for name, entry in catalog.BOUNDS.items():
        kind = getattr(bounds, name).__doc__.split("Kind:")[1].split("\n\n")[0]
        if "as uniform_perturbation" in kind:
            kind = bounds.uniform_perturbation.__doc__.split("Kind:")[1]
        assert kind.split()[0].strip(".,;:") == entry.label, name
        assert len(entry.summary) <= 60


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0
