"""Counts what a limiter did wrong, from the logs of its callers. `run` has the rules in words.

A span is a pair of instants, in nanoseconds: just before a call, and just after it has returned. The peer decided
somewhere between the two.
"""

import random
from bisect import bisect_right, insort

WINDOW_NS = 1_000_000_000
# Peers that keep time in milliseconds may round, and a wall clock may be slewed by half a millisecond a second.
MARGIN_NS = 2_000_000


def over_admissions(grants, limit):
    """The fewest grants that would have to be taken away so that no window is over the limit for certain."""
    starts = []
    over = 0
    for before, after in sorted(grants, key=lambda span: span[1]):
        insort(starts, before)
        if certainly_within(starts, after) > limit:
            # The one that began last would be in the way of later windows for longest.
            starts.pop()
            over += 1
    return over


def fullest_window(grants):
    """The most grants that are in one window for certain."""
    starts = []
    fullest = 0
    for before, after in sorted(grants, key=lambda span: span[1]):
        insort(starts, before)
        fullest = max(fullest, certainly_within(starts, after))
    return fullest


def certainly_within(starts, after):
    """How many calls both began and returned within the window that ends at `after`, where none returned later."""
    return len(starts) - bisect_right(starts, after - WINDOW_NS + MARGIN_NS)


def false_refusals(refusals, grants, limit):
    """How many calls were refused although the window had room at every instant at which that could be decided."""
    befores = sorted(before for before, _ in grants)
    afters = sorted(after for _, after in grants)
    false = 0
    for before, after in refusals:
        begun = bisect_right(befores, after)
        gone = bisect_right(afters, before - WINDOW_NS - MARGIN_NS)
        false += begun - gone < limit
    return false


def self_test():
    """Logs that are made up: with each kind of fault and without, and such as must not be accused."""
    ms = 1_000_000

    def burst(count, at_ms):
        return [(at_ms * ms + n, at_ms * ms + n + 1_000) for n in range(count)]

    for what, grants, over, fullest in [
        ("nothing", [], 0, 0),
        ("the limit in each window", burst(5, 0) + burst(5, 1_000) + burst(5, 2_000), 0, 5),
        ("two more than the limit", burst(5, 0) + burst(2, 500), 2, 7),
        ("twice the limit around a boundary", burst(5, 900) + burst(5, 1_100), 5, 10),
        ("as above, but a window later", burst(5, 900) + burst(5, 1_100) + burst(5, 2_000), 5, 10),
        ("one more, but perhaps in the next window", burst(5, 0) + [(900 * ms, 1_010 * ms)], 0, 5),
        ("one more, within the margin", burst(5, 0) + burst(1, 999), 0, 5),
    ]:
        found = over_admissions(grants, 5), fullest_window(grants)
        assert found == (over, fullest), f"{what}: {found}"

    for what, refusal, grants, false in [
        ("the window is empty", (500, 501), [], 1),
        ("room for one", (500, 501), burst(4, 0), 1),
        ("full", (500, 501), burst(5, 0), 0),
        ("full until just now", (1_001, 1_002), burst(5, 0), 0),
        ("full until long ago", (1_010, 1_011), burst(5, 0), 1),
        ("filled while the call ran", (500, 600), burst(4, 0) + burst(1, 550), 0),
        ("full when the call began", (990, 1_100), burst(5, 0), 0),
        ("perhaps granted long ago, perhaps not", (1_500, 1_501), burst(4, 1_000) + [(0, 1_000 * ms)], 0),
    ]:
        found = false_refusals([(refusal[0] * ms, refusal[1] * ms)], grants, 5)
        assert found == false, f"{what}: {found}"

    for seed in range(20):
        for admits, expect_over, expect_false in [(50, False, False), (55, True, False), (45, False, True)]:
            grants, refusals = simulated(random.Random(seed), admits)
            over, false = over_admissions(grants, 50), false_refusals(refusals, grants, 50)
            assert (over > 0, false > 0) == (expect_over, expect_false), f"seed {seed}: {over}, {false}"
    print("The oracle finds each kind of fault in made-up logs, and none in logs without.")


def simulated(rng, limit):
    """Four seconds of a limiter that decides at instants of its own within calls of random lengths, and grants while
    there are fewer than the limit in the window."""
    decided, grants, refusals = [], [], []
    at = 0
    while (at := at + rng.randrange(1, 10_000_000)) < 4 * WINDOW_NS:
        span = at - rng.randrange(0, 3_000_000), at + rng.randrange(0, 3_000_000)
        inside = len(decided) - bisect_right(decided, at - WINDOW_NS)
        if inside < limit:
            decided.append(at)
            grants.append(span)
        else:
            refusals.append(span)
    return grants, refusals
