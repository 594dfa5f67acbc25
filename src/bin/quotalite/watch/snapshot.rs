//! What one look has seen, as far as its changes are told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quotalite::{
    BreakerState, ChargeKind, Error, Look, OwnerRow, PermitRow, PermitState, Timestamp,
};

use super::patterns::share_a_key;
use crate::ask::Since;

/// A transaction reads the clock before it commits. So what is charged at an instant may be seen a little later, and if bookings
/// have come to theirs since, behind what was seen before. This is much longer than commits take; of those that take longer,
/// what was charged in front of such bookings is not told.
const OVERLAP: Duration = Duration::from_secs(1);

/// So many keys are watched at most: more are too many to be read several times a second.
pub(super) const MOST: usize = 1_000;

/// The key, the instant, the amount and the process.
pub(super) type Booking = (String, Timestamp, u64, u32);

/// Since when somebody waits, which process, and what for.
pub(super) type Waiter = (Timestamp, Option<u32>, Vec<(String, u64)>);

/// How many there are of each: those who ask at the same moment are alike.
pub(super) type Counted<T> = BTreeMap<T, u64>;

/// A file at one moment.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Snapshot {
    pub(super) now: Timestamp,
    pub(super) limits: BTreeMap<String, OfLimit>,
    /// Whether more than [`MOST`] keys match: those that come are not watched then.
    pub(super) has_too_many: bool,
    pub(super) definitions: BTreeMap<String, String>,
    /// What was reset of late, and when.
    pub(super) resets: BTreeSet<(Timestamp, String)>,
    pub(super) permits: BTreeMap<PermitName, Permit>,
    pub(super) bookings: Counted<Booking>,
    pub(super) waiting: Counted<Waiter>,
    /// Processes that are in the file and have ended. Most have given back by then all that they had when the file was read.
    pub(super) ended: BTreeSet<u32>,
    /// Those that had ended when the file was looked at before, and still hold, have booked or wait for something.
    pub(super) dead: BTreeSet<u32>,
}

/// How one limit stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct OfLimit {
    /// Nothing where it is no matter of amounts, and as long as it is not known because of a pause.
    pub(super) is_full: Option<bool>,
    pub(super) paused_until: Option<Timestamp>,
    pub(super) breaker: Option<(BreakerState, Option<String>)>,
    /// What was charged of late at each instant: how many rows, and how much.
    pub(super) charged: BTreeMap<Timestamp, (u64, u64)>,
    /// After which instant that is.
    pub(super) after: Option<Timestamp>,
    /// The last instant at which anything was charged, if that was seen.
    pub(super) last: Option<Timestamp>,
}

/// What a permit is known by as long as it lives. One that is taken up again under its id has another fencing number then; one
/// that was cancelled and is asked for again was granted at another instant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PermitName {
    Id(String, Timestamp),
    Fence(u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Permit {
    pub(super) id: Option<String>,
    pub(super) pid: Option<u32>,
    pub(super) fence: u64,
    pub(super) takes: Vec<(String, u64)>,
    pub(super) state: PermitState,
}

impl Snapshot {
    pub(super) fn read(
        look: &mut Look<'_>,
        pattern: &str,
        former: Option<&Self>,
    ) -> Result<Self, Error> {
        let mut keys = look.keys(pattern, MOST + 1)?;
        let has_too_many = keys.len() > MOST;
        if has_too_many {
            match former {
                Some(former) => keys = former.limits.keys().cloned().collect(),
                None => keys.truncate(MOST),
            }
        }
        let mut limits = BTreeMap::new();
        for key in keys {
            match OfLimit::read(look, &key, former) {
                Ok(limit) => limits.insert(key, limit),
                // It was watched, and is no more.
                Err(Error::UnknownLimit { .. }) => continue,
                Err(error) => return Err(error),
            };
        }
        let concerns =
            |takes: &[(String, u64)]| takes.iter().any(|(key, _)| limits.contains_key(key));
        // What has ended tells no more what it held.
        let was_ours =
            |name: &PermitName| former.is_some_and(|former| former.permits.contains_key(name));
        let permits = look.permits()?.into_iter().map(Permit::new);
        let permits: BTreeMap<_, _> = permits
            .filter(|(name, permit)| concerns(&permit.takes) || was_ours(name))
            .collect();
        let bookings = look.bookings()?.into_iter();
        let bookings = counted(
            bookings
                .filter(|row| limits.contains_key(&row.key))
                .map(|row| (row.key, row.at, row.amount, row.pid)),
        );
        let waiting = look.waiting()?.into_iter();
        let waiting = counted(
            waiting
                .filter(|row| concerns(&row.takes))
                .map(|row| (row.since, row.pid, row.takes)),
        );
        let holds = permits.values().filter(|permit| permit.state.is_open());
        let people = holds
            .filter_map(|permit| permit.pid)
            .chain(bookings.keys().map(|(.., pid)| *pid))
            .chain(waiting.keys().filter_map(|(_, pid, _)| *pid));
        let ended = ended(look.owners()?);
        // Whoever was dead before anybody looked has not died just now.
        let had_ended = former.map_or(&ended, |former| &former.ended);
        let is_watched = |key: &str| key == pattern || share_a_key(key, pattern);
        let definitions = look.limits()?;
        let definitions = definitions.iter().filter(|limit| is_watched(limit.key()));
        let recent = Since::Ago(OVERLAP).after(look);
        let resets = look.resets(former.map_or(recent, |former| former.resets_after(OVERLAP)))?;
        let resets = resets.into_iter().filter(|(_, key)| is_watched(key));
        Ok(Self {
            now: look.now(),
            has_too_many,
            definitions: definitions
                .map(|limit| (limit.key().to_owned(), limit.as_given().to_string()))
                .collect(),
            resets: resets.collect(),
            // The number of one that has ended may be another's by now.
            dead: people
                .filter(|pid| had_ended.contains(pid) && ended.contains(pid))
                .collect(),
            ended,
            permits,
            bookings,
            waiting,
            limits,
        })
    }
}

impl Snapshot {
    /// Whether nothing of what is defined is watched.
    pub(super) fn is_empty(&self) -> bool {
        self.limits.is_empty() && self.definitions.is_empty()
    }

    /// After which instant the next look reads what was reset.
    fn resets_after(&self, overlap: Duration) -> Timestamp {
        let overlap_ns = i64::try_from(overlap.as_nanos()).unwrap_or(i64::MAX);
        Timestamp::from_nanos(self.now.as_nanos().saturating_sub(overlap_ns))
    }
}

fn counted<T: Ord>(of: impl Iterator<Item = T>) -> Counted<T> {
    let mut counted = Counted::new();
    for one in of {
        *counted.entry(one).or_default() += 1;
    }
    counted
}

/// A process is there as often as it has opened the file, and lives if one of these does.
fn ended(owners: Vec<OwnerRow>) -> BTreeSet<u32> {
    let (ended, others): (Vec<_>, Vec<_>) = owners
        .into_iter()
        .partition(|row| row.is_alive == Some(false));
    let mut ended: BTreeSet<u32> = ended.into_iter().map(|row| row.pid).collect();
    for other in others {
        ended.remove(&other.pid);
    }
    ended
}

impl OfLimit {
    /// What was charged is read from as far back as something can have come since the look before.
    fn read(look: &mut Look<'_>, key: &str, former: Option<&Snapshot>) -> Result<Self, Error> {
        let usage = look.usage(key)?;
        let resolution = usage.limit().resolution().unwrap_or_default();
        let before = former.and_then(|former| former.limits.get(key));
        let after = match (former, before) {
            (Some(former), Some(before)) => before.next_after(former.now, OVERLAP + resolution),
            // It is new, with all that was ever charged to it; or there were too many, and it is watched from here on.
            (Some(former), None) if !former.has_too_many => None,
            _ => Some(Since::Ago(OVERLAP + resolution).after(look)),
        };
        let mut charged = BTreeMap::new();
        for row in look.charges(key, after.unwrap_or(Timestamp::from_nanos(i64::MIN)))? {
            if row.kind == ChargeKind::Charged {
                let (rows, amount) = charged.entry(row.at).or_insert((0, 0_u64));
                *rows += 1;
                *amount = amount.saturating_add(row.amount);
            }
        }
        let last = charged.last_key_value().map(|(at, _)| *at);
        let breaker = usage.breaker();
        let is_full = match (breaker, usage.pause()) {
            (Some(_), _) => None,
            // Nothing is available because of the pause, and it is told when it is over what has changed besides.
            (None, Some(_)) => before.and_then(|before| before.is_full),
            (None, None) => Some(usage.available() == 0),
        };
        Ok(Self {
            is_full,
            paused_until: usage.pause().map(|pause| pause.until()),
            breaker: breaker.map(|breaker| (breaker.state(), breaker.reason().map(str::to_owned))),
            charged,
            after,
            last: last.max(before.and_then(|before| before.last)),
        })
    }

    /// After which instant the next look reads, if this was at `now`. Where nobody books, nothing comes in front of what was
    /// charged last, however long a commit takes; and never does a look read what this one has not.
    fn next_after(&self, now: Timestamp, overlap: Duration) -> Option<Timestamp> {
        let overlap_ns = i64::try_from(overlap.as_nanos()).unwrap_or(i64::MAX);
        let recent_ns = now.as_nanos().saturating_sub(overlap_ns);
        let last_ns = self.last.map(|last| last.as_nanos().saturating_sub(1));
        let next_ns = last_ns.map_or(recent_ns, |last_ns| last_ns.min(recent_ns));
        self.after.max(Some(Timestamp::from_nanos(next_ns)))
    }
}

impl Permit {
    fn new(row: PermitRow) -> (PermitName, Self) {
        let name = match &row.id {
            Some(id) => PermitName::Id(id.clone(), row.at),
            None => PermitName::Fence(row.fence),
        };
        let permit = Self {
            id: row.id,
            pid: row.pid,
            fence: row.fence,
            takes: row.takes,
            state: row.state,
        };
        (name, permit)
    }
}
