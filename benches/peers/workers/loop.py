"""The closed loop of a worker, the same for every peer: what `rust/src/worker.rs` is for Rust."""

import json
import sys
from dataclasses import dataclass
from time import monotonic_ns, sleep

# As in Rust.
REFUSALS_APART_NS = 10_000
GRANTS_LOGGED = 50_000


@dataclass
class Task:
    """What the driver asks for, in the order of the arguments."""

    place: str
    per_second: int
    # None in a contended cell.
    per_minute: int | None

    @classmethod
    def from_args(cls):
        _peer, place, per_second, per_minute, _threads = sys.argv[1:]
        return cls(place, int(per_second), int(per_minute) or None)


def run(call):
    """Says that the worker is ready, reads from when until when it shall run, and calls until then. A call returns
    whether it was granted."""
    print("ready", flush=True)
    line = sys.stdin.readline()
    if not line:
        return  # The driver has gone away.
    start, end = map(int, line.split())
    while (left := start - monotonic_ns()) > 0:
        sleep(min(left / 1e9, 0.001))

    calls = []  # What a call came to, and its span: the loop does nothing else.
    note = calls.append
    failure = ""
    while (before := monotonic_ns()) < end:
        try:
            granted = call()
        except Exception as error:  # Whatever a peer raises, the call has failed.
            granted = None
            failure = failure or repr(error)
        note((granted, before, monotonic_ns()))
    print(json.dumps([summary(calls, failure, start)]), flush=True)


def summary(calls, failure, start):
    latencies = {}
    grants, refusals, failed = [], [], []
    granted = refused = 0
    last_refusal = -REFUSALS_APART_NS
    for outcome, before, after in calls:
        latency = rounded(after - before)
        latencies[latency] = latencies.get(latency, 0) + 1
        span = (before - start, after - start)
        if outcome:
            granted += 1
            if granted <= GRANTS_LOGGED:
                grants.append(span)
        elif outcome is not None:
            refused += 1
            if before - last_refusal >= REFUSALS_APART_NS:
                last_refusal = before
                refusals.append(span)
        else:
            failed.append(span)
    return {
        "calls": len(calls),
        "granted": granted,
        "refused": refused,
        "failures": len(failed),
        "first_failure": failure,
        "end_ns": calls[-1][2] - start if calls else 0,
        "longest_ns": max((after - before for _, before, after in calls), default=0),
        "latencies": sorted(latencies.items()),
        "grants": grants,
        "refusals": refusals,
        "failed": failed,
    }


def rounded(latency):
    """To three digits."""
    tens = 1
    while latency // tens >= 1_000:
        tens *= 10
    return latency // tens * tens
