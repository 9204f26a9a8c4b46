"""The papers: key, citation, address, and the codes of their errata (docs/reference/errata.md)."""

from __future__ import annotations

from dataclasses import dataclass

from flatminima.errors import UnknownName


@dataclass(frozen=True)
class Paper:
    """A paper that something here is from.

    Attributes:
        key: short name in docstrings and documents ("W1").
        short: authors and year, as tables show them.
        title, where: of the paper; its address, or the journal.
        errata: codes of docs/reference/errata.md.
        claims: stem of the file in `studies/claims` that holds its sentences; empty where no study tries them.
    """

    key: str
    short: str
    title: str
    where: str
    errata: tuple[str, ...] = ()
    claims: str = ""

    def __str__(self) -> str:
        return self.short

    @property
    def citation(self) -> str:
        """Authors, title and address in one line."""
        return f"{self.short}: {self.title}, {self.where}"


def _codes(letter: str, last: str) -> tuple[str, ...]:
    """("W-a", "W-b", ...) up to and with `last`."""
    return tuple(f"{letter}-{chr(c)}" for c in range(ord("a"), ord(last) + 1))


W1 = Paper(
    "W1",
    "Wang et al. 2018",
    "Identifying Generalization Properties in Neural Networks",
    "arXiv 1809.07402",
    _codes("W", "n"),
    "wang_2018",
)
W2 = Paper(
    "W2",
    "Wang et al. 2020",
    "Assessing Local Generalization Capability in Deep Models",
    "AISTATS 2020",
    claims="wang_2020",
)
WB = Paper("WB", "Wang et al., blog", "The authors' blog post on W1", "blog.einstein.ai", claims="wang_blog")
N17 = Paper(
    "N17",
    "Neyshabur et al. 2017",
    "Exploring Generalization in Deep Learning",
    "arXiv 1706.08947",
    _codes("N", "k"),
    "neyshabur_2017",
)
J20 = Paper(
    "J20",
    "Jia & Su 2020",
    "Information-Theoretic Local Minima Characterization and Regularization",
    "arXiv 1911.08192",
    _codes("J", "l"),
    "jia_2020",
)

CATONI_2007 = Paper("C07", "Catoni 2007", "PAC-Bayesian Supervised Classification", "arXiv 0712.0248")
COHEN_2021 = Paper(
    "C21", "Cohen et al. 2021", "Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability",
    "arXiv 2103.00065",
)  # fmt: skip
DZIUGAITE_ROY_2017 = Paper(
    "DR17", "Dziugaite & Roy 2017", "Computing Nonvacuous Generalization Bounds for Deep (Stochastic) Neural Networks",
    "arXiv 1703.11008",
)  # fmt: skip
FORET_2021 = Paper(
    "F21", "Foret et al. 2021", "Sharpness-Aware Minimization for Efficiently Improving Generalization",
    "arXiv 2010.01412",
)  # fmt: skip
GHORBANI_2019 = Paper(
    "G19", "Ghorbani et al. 2019", "An Investigation into Neural Net Optimization via Hessian Eigenvalue Density",
    "arXiv 1901.10159",
)  # fmt: skip
JIANG_2020 = Paper(
    "JI20", "Jiang et al. 2020", "Fantastic Generalization Measures and Where to Find Them", "arXiv 1912.02178"
)
KWON_2021 = Paper(
    "K21", "Kwon et al. 2021", "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning",
    "arXiv 2102.11600",
)  # fmt: skip
LANGFORD_2005 = Paper(
    "L05", "Langford 2005", "Tutorial on Practical Prediction Theory for Classification", "JMLR 6"
)  # fmt: skip
LANGFORD_CARUANA_2002 = Paper("LC02", "Langford & Caruana 2002", "(Not) Bounding the True Error", "NIPS 14")
LIANG_2019 = Paper(
    "L19", "Liang et al. 2019", "Fisher-Rao Metric, Geometry, and Complexity of Neural Networks", "arXiv 1711.01530"
)
LIU_2020 = Paper(
    "L20", "Liu et al. 2020", "Understanding Why Neural Networks Generalize Well Through GSNR of Parameters",
    "arXiv 2001.07384",
)  # fmt: skip
MADDOX_2020 = Paper(
    "M20", "Maddox et al. 2020", "Rethinking Parameter Counting in Deep Models: Effective Dimensionality Revisited",
    "arXiv 2003.02139",
)  # fmt: skip
MARTIN_2021 = Paper(
    "M21", "Martin et al. 2021",
    "Predicting trends in the quality of state-of-the-art neural networks without access to training or testing data",
    "arXiv 2002.06716",
)  # fmt: skip
MCALLESTER_1999 = Paper("M99", "McAllester 1999", "PAC-Bayesian Model Averaging", "COLT 1999")
MCCANDLISH_2018 = Paper(
    "MC18", "McCandlish et al. 2018", "An Empirical Model of Large-Batch Training", "arXiv 1812.06162"
)
PEREZ_ORTIZ_2021 = Paper(
    "PO21", "Perez-Ortiz et al. 2021", "Tighter Risk Certificates for Neural Networks", "arXiv 2007.12911"
)
RIVASPLATA_2019 = Paper("R19", "Rivasplata et al. 2019", "PAC-Bayes with Backprop", "arXiv 1908.07380")
SEEGER_MAURER = Paper(
    "SM04", "Seeger 2002, Maurer 2004",
    "PAC-Bayesian Generalisation Error Bounds for Gaussian Process Classification; A Note on the PAC Bayesian Theorem",
    "JMLR 3; arXiv cs/0411099",
)  # fmt: skip
THIEMANN_2017 = Paper("T17", "Thiemann et al. 2017", "A Strongly Quasiconvex PAC-Bayesian Bound", "arXiv 1608.05610")

PAPERS: dict[str, Paper] = {p.key: p for p in list(globals().values()) if isinstance(p, Paper)}


def paper(key: str) -> Paper:
    """The paper of a key. Raises UnknownName, suggesting the nearest."""
    if key not in PAPERS:
        raise UnknownName("paper", key, PAPERS)
    return PAPERS[key]
