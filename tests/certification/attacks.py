"""Attempts to have something false certified: each is a call that is refused, says that it is none, or holds.

Labels are random, so that the error of every network on new samples is known. `before` is what the call gave in
version 0.1: the table of docs/certificates.md, which a test compares with this one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from intruders import (
    FREE,
    HALF,
    HEAD,
    SHORT,
    TRUTH,
    D,
    GlobalFeatures,
    Held,
    Integers,
    K,
    Lookup,
    N,
    cached,
    data,
    fine_tuned,
    fresh,
    loaded,
    minimum,
    near,
    patient,
    permuted,
    third_call,
    trained,
    with_closure,
    with_global,
)
from intruding_data import (
    Choosing,
    Claiming,
    DefaultDtype,
    Knowing,
    Obliging,
    Overflowing,
    OwnStatistics,
    Relabelling,
    Swapping,
    around_global,
    best_seed,
    clock,
    copied,
    frozen,
    image_network,
    inherited,
    jittered,
    mixed,
    moved,
    oversampled,
    own_as_prior,
    patients,
    positives,
    searched,
    torn_patients,
    trained_on,
    under,
    with_statistics,
)
from torch import Tensor, nn

from flatminima import Minimum
from flatminima.certification import Certificate, certify, certify_around


@dataclass(frozen=True)
class Attack:
    """One attempt.

    Attributes:
        name: as in the documentation. run: the call.
        before: what it gave. now: what it gives: "refused", "score", "conditional", or "holds" for a true bound.
    """

    name: str
    run: Callable[[], Certificate]
    before: str
    now: str
    truth: float = TRUTH


ATTACKS = (
    Attack(
        "a network that memorised all samples", lambda: certify(trained(), data(), recipe=FREE), "false: 0.022", "score"
    ),
    Attack(
        "the same, stated to be untrained",
        lambda: certify(trained(), data(), recipe=FREE, stated="untrained"),
        "false: 0.022",
        "refused",
    ),
    Attack(
        "the same, stated to be trained on other data",
        lambda: certify(trained(), data(), recipe=FREE, stated="trained on other samples"),
        "false: 0.022",
        "conditional",
    ),
    Attack(
        "a trained backbone under a fresh head", lambda: certify(fine_tuned(), data(), recipe=HEAD), "holds", "score"
    ),
    Attack(
        "a function that returns the trained network",
        lambda: certify_around(minimum(), prior=trained, draws=200),
        "false: 0.051",
        "score",
    ),
    Attack(
        "a function that returns a network next to it",
        lambda: certify_around(minimum(), prior=near, draws=200),
        "false: 0.051",
        "score",
    ),
    Attack("a cached function", lambda: certify(cached, data(), recipe=FREE), "false: 0.022", "refused"),
    Attack("trained weights under noise", lambda: certify(loaded, data(), recipe=FREE), "holds", "refused"),
    Attack("trained from the third call on", lambda: certify(third_call(), data(), recipe=FREE), "holds", "refused"),
    Attack(
        "a global network makes the features",
        lambda: certify(with_global(), data(), recipe=HEAD),
        "false: 0.041",
        "refused",
    ),
    Attack(
        "a closure makes the features", lambda: certify(with_closure(), data(), recipe=HEAD), "false: 0.041", "refused"
    ),
    Attack(
        "8-bit integers make the features", lambda: certify(Integers, data(), recipe=HEAD), "false: 0.403", "refused"
    ),
    Attack("an attribute makes the features", lambda: certify(Held, data(), recipe=HEAD), "false: 0.041", "refused"),
    Attack(
        "a trained backbone, its units in a new order",
        lambda: certify(permuted, data(), recipe=HEAD),
        "false: 0.713",
        "refused",
    ),
    Attack("a table that answers", lambda: certify(Lookup, data(), recipe=FREE), "false: 0.022", "refused"),
    Attack(
        "a table that answers after 20 passes",
        lambda: certify(patient, data(), recipe=FREE),
        "false: 0.401",
        "refused",
    ),
    Attack("a global network, prior at zero", lambda: around_global("zero"), "false: 0.594", "refused"),
    Attack("a global network, prior from a seed", lambda: around_global(GlobalFeatures), "false: 0.576", "score"),
    Attack(
        "a frozen trained backbone, prior at zero",
        lambda: certify_around(frozen(), prior="zero"),
        "refused",
        "refused",
    ),
    Attack(
        "weights next to it, stated to be trained on other data",
        lambda: certify_around(minimum(), "gaussian", prior=near(1e-3), stated="trained elsewhere", draws=64),
        "false: 0.386",
        "conditional",
    ),
    Attack(
        "BatchNorm statistics, counter reset",
        lambda: certify(with_statistics(), data(), recipe=FREE),
        "holds",
        "score",
    ),
    Attack(
        "statistics of the batch by hand", lambda: certify(OwnStatistics, data(), recipe=FREE), "refused", "refused"
    ),
    Attack("the prior's samples are the bound's", lambda: own_as_prior(lambda x: x), "refused", "refused"),
    Attack("the same, permuted labels", lambda: own_as_prior(lambda x: x, lambda y: y.roll(1)), "refused", "refused"),
    Attack("the same, in half precision", lambda: own_as_prior(Tensor.half), "false: 0.108", "refused"),
    Attack("the same, in bfloat16", lambda: own_as_prior(Tensor.bfloat16), "false: 0.107", "refused"),
    Attack("the same, x 255", lambda: own_as_prior(lambda x: x * 255), "false: 0.108", "refused"),
    Attack(
        "the same, standardised", lambda: own_as_prior(lambda x: (x - x.mean(0)) / x.std(0)), "false: 0.108", "refused"
    ),
    Attack(
        "the same, off in a last bit", lambda: own_as_prior(lambda x: x.nextafter(x + 1)), "false: 0.108", "refused"
    ),
    Attack("the same, another shape", lambda: own_as_prior(lambda x: x[:, None] * 2), "false: 0.108", "refused"),
    Attack("every row a hundred times", lambda: certify(fresh, copied(100), recipe=HALF), "false: 0.698", "refused"),
    Attack("every row twice", lambda: certify(fresh, copied(2, 200), recipe=HALF), "holds", "refused"),
    Attack(
        "a class drawn again with replacement", lambda: certify(fresh, oversampled(), recipe=HALF), "holds", "refused"
    ),
    Attack(
        "every row ten times, off in its last bits",
        lambda: certify(fresh, jittered(), recipe=HALF),
        "false: 0.041",
        "refused",
    ),
    Attack(
        "copies, stated to be drawn anew",
        lambda: certify(fresh, copied(100), recipe=HALF, repetition="independent"),
        "false: 0.698",
        "conditional",
    ),
    Attack(
        "twenty rows a patient, with groups",
        lambda: certify(fresh, patients()[0], recipe=HALF, groups=patients()[1]),
        "false: 0.041",
        "holds",
    ),
    Attack("patients on both sides, named", lambda: torn_patients(True), "no groups", "refused"),
    Attack("patients on both sides, the prior's not named", lambda: torn_patients(False), "no groups", "refused"),
    Attack("a data set that swaps its samples", lambda: certify(fresh, Swapping(), recipe=HALF), "holds", "refused"),
    Attack("a data set that relabels a few", lambda: certify(fresh, Relabelling(), recipe=HALF), "holds", "refused"),
    Attack("samples that choose their order", lambda: certify(fresh, Choosing(), recipe=HALF), "holds", "holds"),
    Attack("within autocast", lambda: under(torch.autocast("cpu", dtype=torch.bfloat16)), "holds", "holds"),
    Attack("under another default dtype", lambda: under(DefaultDtype()), "holds", "holds"),
    Attack("within inference mode", lambda: under(torch.inference_mode()), "holds", "holds"),
    Attack("plainly, for comparison", lambda: under(nullcontext()), "holds", "holds"),
    Attack("the least of 16 seeds, charged for 16", best_seed, "holds", "holds"),
    Attack(
        "delta = 0.99",
        lambda: certify(
            lambda: nn.Linear(D, K), data(), recipe=replace(HALF, prior=replace(SHORT, epochs=1)), delta=0.99
        ),
        "holds",
        "holds",
    ),
    Attack(
        "seven samples for the bound",
        lambda: certify(fresh, data(), recipe=replace(HALF, prior_fraction=1 - 7 / N)),
        "refused",
        "refused",
    ),
    Attack(
        "two positives in a hundred",
        lambda: certify(fresh, positives(), recipe=HALF),
        "holds, no constant answer beside it",
        "holds",
        truth=0.02,
    ),
    Attack("outputs that no label differs from", lambda: certify(Claiming, data(), recipe=FREE), "refused", "holds"),
    Attack(
        "logits beyond what a float holds",
        lambda: certify(lambda: Overflowing(D, K), data(), recipe=FREE),
        "refused",
        "refused",
    ),
    Attack(
        "a minimum whose labels are its predictions",
        lambda: certify_around(Obliging(fresh(), data()), "uniform", prior="zero", scales=9.0, draws=64),
        "false: 0.420",
        "refused",
    ),
    Attack(
        "a data set that knows who asks",
        lambda: certify_around(
            Minimum(trained(), Knowing()), "uniform", prior=trained(), stated="trained elsewhere", scales=0.1, draws=64
        ),
        "conditional",
        "refused",
    ),
    Attack("a function that reads a clock", lambda: certify(clock, data(), recipe=FREE), "holds", "refused"),
    Attack(
        "a prior trained here on mixtures of the bound's samples",
        lambda: trained_on(mixed),
        "false: 0.384",
        "conditional",
    ),
    Attack(
        "images moved by a pixel, for prior and bound",
        lambda: certify(image_network, moved(), recipe=replace(HALF, prior=replace(SHORT, epochs=40))),
        "false: 0.329",
        "refused",
    ),
    Attack("a folder with the state of a prior trained on all", inherited, "false: 0.041", "conditional"),
    Attack("25 seeds in a loop, none counted", searched, "holds", "score"),
    Attack(
        "test data that are the training data x 255",
        lambda: certify(fresh, data(), recipe=HALF, test_data=(data()[0] * 255, data()[1])),
        "holds",
        "refused",
    ),
)


def outcome(attack: Attack) -> tuple[str, float]:
    """What an attack gives: one word, and the bound (NaN where there is none)."""
    from flatminima.errors import FlatMinimaError

    try:
        certificate = attack.run()
    except FlatMinimaError:
        return "refused", math.nan
    if certificate.standing == "certificate":
        return ("holds" if certificate.risk_bound >= attack.truth else "FALSE"), certificate.risk_bound
    return certificate.standing, certificate.risk_bound
