//! The limiters of this crate, as a history is played to them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use quotalite::{
    Backoff, Blocks, Booking, BootId, Clock, DAY, Decision, Definition, Error, Handle, Limit,
    Limiter, ManualClock, OnConflict, Pause, Peek, Permit, Request, Timestamp,
};

use crate::strikes::How;
use crate::subject::{
    Answer, Asked, BucketStanding, Closing, Defined, FileEntry, Paused, RateStanding, Removed, Row,
    Standing, Subject, Takes, Wait, Which, ns,
};
use crate::support::{Scratch, open_raw, scratch};
use crate::told::{answer, closing, denied, id_of, not_defined, request};

/// Limiters of this crate.
#[derive(Debug)]
pub struct Real {
    file: Option<Scratch>,
    pub clock: ManualClock,
    limiters: Vec<Option<Limiter>>,
    bookings: BTreeMap<usize, Booking>,
    permits: BTreeMap<usize, Permit>,
    handles: BTreeMap<usize, Blocks>,
    twist: Twist,
    /// The ids that were asked for.
    asked: BTreeSet<String>,
    has_begun: bool,
}

/// What is made wrong on purpose, to show that histories notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Twist {
    Nothing,
    /// Slots do not come back when their timeout has passed.
    ForgetsTimeouts,
    /// Who asks a second time under an id is charged a second time.
    ChargesTwice,
    /// A step of the wall clock moves the windows.
    GoesByTheWall,
    /// Blocks count from their end on, as if they were booked.
    BlocksCountFromTheirEnd,
    /// Blocks count for a window from when they were taken, as if they were used at once.
    BlocksCountFromTheirStart,
    /// What is merged counts for a window from the beginning of its span, and no longer.
    MergesTooShort,
    /// Each strike is the first one.
    ForgetsStrikes,
    /// Nobody is kept away, though what is booked is moved.
    ForgetsPauses,
}

/// Takes the wall clock for the time since the boot.
#[derive(Debug)]
struct WallClock(ManualClock);

impl Clock for WallClock {
    fn boot(&self) -> BootId {
        self.0.boot()
    }

    fn elapsed(&self) -> Duration {
        let since_epoch = self.0.wall().duration_since(SystemTime::UNIX_EPOCH);
        since_epoch.unwrap_or_default()
    }

    fn wall(&self) -> SystemTime {
        self.0.wall()
    }

    fn sleep_until(&self, _deadline: Duration) {
        unimplemented!("nobody waits in a history");
    }

    fn is_real(&self) -> bool {
        false
    }
}

impl Real {
    pub fn in_memory() -> Self {
        let clock = ManualClock::new();
        Self {
            file: None,
            limiters: vec![Some(Limiter::in_memory_with(clock.clone()))],
            clock,
            bookings: BTreeMap::new(),
            permits: BTreeMap::new(),
            handles: BTreeMap::new(),
            twist: Twist::Nothing,
            asked: BTreeSet::new(),
            has_begun: false,
        }
    }

    /// On a new file; nothing is open yet.
    pub fn on_file(slots: usize) -> Self {
        Self {
            file: Some(scratch()),
            clock: ManualClock::new(),
            limiters: (0..slots).map(|_| None).collect(),
            bookings: BTreeMap::new(),
            permits: BTreeMap::new(),
            handles: BTreeMap::new(),
            twist: Twist::Nothing,
            asked: BTreeSet::new(),
            has_begun: false,
        }
    }

    pub fn twisted(twist: Twist) -> Self {
        let is_in_the_file = matches!(
            twist,
            Twist::BlocksCountFromTheirEnd
                | Twist::BlocksCountFromTheirStart
                | Twist::MergesTooShort
                | Twist::ForgetsStrikes
                | Twist::ForgetsPauses
        );
        let straight = if is_in_the_file {
            Self::on_file(1)
        } else {
            Self::in_memory()
        };
        let mut twisted = Self { twist, ..straight };
        if twist == Twist::GoesByTheWall {
            let clock = WallClock(twisted.clock.clone());
            twisted.limiters = vec![Some(Limiter::in_memory_with(clock))];
        }
        twisted
    }

    fn limiter(&self, slot: usize) -> &Limiter {
        self.limiters[slot].as_ref().expect("the slot is open")
    }
}

impl Subject for Real {
    fn define(&mut self, slot: usize, limit: &Limit, conflict: OnConflict) -> Defined {
        let defined = self.limiter(slot).define_or(limit, conflict);
        if self.twist == Twist::MergesTooShort {
            let connection = open_raw(&self.file.as_ref().expect("on a file").file());
            connection
                .execute_batch(
                    "UPDATE limit_definition SET pad_ns = max(pad_ns - resolution_ns, 0);
                     UPDATE clock SET definitions = definitions + 1",
                )
                .unwrap();
        }
        match defined {
            Ok(definition) => Defined::Done(definition),
            Err(error) => not_defined(error),
        }
    }

    fn update(&mut self, slot: usize, limit: &Limit) -> Defined {
        match self.limiter(slot).update(limit.key(), |_| limit.clone()) {
            Ok(former) if former == *limit => Defined::Done(Definition::Unchanged),
            Ok(former) => Defined::Done(Definition::Replaced(former)),
            Err(error) => not_defined(error),
        }
    }

    fn remove(&mut self, slot: usize, name: &str, is_forced: bool) -> Removed {
        let limiter = self.limiter(slot);
        let removed = if is_forced {
            limiter.force_remove(name)
        } else {
            limiter.remove(name)
        };
        match removed {
            Ok(limit) => Removed::Done(limit),
            Err(Error::InUse { by, .. }) => {
                Removed::InUse(by.slots > 0, by.permits > 0, by.bookings + by.blocks > 0)
            }
            Err(Error::UnknownLimit { .. }) => Removed::Unknown,
            Err(error) => Removed::Failed(error.to_string()),
        }
    }

    fn try_acquire(&mut self, slot: usize, ask: &Asked, claim: usize, holds: bool) -> Answer {
        let request = self.request(ask);
        let decided = self.limiter(slot).try_acquire(&request);
        let answer = self.decided(decided, claim);
        if !holds {
            self.permits.remove(&claim);
        }
        answer
    }

    fn book(&mut self, slot: usize, ask: &Asked, wait: Wait, claim: usize) -> Answer {
        let ask = self.request(ask);
        let limiter = self.limiter(slot);
        let once = || match wait {
            Wait::Forever => limiter.book(&ask),
            Wait::Within(longest) => limiter.book_within(&ask, longest),
            Wait::Until { deadline_ns } => {
                limiter.book_until(&ask, Timestamp::from_nanos(deadline_ns))
            }
        };
        // A caller in a hurry waits for the lock no longer than 50 ms of real time, and a machine that
        // is busy with other things can take that long. The call has changed nothing, then.
        let booked = std::iter::repeat_with(once)
            .take(50)
            .find(|booked| !matches!(booked, Err(Error::Busy { .. })))
            .expect("nobody holds the lock");
        match booked {
            Ok(booking) => {
                let answer = Answer::Admitted {
                    at_ns: booking.at().as_nanos(),
                    waits_ns: ns(booking.wait_time()),
                    fence: None,
                };
                self.bookings.insert(claim, booking);
                answer
            }
            Err(error) => answer(error),
        }
    }

    fn give_back(&mut self, claim: usize, by_dropping: bool) {
        let booking = self.bookings.remove(&claim).expect("the booking is held");
        if by_dropping {
            drop(booking);
        } else {
            booking.cancel().expect("the file is there");
        }
    }

    fn accept(&mut self, claim: usize, holds: bool) -> i64 {
        let mut booking = self.bookings.remove(&claim).expect("the booking is held");
        match booking.check() {
            // The history goes ahead all the same.
            Ok(_) | Err(Error::TooLate { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        let permit = booking.accept();
        let at_ns = permit.at().as_nanos();
        if holds {
            self.permits.insert(claim, permit);
        }
        at_ns
    }

    fn pause(&mut self, slot: usize, key: &str, how: How) -> Option<Paused> {
        let length = |ns: i64| Duration::from_nanos(ns.unsigned_abs());
        let backoff = match how {
            How::Strike => Backoff::strike(),
            How::RetryAfter { ns } => Backoff::retry_after(length(ns)),
            How::Planned { ns } => Backoff::planned(length(ns)),
        };
        let done = self.limiter(slot).pause(key, backoff);
        if let Some(bent) = match self.twist {
            Twist::ForgetsStrikes => Some("DELETE FROM strike"),
            Twist::ForgetsPauses => {
                Some("DELETE FROM pause; UPDATE clock SET definitions = definitions + 1")
            }
            _ => None,
        } {
            let connection = open_raw(&self.file.as_ref().expect("on a file").file());
            connection.execute_batch(bent).unwrap();
        }
        match done {
            Ok(pause) => Some(paused(&pause)),
            Err(Error::UnknownLimit { .. }) => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn resume(&mut self, slot: usize, key: &str) -> Result<Option<Paused>, Answer> {
        let lifted = self.limiter(slot).resume(key).map_err(answer)?;
        Ok(lifted.as_ref().map(paused))
    }

    fn settle(&mut self, claim: usize, used: &Takes) -> Closing {
        let used = used.iter().map(|(key, amount)| (key, *amount));
        closing(self.permits[&claim].settle(used))
    }

    fn cancel(&mut self, claim: usize) -> Closing {
        closing(self.permits[&claim].cancel())
    }

    fn let_go(&mut self, claim: usize) {
        self.permits.remove(&claim).expect("the permit is held");
    }

    fn id(&mut self, claim: usize) -> Option<String> {
        id_of(self.permits[&claim].id())
    }

    fn renew(&mut self, slot: usize, which: &Which, timeout: Duration) -> Option<i64> {
        let renewed = match which {
            Which::Claim(claim) => self.permits[claim].renew(timeout),
            Which::Id(id) => self.limiter(slot).renew(id, timeout),
        };
        renewed.expect("the file is there").map(Timestamp::as_nanos)
    }

    fn detach(&mut self, claim: usize, timeout: Duration) -> Option<String> {
        id_of(self.permits[&claim].detach(timeout))
    }

    fn settle_by_id(&mut self, slot: usize, id: &str, used: &Takes) -> Closing {
        let used = used.iter().map(|(key, amount)| (key, *amount));
        closing(self.limiter(slot).settle(id, used))
    }

    fn cancel_by_id(&mut self, slot: usize, id: &str) -> Closing {
        closing(self.limiter(slot).cancel(id))
    }

    fn try_all(&mut self, slot: usize, asks: &[Asked], first_claim: usize) -> Vec<Answer> {
        let requests: Vec<Request> = asks.iter().map(|ask| self.request(ask)).collect();
        let decided = self.limiter(slot).try_acquire_all(&requests);
        let decided = decided.expect("the file is there").into_iter();
        let numbered = decided.zip(first_claim..);
        numbered
            .map(|(decided, claim)| self.decided(decided, claim))
            .collect()
    }

    fn settle_all(&mut self, slot: usize, all: &[(Which, Takes)]) -> Vec<Closing> {
        let all = all.iter().map(|(which, used)| {
            let used = used.iter().map(|(key, amount)| (key, *amount));
            (self.handle(which), used)
        });
        let settled = self.limiter(slot).settle_all(all);
        let settled = settled.expect("the file is there");
        settled.into_iter().map(closing).collect()
    }

    fn cancel_all(&mut self, slot: usize, all: &[Which]) -> Vec<Closing> {
        let all = all.iter().map(|which| self.handle(which));
        let cancelled = self.limiter(slot).cancel_all(all);
        let cancelled = cancelled.expect("the file is there");
        cancelled.into_iter().map(closing).collect()
    }

    fn open_handle(
        &mut self,
        slot: usize,
        handle: usize,
        key: &str,
        size: u64,
        lifetime: Duration,
    ) -> Result<(), Answer> {
        let blocks = self.limiter(slot).blocks(key, size).map_err(answer)?;
        self.handles.insert(handle, blocks.lifetime(lifetime));
        Ok(())
    }

    fn hand_out(&mut self, handle: usize, amount: u64) -> Result<(), Answer> {
        let handed = match self.handles[&handle].try_acquire_many(amount) {
            Ok(Decision::Granted(())) => Ok(()),
            Ok(Decision::Denied(denial)) => Err(denied(&denial)),
            Err(error) => Err(answer(error)),
        };
        if let Some(bent) = match self.twist {
            Twist::BlocksCountFromTheirEnd => Some("DELETE FROM block"),
            // A little later than what was charged before, so that its total is the last one.
            Twist::BlocksCountFromTheirStart => Some(
                "UPDATE charge SET at_ns = coalesce(
                     (SELECT max(at_ns) + 1 FROM charge AS other
                      WHERE other.limit_id = charge.limit_id AND other.at_ns < charge.at_ns), at_ns)
                 WHERE (limit_id, at_ns, seq) IN (SELECT limit_id, at_ns, seq FROM block);
                 DELETE FROM block",
            ),
            _ => None,
        } {
            let connection = open_raw(&self.file.as_ref().expect("on a file").file());
            connection.execute_batch(bent).unwrap();
        }
        handed
    }

    fn end_block(&mut self, handle: usize, by_dropping: bool) {
        if by_dropping {
            self.handles.remove(&handle).expect("the handle is held");
        } else {
            self.handles[&handle]
                .give_back()
                .expect("the file is there");
        }
    }

    fn advance(&mut self, duration: Duration) {
        self.clock.advance(duration);
    }

    fn peek(&mut self, slot: usize, takes: &Takes) -> Option<Answer> {
        let limiter = self.limiter(slot);
        Some(match limiter.peek(&request(takes, None)) {
            Ok(Peek::Now) => Answer::Admitted {
                at_ns: limiter.now().expect("the file is there").as_nanos(),
                waits_ns: 0,
                fence: None,
            },
            Ok(Peek::Later(denial)) => denied(&denial),
            Err(error) => answer(error),
        })
    }

    fn usage(&mut self, slot: usize, key: &str) -> Option<Result<Standing, Answer>> {
        let usage = match self.limiter(slot).usage(key) {
            Ok(usage) => usage,
            Err(error) => return Some(Err(answer(error))),
        };
        let rates = usage.rates().iter().map(|rate| RateStanding {
            rate: rate.rate(),
            used: rate.used(),
            available: rate.available(),
            next_release_ns: rate.next_release().map(Timestamp::as_nanos),
        });
        Some(Ok(Standing {
            limit: usage.limit().to_string(),
            at_ns: usage.at().as_nanos(),
            available: usage.available(),
            rates: rates.collect(),
            debt: usage.debt(),
            held: usage.held(),
            permits: usage.permits(),
            bucket: usage.bucket().map(|bucket| BucketStanding {
                used: bucket.used(),
                available: bucket.available(),
                next_release_ns: bucket.next_release().map(Timestamp::as_nanos),
            }),
            paused: usage.pause().map(|pause| paused(&pause)),
            is_decreasing: usage.is_decreasing(),
        }))
    }

    fn limits(&mut self, slot: usize) -> Option<Vec<Limit>> {
        Some(self.limiter(slot).limits().expect("the file is there"))
    }

    fn now_ns(&mut self, slot: usize) -> Option<i64> {
        Some(self.limiter(slot).now().expect("a clock").as_nanos())
    }

    fn rows(&mut self) -> Option<BTreeMap<String, Vec<Row>>> {
        const ROWS: &str = "SELECT key, at_ns, seq, amount, total,
                (SELECT owner_id FROM booking AS b
                 WHERE (b.limit_id, b.at_ns, b.seq) = (l.limit_id, l.at_ns, l.seq))
            FROM ledger AS l JOIN named_limit USING (limit_id)
            ORDER BY l.limit_id, at_ns, seq";
        let connection = open_raw(&self.file.as_ref()?.file());
        let mut statement = connection.prepare(ROWS).unwrap();
        let mut rows = statement.query([]).unwrap();
        let mut ledgers: BTreeMap<String, Vec<Row>> = BTreeMap::new();
        while let Some(row) = rows.next().unwrap() {
            let read = Row {
                at_ns: row.get(1).unwrap(),
                seq: row.get(2).unwrap(),
                amount: row.get(3).unwrap(),
                total: row.get(4).unwrap(),
                owner_id: row.get(5).unwrap(),
            };
            ledgers.entry(row.get(0).unwrap()).or_default().push(read);
        }
        Some(ledgers)
    }

    fn entries(&mut self) -> Option<Vec<FileEntry>> {
        const OPEN: &str = "SELECT permit_id, id, owner_id IS NOT NULL, detached, expires_ns,
                coalesce(fence, permit_id)
            FROM permit WHERE ended_ns IS NULL";
        const SLOTS: &str = "SELECT key, amount FROM slot JOIN named_limit USING (limit_id)
            WHERE permit_id = ?1 AND expires_ns IS ?2";
        const LEFT_OVER: &str = "SELECT
            (SELECT count(*) FROM permit_charge WHERE permit_id NOT IN
                (SELECT permit_id FROM permit WHERE ended_ns IS NULL))
            + (SELECT count(*) FROM slot WHERE permit_id NOT IN
                (SELECT permit_id FROM permit WHERE ended_ns IS NULL)
                AND limit_id NOT IN (SELECT limit_id FROM removed_ledger))";
        let connection = open_raw(&self.file.as_ref()?.file());
        let left_over: i64 = connection
            .query_row(LEFT_OVER, [], |row| row.get(0))
            .unwrap();
        assert_eq!(left_over, 0, "rows of permits that are gone");
        let mut statement = connection.prepare(OPEN).unwrap();
        let mut slots = connection.prepare(SLOTS).unwrap();
        let mut rows = statement.query([]).unwrap();
        let mut entries = Vec::new();
        while let Some(row) = rows.next().unwrap() {
            let (number, expires_ns): (i64, Option<i64>) =
                (row.get(0).unwrap(), row.get(4).unwrap());
            let slots = slots.query_map((number, expires_ns), |row| {
                let amount: i64 = row.get(1)?;
                Ok((row.get(0)?, amount.unsigned_abs()))
            });
            entries.push(FileEntry {
                fence: row.get::<_, i64>(5).unwrap().unsigned_abs(),
                id: row.get(1).unwrap(),
                is_owned: row.get(2).unwrap(),
                is_detached: row.get(3).unwrap(),
                expires_ns,
                slots: slots.unwrap().map(Result::unwrap).collect(),
            });
        }
        Some(entries)
    }

    fn die(&mut self, claims: &[usize]) {
        const TABLES: [&str; 5] = ["booking", "permit", "permit_charge", "ended_permit", "slot"];
        self.as_if_nobody_had(&TABLES, |real| {
            for claim in claims {
                drop(real.permits.remove(claim));
                drop(real.bookings.remove(claim).map(Booking::accept));
            }
        });
    }

    fn die_handing_out(&mut self, handles: &[usize]) {
        const TABLES: [&str; 3] = ["charge", "block", "correction"];
        self.as_if_nobody_had(&TABLES, |real| {
            for handle in handles {
                drop(real.handles.remove(handle));
            }
        });
    }

    fn is_durable(&self) -> bool {
        self.file.is_some()
    }

    fn open(&mut self, slot: usize) {
        let Some(file) = &self.file else {
            // The one in memory is always open.
            return;
        };
        let builder = Limiter::builder(file.file())
            .clock(self.clock.clone())
            .readers(1);
        self.limiters[slot] = Some(builder.open().expect("the file can be opened"));
    }

    fn close(&mut self, slot: usize) {
        self.limiters[slot] = None;
    }

    fn set_wall(&mut self, wall: SystemTime) {
        self.clock.set_wall(wall);
        // The one in memory begins with the history.
        if self.file.is_none() && !self.has_begun && self.twist != Twist::GoesByTheWall {
            self.limiters = vec![Some(Limiter::in_memory_with(self.clock.clone()))];
        }
        self.has_begun = true;
    }

    fn reboot(&mut self, uptime: Duration) {
        self.clock.reboot(uptime);
    }

    fn wind_up_totals(&mut self) {
        const WIND_UP: &str = "WITH last (limit_id, shift) AS (
                SELECT limit_id, 4611686018427387903 - max(total) FROM charge GROUP BY limit_id
            )
            UPDATE charge
            SET total = (total + last.shift) & 4611686018427387903
            FROM last
            WHERE last.limit_id = charge.limit_id";
        let connection = open_raw(&self.file.as_ref().expect("on a file").file());
        connection.execute(WIND_UP, []).unwrap();
    }
}

fn paused(pause: &Pause) -> Paused {
    Paused {
        since_ns: pause.since().as_nanos(),
        until_ns: pause.until().as_nanos(),
    }
}

impl Real {
    /// Drops something, and then the file is as if nobody had.
    fn as_if_nobody_had(&mut self, tables: &[&str], drop: impl FnOnce(&mut Self)) {
        let connection = open_raw(&self.file.as_ref().expect("on a file").file());
        for table in tables {
            let keep = format!("CREATE TEMP TABLE kept_{table} AS SELECT * FROM main.{table}");
            connection.execute_batch(&keep).unwrap();
        }
        drop(self);
        for table in tables {
            let bring_back = format!(
                "DELETE FROM main.{table}; INSERT INTO main.{table} SELECT * FROM kept_{table}"
            );
            connection.execute_batch(&bring_back).unwrap();
        }
    }

    fn request(&mut self, (takes, id): &Asked) -> Request {
        let is_new = id.as_ref().is_none_or(|id| self.asked.insert(id.clone()));
        let forgets_it = self.twist == Twist::ChargesTwice && !is_new;
        request(takes, id.as_deref().filter(|_| !forgets_it))
    }

    fn decided(&mut self, decided: Result<Decision, Error>, claim: usize) -> Answer {
        match decided {
            Ok(Decision::Granted(permit)) => {
                if self.twist == Twist::ForgetsTimeouts {
                    permit.renew(365 * DAY).expect("it is in memory");
                }
                let answer = Answer::Admitted {
                    at_ns: permit.at().as_nanos(),
                    waits_ns: ns(permit.waited()),
                    fence: permit.fence(),
                };
                self.permits.insert(claim, permit);
                answer
            }
            Ok(Decision::Denied(denial)) => denied(&denial),
            Err(error) => answer(error),
        }
    }

    fn handle<'a>(&'a self, which: &'a Which) -> Handle<'a> {
        match which {
            Which::Claim(claim) => (&self.permits[claim]).into(),
            Which::Id(id) => id.as_str().into(),
        }
    }
}
