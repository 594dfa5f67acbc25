//! What a history is played to: the real limiters, or ones that are broken on purpose.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quotalite::{
    Booking, Decision, Definition, Denial, Error, Limit, Limiter, ManualClock, Obstacle,
    OnConflict, Peek, Permit, Rate, Request, Settled, Timestamp,
};

use crate::support::{Scratch, open_raw, scratch};

/// Amounts by key, no key twice.
pub type Takes = Vec<(String, u64)>;

/// A denial, with its instants in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub key: String,
    pub rate: Rate,
    pub amount: u64,
    pub now_ns: i64,
    pub retry_at_ns: i64,
}

/// What a subject says to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is charged, or would be, at this instant.
    Admitted {
        at_ns: i64,
        waits_ns: i64,
    },
    Refused(Refused),
    TooLate {
        refused: Refused,
        deadline_ns: i64,
    },
    NeverFits {
        key: String,
        amount: u64,
        rate: Rate,
    },
    Unknown {
        key: String,
    },
    /// An error that no history should see.
    Failed(String),
}

/// What a subject says to a definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Defined {
    Done(Definition),
    Conflict { stored: Limit, given: Limit },
    Failed(String),
}

/// How one rate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateStanding {
    pub rate: Rate,
    pub used: u64,
    pub available: u64,
    pub next_release_ns: Option<i64>,
}

/// How a limit stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub limit: Limit,
    pub at_ns: i64,
    pub available: u64,
    pub rates: Vec<RateStanding>,
    pub debt: u64,
}

/// How one charge of a permit was settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settling {
    pub key: String,
    pub estimated: u64,
    pub used: u64,
    pub charged: u64,
    pub debt: u64,
}

/// What a subject says to whoever closes a permit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closing {
    /// By key; nothing if it was cancelled.
    Now(Vec<Settling>),
    Before,
    /// An error that no history should see.
    Failed(String),
}

/// How long a caller would stand in line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    Forever,
    Within(Duration),
    Until { deadline_ns: i64 },
}

/// A row of a ledger in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub at_ns: i64,
    pub seq: i64,
    pub amount: i64,
    pub total: i64,
    pub owner_id: Option<i64>,
}

/// One or more limiters that share limits; each has a slot.
pub trait Subject {
    fn define(&mut self, slot: usize, limit: &Limit, conflict: OnConflict) -> Defined;
    /// Keeps the permit, if it is to be held, under the name `claim`.
    fn try_acquire(&mut self, slot: usize, takes: &Takes, claim: usize, holds: bool) -> Answer;
    /// Books, and keeps the booking under the name `claim`.
    fn book(&mut self, slot: usize, takes: &Takes, wait: Wait, claim: usize) -> Answer;
    /// Drops the booking, or cancels it, which is to be the same.
    fn give_back(&mut self, claim: usize, by_dropping: bool);
    /// Makes the booking a permit, and drops that unless it is to be held; tells its instant.
    fn accept(&mut self, claim: usize, holds: bool) -> i64;
    /// Settles the permit with what was used, and still holds it.
    fn settle(&mut self, claim: usize, used: &Takes) -> Closing;
    /// Cancels the permit, and still holds it.
    fn cancel(&mut self, claim: usize) -> Closing;
    /// Drops the permit.
    fn let_go(&mut self, claim: usize);
    fn advance(&mut self, duration: Duration);

    /// `None` if the subject cannot say; so with the rest of the questions.
    fn peek(&mut self, _slot: usize, _takes: &Takes) -> Option<Answer> {
        None
    }
    fn usage(&mut self, _slot: usize, _key: &str) -> Option<Result<Standing, Answer>> {
        None
    }
    fn limits(&mut self, _slot: usize) -> Option<Vec<Limit>> {
        None
    }
    fn now_ns(&mut self, _slot: usize) -> Option<i64> {
        None
    }
    /// The ledgers as they lie in the file.
    fn rows(&mut self) -> Option<BTreeMap<String, Vec<Row>>> {
        None
    }

    /// Whether limiters can be closed and opened, and boots ended.
    fn is_durable(&self) -> bool {
        false
    }
    fn open(&mut self, _slot: usize) {}
    fn close(&mut self, _slot: usize) {}
    fn set_wall(&mut self, _wall: SystemTime) {}
    fn reboot(&mut self, _uptime: Duration) {}
    /// Brings the running totals of all ledgers close to where they wrap around. Everything is closed.
    fn wind_up_totals(&mut self) {}
}

/// Limiters of this crate.
#[derive(Debug)]
pub struct Real {
    file: Option<Scratch>,
    pub clock: ManualClock,
    limiters: Vec<Option<Limiter>>,
    bookings: BTreeMap<usize, Booking>,
    permits: BTreeMap<usize, Permit>,
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
        }
    }

    fn limiter(&self, slot: usize) -> &Limiter {
        self.limiters[slot].as_ref().expect("the slot is open")
    }
}

impl Subject for Real {
    fn define(&mut self, slot: usize, limit: &Limit, conflict: OnConflict) -> Defined {
        match self.limiter(slot).define_or(limit, conflict) {
            Ok(definition) => Defined::Done(definition),
            Err(Error::Conflict { stored, given, .. }) => Defined::Conflict {
                stored: *stored,
                given: *given,
            },
            Err(error) => Defined::Failed(error.to_string()),
        }
    }

    fn try_acquire(&mut self, slot: usize, takes: &Takes, claim: usize, holds: bool) -> Answer {
        match self.limiter(slot).try_acquire(&request(takes)) {
            Ok(Decision::Granted(permit)) => {
                let answer = Answer::Admitted {
                    at_ns: permit.at().as_nanos(),
                    waits_ns: ns(permit.waited()),
                };
                if holds {
                    self.permits.insert(claim, permit);
                }
                answer
            }
            Ok(Decision::Denied(denial)) => Answer::Refused(refused(&denial)),
            Err(error) => answer(error),
        }
    }

    fn book(&mut self, slot: usize, takes: &Takes, wait: Wait, claim: usize) -> Answer {
        let (limiter, ask) = (self.limiter(slot), request(takes));
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
        let booking = self.bookings.remove(&claim).expect("the booking is held");
        let permit = booking.accept();
        let at_ns = permit.at().as_nanos();
        if holds {
            self.permits.insert(claim, permit);
        }
        at_ns
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

    fn advance(&mut self, duration: Duration) {
        self.clock.advance(duration);
    }

    fn peek(&mut self, slot: usize, takes: &Takes) -> Option<Answer> {
        let limiter = self.limiter(slot);
        Some(match limiter.peek(&request(takes)) {
            Ok(Peek::Now) => Answer::Admitted {
                at_ns: limiter.now().expect("the file is there").as_nanos(),
                waits_ns: 0,
            },
            Ok(Peek::Later(denial)) => Answer::Refused(refused(&denial)),
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
            limit: usage.limit().clone(),
            at_ns: usage.at().as_nanos(),
            available: usage.available(),
            rates: rates.collect(),
            debt: usage.debt(),
        }))
    }

    fn limits(&mut self, slot: usize) -> Option<Vec<Limit>> {
        Some(self.limiter(slot).limits().expect("the file is there"))
    }

    fn now_ns(&mut self, slot: usize) -> Option<i64> {
        Some(self.limiter(slot).now().expect("a clock").as_nanos())
    }

    fn rows(&mut self) -> Option<BTreeMap<String, Vec<Row>>> {
        const ROWS: &str = "SELECT key, at_ns, seq, amount, total, owner_id
            FROM ledger LEFT JOIN limit_definition USING (limit_id)
                LEFT JOIN booking USING (limit_id, at_ns, seq)
            ORDER BY limit_id, at_ns, seq";
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

fn request(takes: &Takes) -> Request {
    takes.iter().fold(Request::new(), |request, (key, amount)| {
        request.take(key.as_str(), *amount)
    })
}

fn refused(denial: &Denial) -> Refused {
    Refused {
        key: denial.key().to_owned(),
        rate: rate_of(denial.obstacle()),
        amount: denial.amount(),
        now_ns: denial.now().as_nanos(),
        retry_at_ns: denial.retry_at().expect("no slots").as_nanos(),
    }
}

fn rate_of(obstacle: Obstacle) -> Rate {
    match obstacle {
        Obstacle::Rate(rate) => rate,
        obstacle => panic!("the limits of histories have rates, not {obstacle}"),
    }
}

fn answer(error: Error) -> Answer {
    match error {
        Error::TooLate {
            denial, deadline, ..
        } => Answer::TooLate {
            refused: refused(&denial),
            deadline_ns: deadline.as_nanos(),
        },
        Error::NeverFits {
            key,
            amount,
            obstacle,
            ..
        } => Answer::NeverFits {
            key,
            amount,
            rate: rate_of(obstacle),
        },
        Error::UnknownLimit { key, .. } => Answer::Unknown { key },
        error => Answer::Failed(error.to_string()),
    }
}

fn closing(settled: Result<Settled, Error>) -> Closing {
    let settlement = match settled {
        Ok(Settled::Now(settlement)) => settlement,
        Ok(Settled::Before) => return Closing::Before,
        other => return Closing::Failed(format!("{other:?}")),
    };
    let settling = settlement.amounts().iter().map(|amount| Settling {
        key: amount.key().to_owned(),
        estimated: amount.estimated(),
        used: amount.used(),
        charged: amount.charged(),
        debt: amount.debt(),
    });
    let mut settled: Vec<Settling> = settling.collect();
    settled.sort_by(|a, b| a.key.cmp(&b.key));
    Closing::Now(settled)
}

/// A duration in nanoseconds.
pub fn ns(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).expect("a duration of a history is short")
}

/// The wall clock's reading this many nanoseconds after the Unix epoch.
pub fn wall(at_ns: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(u64::try_from(at_ns).unwrap_or(0))
}
