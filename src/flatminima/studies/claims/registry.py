"""The papers' own sentences, as data: what each says, of what, under which premise, and how it is tried.

One TOML file a paper beside this module. A sentence is quoted as printed; its trials name quantities of runs and one
shape of a closed list. `settings` are the numbers that a paper prints of its experiments, which `setups` compares with
ours.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from flatminima.catalog import PAPERS
from flatminima.errors import UsageError

KINDS: Mapping[str, str] = MappingProxyType(
    {
        "empirical": "an observation on networks, in an experiment of the paper",
        "theoretical": "a theorem, an inequality, or a consequence of one",
        "cited": "what the paper reports of another one",
        "stated": "about the paper's own aim, novelty or judgement; no run can decide it",
    }
)
_SHAPES: Mapping[str, str] = MappingProxyType(
    {
        "rises": "y rises along x",
        "falls": "y falls along x",
        "not_rises": "y does not rise along x: by less than the margin, if at all",
        "not_falls": "y does not fall along x: by less than the margin, if at all",
        "flat": "y changes along x by less than the margin, either way",
        "v": "y falls along x to a vertex, and rises beyond it",
        "larger": "y is larger in the first group of a pair than in the second",
        "smaller": "y is smaller in the first group of a pair than in the second",
        "similar": "y differs between the groups of a pair by less than the margin",
        "not_larger": "y is not larger in the first group: by less than the margin, if at all",
        "at_least": "y is at least the bound, in every run or a share of them",
        "at_most": "y is at most the bound, in every run or a share of them",
    }
)
ALONG = ("rises", "falls", "not_rises", "not_falls", "flat", "v")
PAIRED = ("larger", "smaller", "similar", "not_larger")
BOUNDED = ("at_least", "at_most")
PREMISES: Mapping[str, str] = MappingProxyType(
    {  # the number's place holds its value, as in "train error at most 0.01"
        "train error at most": "share of training samples that a network errs on",
        "train loss at most": "nats, at the end of training",
        "train losses within": "nats between the smallest and the largest training loss of the runs compared",
        "train losses within a factor of": "by which partners differ, or, without pairs, the largest and the smallest",
        "epochs at least": "of training: as many as the paper's, where the sentence says that networks were fitted",
        "test error at most": "share: below what guessing gives",
        "outputs equal to": "largest relative change of an output by the rescaling",
    }
)


@dataclass(frozen=True)
class Trial:
    """Trial of a sentence by the runs of one study.

    Attributes:
        study: whose runs. shape: of `_SHAPES`. y: a quantity, see `quantities.value`. x: another, for shapes along it.
        where: columns and their values: the runs it is about. first, second: the same for the two groups of a pair.
        pair: columns in which partners agree. effect: the paper's, in units of y per unit of x, where it has a number.
        margin: the smallest effect that counts, same units. bound: of y, for "at_least" and "at_most"; of its
            difference in a pair, where there are two groups.
        share: of the runs, or pairs, that have to be within it, where the sentence says "generally".
        vertex: the paper's, on the scale of x. said: the quantity in words.
    """

    study: str
    shape: str
    y: str
    x: str | None = None
    where: Mapping[str, Any] = field(default_factory=dict)
    first: Mapping[str, Any] = field(default_factory=dict)
    second: Mapping[str, Any] = field(default_factory=dict)
    pair: tuple[str, ...] = ("seed",)
    effect: float | None = None
    margin: float | None = None
    bound: float | None = None
    share: float = 1.0
    vertex: float | None = None
    said: str = ""


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper.

    Attributes:
        id: in the registry. paper: key in the catalogue. quote: as printed. where: section, caption or footnote.
        kind: of `KINDS`. figure: "Fig. 1", where it is about one. premise: of `PREMISES`, each with its number.
        effect: what the paper prints or plots, as text. why: of the margin. trials: each must come out.
        check: name of a calculation in `checks` that decides it. needs: what it would take, where nothing tries it.
        reads: what it says, where the quotation alone does not tell: its subject, its condition, its negation.
        note: what a reader must know of the verdict. own_numbers: `check` compares it with what the paper prints.
        revised: its runs, premise, margin or calculation were changed after a result was seen; `note` says how.
        definition: true by the form of what is defined, so that its calculation shows it and could not fail.
    """

    id: str
    paper: str
    quote: str
    where: str
    kind: str = "empirical"
    figure: str = ""
    premise: tuple[str, ...] = ()
    effect: str = ""
    why: str = ""
    trials: tuple[Trial, ...] = ()
    check: str | None = None
    needs: str = ""
    reads: str = ""
    note: str = ""
    own_numbers: bool = False
    revised: bool = False
    definition: bool = False

    @property
    def studies(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(trial.study for trial in self.trials))

    @property
    def tried(self) -> str:
        """Trials of it: ids of studies, "calculation", or "not tried"."""
        return ", ".join(self.studies) or ("calculation" if self.check else "not tried")


@dataclass(frozen=True)
class Setting:
    """A number or a name that a paper prints of its experiments.

    Attributes:
        id: in the registry. paper: key in the catalogue. quote, where: as of a claim. studies: whose set-up it is.
        key: of their configurations. value: the paper's. only: other keys and values of the runs that it is about.
    """

    id: str
    paper: str
    quote: str
    where: str
    studies: tuple[str, ...]
    key: str
    value: Any
    only: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PaperClaims:
    """A document: its key, its title, and the first characters of the file that has its text."""

    key: str
    title: str
    text: str
    claims: tuple[Claim, ...]
    settings: tuple[Setting, ...]


@cache
def papers() -> Mapping[str, PaperClaims]:
    """Every document, by key.

    Raises:
        UsageError: a file with an unknown key, shape, kind or premise, or an id that occurs twice.
    """
    found = {key: _read(key, row.claims) for key, row in PAPERS.items() if row.claims}
    seen: set[str] = set()
    for paper in found.values():
        for name in (*(c.id for c in paper.claims), *(s.id for s in paper.settings)):
            if name in seen:
                raise UsageError(f"two entries of the registry are called {name}; rename one")
            seen.add(name)
    return MappingProxyType(found)


def claims(paper: str | None = None, study: str | None = None) -> list[Claim]:
    """The claims of a paper, of all; of a study, those that its runs try."""
    return [
        claim
        for key, found in papers().items()
        for claim in found.claims
        if (paper is None or key == paper) and (study is None or study in claim.studies)
    ]


def _read(key: str, name: str) -> PaperClaims:
    text = files("flatminima.studies.claims").joinpath(f"{name}.toml").read_text(encoding="utf-8")
    raw = tomllib.loads(text)
    told = tuple(_claim(key, entry) for entry in raw.get("claim", ()))
    settings = tuple(_build(Setting, {"paper": key, **entry}, entry.get("id", "?")) for entry in raw.get("setting", ()))
    return PaperClaims(key, raw["title"], raw["text"], told, settings)


def _claim(paper: str, raw: dict[str, Any]) -> Claim:
    name = raw.get("id", "?")
    trials = [
        _build(Trial, {**trial, "y": y}, name)
        for trial in raw.pop("trial", ())
        for y in ([trial["y"]] if isinstance(trial["y"], str) else trial["y"])
    ]
    claim: Claim = _build(Claim, {"paper": paper, **raw, "trials": tuple(trials)}, name)
    if claim.kind not in KINDS:
        raise UsageError(f"{name}: no kind {claim.kind!r}; kinds are {', '.join(KINDS)}")
    for premise in claim.premise:
        if premise.rpartition(" ")[0] not in PREMISES:
            raise UsageError(f"{name}: no premise {premise!r}; premises are {', '.join(PREMISES)}, each with a number")
    for trial in claim.trials:
        if trial.shape not in _SHAPES:
            raise UsageError(f"{name}: no shape {trial.shape!r}; shapes are {', '.join(_SHAPES)}")
    return claim


def _build(kind: type[Any], raw: dict[str, Any], name: str) -> Any:
    known = {f.name for f in fields(kind)}
    if set(raw) - known:
        raise UsageError(f"{name}: unknown {', '.join(sorted(set(raw) - known))}; known are {', '.join(sorted(known))}")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()})
