"""Quantities that a trial reads off the runs of a study: their rows, and quantities named by short expressions.

A row has what a run was told and what it found; in the toy, a row each for its sharp and its flat minimum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any

from flatminima.errors import UsageError
from flatminima.ranking import kendall
from flatminima.studies._jia_table import best_held_out, settings

Row = dict[str, Any]
READ_AT = 0.05  # expected sharpness at which N17 reads its bi-criteria plots
_NOISE = 2.0  # standard errors that a Monte-Carlo mean must exceed to have a logarithm
_SCHEMES = ("none", "flip", "1-crop-f", "4-crop-f")
_JOINS: Mapping[str, Callable[[float, float], float]] = {
    " + ": lambda a, b: a + b,
    " - ": lambda a, b: a - b,
    " / ": lambda a, b: a / b,
}
_NORMS = ("l2", "l1_path", "l2_path", "spectral")
_SIMILAR, MOST = 2.0, 0.9  # losses that sec. 7.1 of J20 calls very similar; share of the runs that meet a premise
_METRICS = (("logdet", "spectral", "frobenius", "robustness"), ("confusion", "ln_kl_at_sharpness", "sharpness", "l2"))
_FUNCTIONS: Mapping[str, Callable[[float], float]] = {"ln": math.log, "log2": math.log2, "abs": abs}


def rows(document: Mapping[str, Any]) -> list[Row]:
    """The runs of a results.json that succeeded; "seconds" is the time of a core that each took."""
    found: list[Row] = []
    for run in document["runs"]:
        if "result" not in run:
            continue
        row = {**run["config"], **run["result"], "seconds": run.get("core_seconds", run["seconds"])}
        if row.get("found") and "sharp" in row:
            half = {"seconds": row["seconds"] / 2}  # both are of one run
            found += [{**row, **row[place], **half, "place": place} for place in ("sharp", "flat")]
        elif row.get("found", True) or "local_minima" in row:
            found.append(row)
    for row in found:
        row.update(_derived(row))
    _relative(found)
    _chosen(found)
    _of_similar_loss(found)
    return found + _taus(found) + _noises(found)


def value(expression: str, row: Row) -> float | None:
    """A quantity of a row: a column or a number; "ln", "log2" or "abs" of one; "a + b", "a - b" and "a / b".

    Returns:
        None where a column is absent, None, no number, or a logarithm is of nothing positive.

    Examples:
        >>> value("ln l2 - ln l1", {"l2": 4.0, "l1": 2.0}) == math.log(2)
        True
    """
    for sign, join in _JOINS.items():
        if sign in expression:
            first, second = (value(part, row) for part in expression.rsplit(sign, 1))
            return None if first is None or second is None or (sign == " / " and second == 0) else join(first, second)
    function, _, rest = expression.partition(" ")
    if rest:
        if function not in _FUNCTIONS:
            raise UsageError(f"no function {function!r} in {expression!r}; known are {', '.join(_FUNCTIONS)}")
        inside = value(rest, row)
        if inside is None or (function != "abs" and inside <= 0):
            return None
        return _FUNCTIONS[function](inside)
    try:
        return float(expression)
    except ValueError:
        found = row.get(expression)
    return None if found is None or isinstance(found, str) or not math.isfinite(found) else float(found)


def fits(row: Row, where: Mapping[str, Any]) -> bool:
    """Whether a row has the values; a list means any of them, "<= 3" and ">= 3" for an order."""
    return all(_fits(row.get(key), wanted) for key, wanted in where.items())


def _fits(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, str) and wanted[:3] in ("<= ", ">= "):
        bound = float(wanted[3:])
        return found is not None and (found <= bound if wanted[0] == "<" else found >= bound)
    return found in wanted if isinstance(wanted, (list, tuple)) else bool(found == wanted)


def _derived(row: Row) -> Row:
    """Columns that follow from a row alone."""
    found: Row = {}
    if row.get("scheme") in _SCHEMES:
        found["scheme_order"] = float(_SCHEMES.index(row["scheme"]))
    if row.get("target_loss") is not None and "train_loss" in row and "reached" not in row:
        found["reached"] = row["train_loss"] < row["target_loss"]
    if "robustness" in row:  # of J20's figures, whose first releases did not say it
        found["equal_loss"] = row.get("target_loss") is not None
    if "limit" in row:
        found["all_images"] = row["limit"] is None
    if "factor" in row:
        found["abs_ln_factor"] = abs(math.log(row["factor"]))
    if "test_loss" in row and "loss" in row:
        found["gap"] = row["test_loss"] - row["loss"]
    if row.get("curve") and isinstance(row["curve"][0], dict):
        told = _read_off(row["curve"], READ_AT)
        found["ln_kl_at_sharpness"], found["ln_kl_at_sharpness_stderr"] = told or (None, None)
    if row.get("inverse_mu"):
        found["mu"] = 1 / row["inverse_mu"]
    if "max_norm" in row:
        found["clipped"] = row["max_norm"] is not None
    if row.get("ln_margin_0.05") is not None:
        found |= _at_other_margins(row)
    by_sample = row.get("by_sample")
    if by_sample:
        middle = sorted(by_sample["c3"])
        found["c3_median"] = middle[len(middle) // 2]
    return found


def _at_other_margins(row: Row) -> Row:
    """The capacities with another margin in the place of the figures': "l2_at_0.01", "l2_at_mean" and so on."""
    found: Row = {}
    for name, margin in row.items():
        place = name.removeprefix("ln_margin_")
        if place != name and margin is not None:
            moved = 2 * (row["ln_margin_0.05"] - margin)  # a capacity goes with the inverse square of the margin
            found |= {f"{norm}_at_{place}": row[norm] + moved for norm in _NORMS if row.get(norm) is not None}
    return found


def ln_kl_at(curve: Sequence[Mapping[str, Any]], sharpness: float) -> float | None:
    """ln KL of the noise that costs so much expected sharpness, logarithms interpolated.

    Points within their Monte-Carlo noise are left out; None where the curve does not reach so far.
    """
    found = _read_off(curve, sharpness)
    return None if found is None else found[0]


def _read_off(curve: Sequence[Mapping[str, Any]], sharpness: float) -> tuple[float, float] | None:
    """`ln_kl_at`, and the standard error that the Monte-Carlo noise of the points beside it gives it."""
    points = sorted(
        (p["sharpness"], p["kl"], p.get("stderr") or 0.0)
        for p in curve
        if p["sharpness"] > 0 and p["kl"] > 0 and p["sharpness"] > _NOISE * (p.get("stderr") or 0.0)
    )
    for (low, first, error), (high, second, other) in pairwise(points):
        if low <= sharpness <= high and high > low:
            part = math.log(sharpness / low) / math.log(high / low)
            steep = (math.log(second) - math.log(first)) / math.log(high / low)
            noise = math.hypot((1 - part) * error / low, part * other / high)
            return (1 - part) * math.log(first) + part * math.log(second), abs(steep) * noise
    return None


def _relative(found: list[Row]) -> None:
    """How far a rescaled network's measures moved: |ln| of the ratio to the network as it was."""
    plain = {row["seed"]: row for row in found if row.get("factor") == 1.0}
    for row in found:
        before = plain.get(row.get("seed"))
        if before is None or "factor" not in row:
            continue
        for name in ("pacgen", "pacgen_invariant", "hessian_trace", "hessian_top_eigenvalue", "sharpness", "bound"):
            if row.get(name) and before.get(name) and row[name] / before[name] > 0:
                row[f"moved_{name}"] = abs(math.log(row[name] / before[name]))


def _chosen(found: list[Row]) -> None:
    """Mark the strength of a regularizer that errs least on held-out images, by data set and network or method."""
    groups: dict[tuple[Any, ...], dict[tuple[Any, ...], list[Row]]] = {}
    for row in found:
        strength = row.get("beta") or row.get("setting")
        unclipped = row.get("max_norm", 0.0) is None  # a comparison, of which the papers do not choose
        if strength and "validation_error" in row and not unclipped:
            kind = (row.get("data"), row.get("name"), row.get("method"))
            setting = (strength, *settings(row))
            groups.setdefault(kind, {}).setdefault(setting, []).append(row)
    for by_strength in groups.values():
        best = best_held_out(list(by_strength.values()))
        for own in by_strength.values():
            for row in own:
                row["chosen"] = own is best


def _of_similar_loss(found: Sequence[Row]) -> None:
    """Mark the networks of J20's figures that its sec. 7.1 compares, which are of very similar training loss.

    They are those of the printed training where it ends so, else those that were trained to one loss, if there are any.
    """
    own = [row for row in found if "robustness" in row and "train_loss" in row]
    printed = [row for row in own if not row["equal_loss"]]
    controls = [row for row in own if row["equal_loss"] and row.get("reached")]
    alike = len(alike_in([[row["train_loss"]] for row in printed], _SIMILAR)) >= MOST * len(printed)
    compared = printed if printed and (alike or not controls) else controls
    for row in own:
        row["similar_loss"] = any(row is other for other in compared)


def alike_in(losses: Sequence[Sequence[float]], factor: float) -> list[int]:
    """Places of the runs whose training losses are within a factor of each other, as many as there can be.

    A run that says no loss is none of them.
    """
    found: list[int] = []
    for low in {min(own) for own in losses if own}:
        inside = [i for i, own in enumerate(losses) if own and low <= min(own) and max(own) <= factor * low]
        found = max(found, inside, key=len)
    return found


def _taus(found: list[Row]) -> list[Row]:
    """Of each seed, Kendall's tau with the test error of each metric of J20's figures and N17's third, a row each."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in found:
        for names in _METRICS:
            if row.keys() >= {*names, "test_error"}:
                key = (row["seed"], row.get("data"), row.get("name"), row.get("equal_loss"), names)
                groups.setdefault(key, []).append(row)
    rows_of_tau = []
    for (seed, data, name, equal_loss, metrics), own in groups.items():
        for metric in metrics:
            tau = _tau(
                [(r[metric], r.get(f"{metric}_stderr") or 0.0, r["test_error"]) for r in own if r[metric] is not None]
            )
            shared = {"seed": seed, "data": data, "name": name, "equal_loss": equal_loss, "metric": metric, "tau": tau}
            shared |= {key: own[0].get(key) for key in ("network", "similar_loss")}
            shared |= {k: max(r[k] for r in own) for k in ("train_error", "train_loss") if all(k in r for r in own)}
            if "train_loss" in shared:
                shared["least_train_loss"] = min(r["train_loss"] for r in own)
            rows_of_tau.append({**shared, "seconds": sum(r["seconds"] for r in own) / len(metrics)})
    return rows_of_tau


def _tau(points: Sequence[tuple[float, float, float]]) -> float | None:
    """Kendall's tau of values, each with its Monte-Carlo error, with test errors; pairs within their noise are out."""
    pairs = list(combinations(points, 2))
    told = [(a, b) for a, b in pairs if not (noise := _NOISE * math.hypot(a[1], b[1])) or abs(a[0] - b[0]) > noise]
    if not told:
        return None
    if len(told) == len(pairs):
        return kendall([p[0] for p in points], [p[2] for p in points]).tau
    products = [(a[0] - b[0]) * (a[2] - b[2]) for a, b in told]
    return (sum(p > 0 for p in products) - sum(p < 0 for p in products)) / len(told)


def _noises(found: list[Row]) -> list[Row]:
    """Of each minimum of the toy, its mean loss at each level of noise: a row each, levels counted from 0."""
    return [
        {key: row.get(key) for key in ("seed", "place", "sharp_is_global")}
        | {"noise": level, "noisy_loss": loss, "seconds": 0.0}
        for row in found
        for level, loss in enumerate(row.get("noisy_losses", ()))
    ]
