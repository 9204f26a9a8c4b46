"""The verdicts in words, for the page of the studies, docs/results.md and the terminal alike."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

_SHORT = 0.005  # hours of a core, below which a number says nothing
_OPEN = ("not informative", "premise not met")
_UNSIGNED = "worst run"  # a value of one run, not a difference or a slope
_ROUNDING = 1e-12  # of an interval's width
AGAINST = ("contradicted", "smaller than claimed")
MEANINGS: Mapping[str, str] = MappingProxyType(
    {
        "reproduced": "the interval lies on the claimed side, and the paper's effect is not excluded",
        "contradicted": "the interval lies on the other side",
        "smaller than claimed": "the paper's effect, or the smallest that would count, is excluded",
        "premise not met": "the sentence is about networks that ours are not, such as fitted ones",
        "not informative": "none of these; the power that the runs had, and the core-hours that would decide it, are "
        "beside it",
        "stated": "the sentence is about the paper itself, and no run can decide it",
    }
)
SCALES_MEAN: Mapping[str, str] = MappingProxyType(
    {
        "cpu": "two cores and minutes a study",
        "half": "smaller than the paper's, but each seed has data of its own",
        "paper": "the paper's sizes",
        "counts": "of the scales at which a sentence was tried, the largest that decides it: only its verdict is "
        "counted, and its row is marked",
    }
)
_ORDER = ("contradicted", "fails", "smaller than claimed", "reproduced", "holds")
_TRIED = tuple(word for word in MEANINGS if word != "stated")
TESTS = "distinct tests"


def here(claim: Mapping[str, Any]) -> str:
    """A claim's statistic with its interval, as text; of a slope or a difference with its sign."""
    if claim["statistic"] is None:
        return claim["note"] or f"no {claim['measured']}"
    return f"{claim['measured']} {interval(claim)}"


def interval(claim: Mapping[str, Any]) -> str:
    """The value of a claim's statistic with its interval, or empty; what rounding alone leaves of nothing is 0.

    Examples:
        >>> interval({"measured": "tau: difference", "statistic": -1.9e-17, "low": -0.766, "high": 0.766})
        '0 (-0.766 to +0.766)'
    """
    value, low, high = claim["statistic"], claim["low"], claim["high"]
    if value is None:
        return ""
    style = "" if claim["measured"].endswith(_UNSIGNED) else "+"
    least = 0.0 if low is None or high is None else _ROUNDING * (high - low)
    shown = ["0" if v is None or abs(v) <= least else f"{v:{style}.3g}" for v in (value, low, high)]
    return shown[0] if low is None or low == high else f"{shown[0]} ({shown[1]} to {shown[2]})"


def open_question(claim: Mapping[str, Any]) -> str:
    """The power that a claim without a verdict had, and what would decide it; empty where neither is known."""
    parts = []
    if claim.get("power") is not None and claim.get("effect") is not None:
        parts.append(f"power {100 * claim['power']:.0f} % to see {abs(claim['effect']):.3g}")
    if claim.get("hours") is not None and claim["hours"] >= _SHORT:
        parts.append(f"about {claim['hours']:.2g} core-hours more would decide it")
    return "; ".join(parts)


def joined(parts: Sequence[str]) -> str:
    """Notes as one text, without those that are empty."""
    return "; ".join(part.rstrip(".") for part in parts if part)


def beside_statistic(verdict: Mapping[str, Any], finding: Mapping[str, Any]) -> list[str]:
    """Everything that a reader must know of a verdict beside its statistic."""
    said = verdict["note"] if verdict["statistic"] is not None else ""
    return [said, open_question(verdict), finding["note"], needed(finding)]


def needed(finding: Mapping[str, Any]) -> str:
    """The runs that would decide a claim that is not decided, beyond more of the same."""
    return f"needs {finding['needs']}" if finding["needs"] and finding["verdict"] in _OPEN else ""


def paper_effect(finding: Mapping[str, Any]) -> str:
    """The paper's effect, and what of it counts; empty where neither is known."""
    counts = f"What counts: {finding['why']}" if finding["why"] else ""
    return ". ".join(part.rstrip(".") for part in (finding["effect"], counts) if part)


_SIGNS: Mapping[str, str] = MappingProxyType(
    {
        "nabla": "∇", "Psi": "Ψ", "kappa": "κ", "sigma": "σ", "tau": "τ", "rho": "ρ", "eta": "η", "gamma": "γ",
        "delta": "δ", "epsilon": "ε", "sum": "Σ", "forall": "∀", "|": "‖", " ": " ", "log": "log ",
        "leq": "≤ ", "geq": "≥ ", "gg": "≫ ", "in": "∈ ", "cdot": "· ",
    }
)  # fmt: skip
_TWO = re.compile(r"\\frac\{([^{}]*)\}\{([^{}]*)\}")
_ROOT = re.compile(r"\\sqrt\{([^{}]*)\}")


def readable(quote: str) -> str:
    """A quotation whose formulas, LaTeX in some prints, are in signs.

    Examples:
        >>> readable(r"the $\\nabla^2 \\hat{L}(w^*)$ is $\\geq \\frac{1}{2m}$ with $2^{-(j+1)}$")
        'the ∇²L̂(w*) is ≥ 1/(2m) with 2^-(j+1)'
    """
    parts = quote.replace("^*", "*").split("$")
    return "".join(part if k % 2 == 0 else _formula(part) for k, part in enumerate(parts))


def _formula(latex: str) -> str:
    """A short formula in signs; a command that has none stays a word."""
    text = re.sub(r"\\hat\{(\w)\}", "\\1\N{COMBINING CIRCUMFLEX ACCENT}", latex)
    text = re.sub(r"\\(?:mathbb|mathbf|text)\{(\w+)\}", r"\1", text).replace("^{-1}", "⁻¹")
    text = re.sub(r"\\(?!frac|sqrt)([A-Za-z]+|[| ]) ?", lambda m: _SIGNS.get(m[1], f"{m[1]} "), text)
    while _TWO.search(text) or _ROOT.search(text):
        text = _ROOT.sub(lambda m: f"√{_whole(m[1])}", _TWO.sub(lambda m: f"{_whole(m[1])}/{_whole(m[2])}", text))
    text = re.sub(r"([_^])\{([^{}]*)\}", r"\1\2", text)
    return text.replace("^2 ", "²").replace("^2", "²").replace("^T", "ᵀ")


def _whole(text: str) -> str:
    """A part of a fraction, in brackets unless it is one name."""
    return text if re.fullmatch(r"\w|\w_\w", text) else f"({text})"


def elided(quote: str) -> str:
    """A quotation with dots where it is cut: where it begins without a capital, or does not end a sentence.

    Examples:
        >>> elided("is larger"), elided("It is.")
        ('... is larger ...', 'It is.')
    """
    quote = readable(quote)
    start = "" if quote.lstrip("\"'([“")[:1].isupper() else "... "
    end = "" if quote.rstrip("\"')]”").endswith((".", "!", "?")) else " ..."
    return f"{start}{quote}{end}"


def by_verdict(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in the order of their verdicts: against the paper, for it, open."""
    return sorted(rows, key=lambda row: _ORDER.index(row["verdict"]) if row["verdict"] in _ORDER else len(_ORDER))


def not_come_out(findings: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The number, scale and verdict that speaks against sentences, with all sentences that it decides; most first."""
    by_number: dict[str, list[Mapping[str, Any]]] = {}
    for f in findings:
        if f["verdict"] in AGAINST:
            verdict = f["scales"][f["scale"]]
            number = verdict["note"] if f["scale"] == "calculation" else here(verdict)
            by_number.setdefault(f"{number} ({f['scale']}): {f['verdict']}", []).append(f)
    return sorted(by_number.items(), key=lambda item: -len(item[1]))


def overview(
    findings: Sequence[Mapping[str, Any]], titles: Mapping[str, str]
) -> tuple[list[str], list[tuple[str, list[int]]]]:
    """The number of claims of each document by what came of them, and of the tests that decide them.

    Returns:
        The verdicts that occur, with `TESTS` as the last word; and a row a document.
    """
    words = [word for word in (*_TRIED, "not tried", "stated") if any(f["verdict"] == word for f in findings)]
    counted = Counter((f["paper"], f["verdict"]) for f in findings)
    rows = [
        (title, [*(counted[key, word] for word in words), _tests([f for f in findings if f["paper"] == key])])
        for key, title in titles.items()
    ]
    return [*words, TESTS], rows if findings else []


def summary(findings: Sequence[Mapping[str, Any]], *, whole: bool = True) -> list[str]:
    """The verdicts on the papers' claims, in sentences; `whole`: not those of one paper or study."""
    words = Counter(f["verdict"] for f in findings)
    tried = [f for f in findings if f["verdict"] not in ("not tried", "stated")]
    calculated = sum(f["scale"] == "calculation" for f in tried)
    own = [f for f in tried if f["kind"] != "cited"]
    by_runs = [f for f in tried if f["scale"] != "calculation" and f["verdict"] == "reproduced"]
    empirical = sum(f["kind"] == "empirical" for f in by_runs)
    defined = sum(bool(f.get("definition")) and f["verdict"] == "reproduced" for f in tried)
    revised = Counter(f["verdict"] for f in tried if f.get("revised"))
    undecided = sum(f["verdict"] == "not informative" for f in own)
    parts = [f"{words[w]} {w} ({_tests([f for f in tried if f['verdict'] == w])})" for w in _TRIED if words[w]]
    first = f"The papers make {len(findings)} claims." if whole else f"These are {len(findings)} of the papers' claims."
    how = f"{calculated} of the sentences by calculation and the others by runs"
    if calculated in (0, len(tried)):
        how = "all by calculation" if calculated else "all by runs"
    if not tried:
        return [f"{first} {words['stated']} are about the papers themselves, and none of the others is tried."]
    return [
        f"{first} {words['stated']} are about the papers themselves, which no run can "
        f"decide; {words['not tried']} are not tried.",
        f"{len(tried)} sentences, decided by {_tests(tried)} tests, {how}: {', '.join(parts)}. In "
        "brackets are the tests, as sentences that the same trials or the same calculation decide count once.",
        f"Of the reproduced, {len(by_runs)} are so by runs, {empirical} of these the papers' own observations and the "
        f"others cited or theoretical; {words['reproduced'] - len(by_runs)} are so by calculation, {defined} of these "
        "by definition.",
        f"{len(own)} of the sentences are the papers' own, not cited ones; of these {undecided} are not informative.",
        *_revised(revised),
        "An interval is at 95 %, Student's, each seed with its own level; a verdict that has one holds after Holm's "
        "correction over the tests of a paper at its scale. A sentence about every run has none: one run contradicts "
        "it. Comparisons beside the papers' are not counted.",
    ]


def _revised(counts: Mapping[str, int]) -> list[str]:
    """A sentence on the entries that were changed after a result was seen; none where none was."""
    if not counts:
        return []
    each = ", ".join(f"{counts[word]} {word}" for word in _TRIED if counts.get(word))
    return [
        f"Of {sum(counts.values())} sentences runs, premise, margin or calculation were changed after a result was "
        f"seen, as their notes say: {each}."
    ]


def _tests(findings: Sequence[Mapping[str, Any]]) -> int:
    return len({f["test"] for f in findings if f["test"] is not None})


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    Examples:
        >>> duration(59.4), duration(600), duration(9_000), duration(360_000)
        ('59 s', '10 min', '2.5 h', '100 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7_200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3_600:.1f} h" if seconds < 36_000 else f"{seconds / 3_600:.0f} h"
