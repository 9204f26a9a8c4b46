"""The verdicts in words, for the page of the studies, docs/results.md and the terminal alike."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

_SHORT = 0.005  # hours of a core, below which a number says nothing
_OPEN = ("not informative", "premise not met")
_UNSIGNED = ("worst run", "share of runs")  # values of runs, no difference or slope
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
MARKS: Mapping[str, str] = MappingProxyType(
    {
        "revised": "the sentence's runs, premise, margin or calculation were changed after a result was seen; its note "
        "says how"
    }
)
_ORDER = ("contradicted", "fails", "smaller than claimed", "reproduced", "holds")
_DECIDED = ("reproduced", *AGAINST)
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
        parts.append(f"about {claim['hours']:.2g} core-hours more of these runs would decide it")
    return "; ".join(parts)


def trial_lines(verdict: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The name of each trial of a sentence, with its number and its verdict; none of a sentence that has one trial.

    The verdicts are of the trials alone, before the penalty for how many there are and before Holm's correction.
    """
    trials = verdict.get("trials") or ()
    same = Counter((t["data"], t["network"], t["measured"]) for t in trials)
    named = [_trial_name(t, whole=same[t["data"], t["network"], t["measured"]] > 1) for t in trials]
    told = [(name, f"{_trial_number(t)}{t['verdict']}") for name, t in zip(named, trials, strict=True)]
    return told if len(trials) > 1 else []


def disagree(verdict: Mapping[str, Any]) -> bool:
    """Whether the trials of a sentence came to different verdicts."""
    return len({t["verdict"] for t in verdict.get("trials") or ()}) > 1


def _trial_name(trial: Mapping[str, Any], *, whole: bool) -> str:
    """Name what a trial is of; `whole`: with the quantity, where the words alone are those of another too."""
    said, _, kind = trial["measured"].partition(": ")
    quantity = trial["quantity"] if whole and trial["quantity"] not in said else ""
    named = ", ".join(part for part in (trial["data"], trial["network"], said, quantity) if part)
    return f"{named}: {kind or 'value'}" if trial["statistic"] is not None else f"{named}:"


def _trial_number(trial: Mapping[str, Any]) -> str:
    if trial["statistic"] is None:
        return f"{trial['note']}: " if trial["note"] else ""
    p = "" if trial["p"] is None else f", p {trial['p']:.2g}"
    return f"{interval(trial)}{p}: "


def disagreements(findings: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], str]]:
    """Sentences that runs decide differently at two scales, with each scale's word and number."""
    found = []
    for f in findings:
        own = {scale: v for scale, v in f["scales"].items() if v["verdict"] in _DECIDED}
        if len({v["verdict"] for v in own.values()}) > 1:
            each = (f"{scale} {v['verdict']}, {interval(v)}".rstrip(", ") for scale, v in own.items())
            found.append((f, f"{'; '.join(each)}. {f['scale']} counts"))
    return found


def joined(parts: Sequence[str]) -> str:
    """Notes as one text, without those that are empty."""
    return "; ".join(part.rstrip(".") for part in parts if part)


def beside_statistic(verdict: Mapping[str, Any], finding: Mapping[str, Any]) -> list[str]:
    """Everything that a reader must know of a verdict beside its statistic, without the registry's note.

    Where the registry names what would decide, that is the cost: more of the same runs would be another.
    """
    said = verdict["note"] if verdict["statistic"] is not None else ""
    needs = needed(finding)
    return [said, open_question({**verdict, "hours": None} if needs else verdict), needs]


def needed(finding: Mapping[str, Any]) -> str:
    """The runs that would decide a claim that is not decided, as the registry names them."""
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
    first = f"The papers make {len(findings)} claims." if whole else f"These are {len(findings)} of the papers' claims."
    if not tried:
        return [f"{first} {words['stated']} are about the papers themselves, and none of the others is tried."]
    return [
        f"{first} {words['stated']} are about the papers themselves, which no run can "
        f"decide; {words['not tried']} are not tried.",
        *(_came_of(how, own) for how, own in _by_means(tried)),
        "In brackets are the tests, as sentences that the same trials or the same calculation decide count once.",
        _open_of_own(tried),
        *_revised(tried),
        "An interval is at 95 %, Student's, each seed with its own level; a verdict that has one holds after Holm's "
        "correction over the tests of a paper at its scale. A sentence about every run has none: one run contradicts "
        "it. Comparisons beside the papers' are not counted.",
        "The largest of three scales that decides speaks: a sentence has three chances, and nothing corrects for it. "
        "A smaller scale does not speak where a trial on a larger one comes out against it.",
    ]


def _by_means(tried: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The sentences that runs decide, and those that calculations do; those of either that there are."""
    parts: dict[str, list[Mapping[str, Any]]] = {"runs": [], "calculation": []}
    for f in tried:
        parts["calculation" if f["scale"] == "calculation" else "runs"].append(f)
    return [(how, own) for how, own in parts.items() if own]


def _came_of(how: str, own: Sequence[Mapping[str, Any]]) -> str:
    by_word = {word: [f for f in own if f["verdict"] == word] for word in _TRIED}
    each = ", ".join(f"{len(same)} {word} ({_tests(same)})" for word, same in by_word.items() if same)
    good = by_word["reproduced"]
    defined = sum(bool(f.get("definition")) for f in good)
    empirical = sum(f["kind"] == "empirical" for f in good)
    more = f"{empirical} of the reproduced are the papers' own observations, the others cited or theoretical"
    if how == "calculation":
        more = f"{defined} of the reproduced hold by definition"
    tests = _tests(own)
    return f"{len(own)} by {how}, in {tests} test{'s' if tests > 1 else ''}: {each}." + (f" {more}." if good else "")


def _open_of_own(tried: Sequence[Mapping[str, Any]]) -> str:
    """How many of the papers' own sentences are not decided, by runs and in all."""

    def counted(about: Sequence[Mapping[str, Any]]) -> str:
        open_ones = (f"{_share(about, word)} {word}" for word in ("not informative", "premise not met"))
        return " and ".join(open_ones)

    own = [f for f in tried if f["kind"] != "cited"]
    by_runs = [f for f in own if f["scale"] != "calculation"]
    said = f"Of the papers' own sentences, not cited ones, {len(by_runs)} are tried by runs: {counted(by_runs)}."
    return said if len(own) == len(by_runs) else f"{said} With calculations they are {len(own)}: {counted(own)}."


def _share(about: Sequence[Mapping[str, Any]], word: str) -> str:
    n = sum(f["verdict"] == word for f in about)
    return f"{n} ({100 * n / len(about):.0f} %)" if n else "0"


def _revised(tried: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence on the entries that were changed after a result was seen; none where none was."""
    if not any(f.get("revised") for f in tried):
        return []
    parts = []
    for how, own in _by_means(tried):
        changed = [f for f in own if f.get("revised")]
        each = ((word, [f for f in own if f["verdict"] == word]) for word in _TRIED)
        of_words = (f"{sum(bool(f.get('revised')) for f in same)} of {len(same)} {word}" for word, same in each if same)
        share = f"{100 * len(changed) / len(own):.0f} %"
        parts.append(f"{len(changed)} of the {len(own)} by {how} ({share}; {', '.join(of_words)})")
    said = "; ".join(parts)
    return [
        f"Runs, premise, margin or calculation were changed after a result was seen: {said}. They are marked revised."
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
