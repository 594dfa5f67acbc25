"""PyrateLimiter: its SQLite bucket with the file lock, which its documentation asks for where processes share a file:
https://github.com/vutran1710/PyrateLimiter#sqlitebucket and its example examples/sqlite_filelock_multiprocess.py
"""

from pyrate_limiter import Duration, Limiter, Rate, SQLiteBucket

import loop

task = loop.Task.from_args()
rates = [Rate(task.per_second, Duration.SECOND)]
if task.per_minute:
    rates.append(Rate(task.per_minute, Duration.MINUTE))
limiter = Limiter(SQLiteBucket.init_from_file(rates, db_path=task.place, use_file_lock=True))

if task.per_minute:
    # As in the example. Nothing is ever over the limit here, so it waits for the file lock only, never for capacity.
    loop.run(lambda: limiter.try_acquire("key"))
else:
    # The one call that refuses instead of waiting; it refuses, too, while another process holds the file lock.
    loop.run(lambda: limiter.try_acquire("key", blocking=False))
