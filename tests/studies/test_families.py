"""The machinery whole, on drawn runs: trials, their penalty, Holm over a paper's claims, the choice of the scale."""

import math

import numpy as np
import pytest
from scipy.stats import nct, t

from flatminima.studies.claims import Claim, Finding, Trial
from flatminima.studies.claims.evaluate import RUNGS, _judged
from flatminima.studies.inference import LEVEL
from flatminima.studies.verdict import CONTRADICTED, REPRODUCED

SEEDS, PLACES, MARGIN = 5, 3, 1.0
GROUPS = {"first": {"on": True}, "second": {"on": False}}


def _pair(y, shape="larger", **more):
    return Trial("s", shape, y, **GROUPS, pair=("seed", "x"), **more)


def _line(y, shape="rises", **more):
    return Trial("s", shape, y, x="x", where={"on": False}, **more)


def _family(*trials):
    return [Claim(f"c{i}", "W1", "q", "w", trials=own) for i, own in enumerate(trials)]


# one of each kind of sentence, and one of three trials
PAPER = _family(
    (_line("a"),),
    (_pair("b"),),
    (_line("c"), _pair("d"), _line("e", "falls")),
    (_line("f", "flat", margin=MARGIN),),
    (_pair("g", "not_larger", margin=MARGIN),),
    (Trial("s", "at_least", "h", bound=0.0, share=0.5),),
)
QUANTITIES = "abcdefgh"
FALSE = (REPRODUCED, CONTRADICTED)


def _runs(rng, effects):
    """Runs of one network; `effects` is what the first group has beyond the second, and the slope, by quantity."""
    cells = [(seed, x, on) for seed in range(SEEDS) for x in range(PLACES) for on in (0, 1)]
    noise, level = (rng.standard_normal((n, len(QUANTITIES))) for n in (len(cells), SEEDS))
    found = []
    for (seed, x, on), drawn in zip(cells, noise, strict=True):
        values = {q: 3 * level[seed, i] + effects.get(q, 0.0) * (x + on) + drawn[i] for i, q in enumerate(QUANTITIES)}
        found.append({"seed": seed, "x": x, "on": bool(on), "seconds": 1.0} | values | {"h": drawn[-1]})
    return {"s": found}


def test_a_paper_of_false_sentences_has_a_false_verdict_in_one_of_twenty_families_at_most():
    """At each scale; over three scales, of which the largest that decides speaks, in three of twenty at most.

    Effects are none where a sentence asserts one, and as large as the margin where it asserts none. That an effect is
    smaller than claimed is true there, and is not counted. Three binomial standard errors of 240 families are 0.042, of
    80 over three scales 0.12. Single trials, before Holm and the penalty, are wrong in more than one of ten families.
    """
    rng, families, wrong, whole, single = np.random.default_rng(0), 80, 0, 0, 0
    for _ in range(families):
        found = {scale: _judged(PAPER, _runs(rng, {"f": MARGIN, "g": MARGIN})) for scale in RUNGS}
        wrong += sum(any(v.verdict in FALSE for v in own.values()) for own in found.values())
        parts = [[part.verdict for v in own.values() for part in v.trials] for own in found.values()]
        single += sum(any(word in FALSE for word in own) for own in parts)
        whole += any(Finding(c, {scale: found[scale][c.id] for scale in RUNGS}).word in FALSE for c in PAPER)
    scales = families * len(RUNGS)
    assert wrong / scales <= LEVEL + 0.042 and whole / families <= 3 * LEVEL + 0.12
    assert single / scales > 2 * LEVEL + 0.042, "else nothing had to be corrected"


@pytest.mark.parametrize(("effect", "sentences"), [(1.5, 1), (1.5, 5), (3.0, 5)])
def test_a_real_effect_is_found_as_often_as_its_power_says(effect, sentences):
    """By Holm's first step, as the other sentences are false; two binomial standard errors of 250 are 0.06."""
    names = [f"y{i}" for i in range(sentences)]
    paper = _family(*[(Trial("s", "larger", y, **GROUPS),) for y in names])
    rng, hits, repeats = np.random.default_rng(1), 0, 250
    for _ in range(repeats):
        values = rng.standard_normal((2, SEEDS, sentences)) / math.sqrt(2)
        values[1, :, 0] += effect
        own = [
            {"seed": s, "on": bool(on), "seconds": 1.0} | dict(zip(names, values[on, s].tolist(), strict=True))
            for on in (0, 1)
            for s in range(SEEDS)
        ]
        hits += _judged(paper, {"s": own})["c0"].verdict == REPRODUCED
    edge = t.ppf(1 - LEVEL / 2 / sentences, SEEDS - 1)
    expected = nct.sf(edge, SEEDS - 1, effect * math.sqrt(SEEDS))
    assert 0.2 < expected < 0.999 and hits / repeats == pytest.approx(expected, abs=0.06)
