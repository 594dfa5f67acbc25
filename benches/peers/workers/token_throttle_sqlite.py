"""token-throttle on SQLite, which needs no settings to be shared by processes but a path and a prefix:
https://github.com/Elijas/token-throttle/blob/main/docs/sqlite-backend.md

Nothing is given back: a reservation that is never refunded counts as used in full.
"""

from token_throttle import PerModelConfig, Quota, SyncRateLimiter, SyncSqliteBackendBuilder, UsageQuotas

import loop

task = loop.Task.from_args()
quotas = [Quota(metric="requests", limit=task.per_second, per_seconds=1)]
if task.per_minute:
    quotas.append(Quota(metric="requests", limit=task.per_minute, per_seconds=60))
limiter = SyncRateLimiter(
    PerModelConfig(quotas=UsageQuotas(quotas)),
    backend=SyncSqliteBackendBuilder(task.place, key_prefix="peers"),
    # Reservations that are not refunded stay in flight, and the default would end the run.
    max_in_flight_reservations=10_000_000,
)


def acquire():
    # Nothing is ever over the limit here, so it waits for the file's lock only, never for capacity.
    limiter.acquire_capacity({"requests": 1}, model="key")
    return True


def try_acquire():
    # "A real try-acquire", which refuses, too, while another process writes.
    try:
        limiter.acquire_capacity({"requests": 1}, model="key", timeout=0)
    except TimeoutError:
        return False
    return True


loop.run(acquire if task.per_minute else try_acquire)
