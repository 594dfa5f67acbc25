//! What a history is played to: the real limiters, or ones that are broken on purpose.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quotalite::{Definition, Limit, Obstacle, OnConflict, Rate};

use crate::strikes::How;

/// Amounts by key, no key twice.
pub type Takes = Vec<(String, u64)>;

/// A denial, with its instants in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub key: String,
    pub obstacle: Obstacle,
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
        /// Of a permit that holds slots.
        fence: Option<u64>,
    },
    /// All slots of a limit are held.
    Taken {
        key: String,
        count: u64,
        amount: u64,
        now_ns: i64,
    },
    NotBookable {
        key: String,
    },
    IdTaken {
        id: String,
        stored: String,
    },
    NotInBlocks {
        key: String,
    },
    Refused(Refused),
    TooLate {
        refused: Refused,
        deadline_ns: i64,
    },
    NeverFits {
        key: String,
        amount: u64,
        obstacle: Obstacle,
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
    Conflict {
        stored: Limit,
        given: Limit,
    },
    OtherKind,
    Finer,
    /// There is nothing of this name to change.
    Unknown,
    Failed(String),
}

/// What a subject says to whoever removes a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    Done(Limit),
    /// Whether by slots, by permits and by bookings.
    InUse(bool, bool, bool),
    Unknown,
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

/// How a bucket stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketStanding {
    pub used: u64,
    pub available: u64,
    pub next_release_ns: Option<i64>,
}

/// A pause that is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paused {
    pub since_ns: i64,
    pub until_ns: i64,
}

/// How a limit stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// With its key, as people write it.
    pub limit: String,
    pub at_ns: i64,
    pub available: u64,
    pub rates: Vec<RateStanding>,
    pub bucket: Option<BucketStanding>,
    pub debt: u64,
    pub held: u64,
    pub permits: u64,
    pub paused: Option<Paused>,
    pub is_decreasing: bool,
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
    Expired,
    Unknown,
    /// The model's word for `Before` or `Expired`: its id was given to another permit since.
    Over,
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

/// A permit that a file says is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    pub fence: u64,
    pub id: Option<String>,
    pub is_owned: bool,
    pub is_detached: bool,
    pub expires_ns: Option<i64>,
    pub slots: Takes,
}

/// A permit, by the name under which it is held or by its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    Claim(usize),
    Id(String),
}

/// Amounts and the id under which they are asked for.
pub type Asked = (Takes, Option<String>);

/// One or more limiters that share limits; each has a slot.
pub trait Subject {
    fn define(&mut self, slot: usize, limit: &Limit, conflict: OnConflict) -> Defined;
    /// Keeps the permit, if it is to be held, under the name `claim`.
    fn try_acquire(&mut self, slot: usize, ask: &Asked, claim: usize, holds: bool) -> Answer;
    /// Books, and keeps the booking under the name `claim`.
    fn book(&mut self, slot: usize, ask: &Asked, wait: Wait, claim: usize) -> Answer;
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

    /// Puts a definition in the place of the one of the same name.
    fn update(&mut self, _slot: usize, _limit: &Limit) -> Defined {
        unreachable!("its limits stay")
    }
    fn remove(&mut self, _slot: usize, _name: &str, _is_forced: bool) -> Removed {
        unreachable!("its limits stay")
    }

    /// The pause that is in force then, unless there is no such limit.
    fn pause(&mut self, _slot: usize, _key: &str, _how: How) -> Option<Paused> {
        unreachable!("it has no pauses")
    }
    /// The pause that was in force, if one was.
    fn resume(&mut self, _slot: usize, _key: &str) -> Result<Option<Paused>, Answer> {
        unreachable!("it has no pauses")
    }

    /// Only those that have permits with ids are asked these.
    fn id(&mut self, _claim: usize) -> Option<String> {
        unreachable!("it has no ids")
    }
    fn renew(&mut self, _slot: usize, _which: &Which, _timeout: Duration) -> Option<i64> {
        unreachable!("it has no ids")
    }
    fn detach(&mut self, _claim: usize, _timeout: Duration) -> Option<String> {
        unreachable!("it has no ids")
    }
    fn settle_by_id(&mut self, _slot: usize, _id: &str, _used: &Takes) -> Closing {
        unreachable!("it has no ids")
    }
    fn cancel_by_id(&mut self, _slot: usize, _id: &str) -> Closing {
        unreachable!("it has no ids")
    }
    /// Asks for many things at once, and holds what is granted under the names that follow `first_claim`.
    fn try_all(&mut self, _slot: usize, _asks: &[Asked], _first_claim: usize) -> Vec<Answer> {
        unreachable!("it has no batches")
    }
    /// Settles many permits at once.
    fn settle_all(&mut self, _slot: usize, _all: &[(Which, Takes)]) -> Vec<Closing> {
        unreachable!("it has no batches")
    }
    fn cancel_all(&mut self, _slot: usize, _all: &[Which]) -> Vec<Closing> {
        unreachable!("it has no batches")
    }

    /// Only those that hand out from memory are asked these. The handle goes by its number.
    fn open_handle(
        &mut self,
        _slot: usize,
        _handle: usize,
        _key: &str,
        _size: u64,
        _lifetime: Duration,
    ) -> Result<(), Answer> {
        unreachable!("it has no blocks")
    }
    fn hand_out(&mut self, _handle: usize, _amount: u64) -> Result<(), Answer> {
        unreachable!("it has no blocks")
    }
    fn end_block(&mut self, _handle: usize, _by_dropping: bool) {
        unreachable!("it has no blocks")
    }

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

    /// The permits as they lie in the file.
    fn entries(&mut self) -> Option<Vec<FileEntry>> {
        None
    }

    /// Forgets bookings and permits as a process does that is killed.
    fn die(&mut self, _claims: &[usize]) {}
    /// Forgets what is handed out, in the same way.
    fn die_handing_out(&mut self, _handles: &[usize]) {}

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

/// A duration in nanoseconds.
pub fn ns(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).expect("a duration of a history is short")
}

/// The wall clock's reading this many nanoseconds after the Unix epoch.
pub fn wall(at_ns: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(u64::try_from(at_ns).unwrap_or(0))
}
