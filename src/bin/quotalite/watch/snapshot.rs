//! What one look has seen, as far as its changes are told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quotalite::{BreakerState, ChargeKind, Error, Look, PermitRow, Timestamp};

use crate::ledger::before;

/// A transaction reads the clock before it commits: what is charged at an instant can be seen this much later at most, or it is
/// not told.
const LATEST: Duration = Duration::from_secs(10);

/// Since when somebody waits, which process, and what for.
pub(super) type Waiter = (Timestamp, Option<u32>, Vec<(String, u64)>);

/// A file at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    pub(super) now: Option<Timestamp>,
    pub(super) limits: BTreeMap<String, OfLimit>,
    pub(super) definitions: BTreeMap<String, String>,
    /// By their fencing numbers.
    pub(super) permits: BTreeMap<u64, PermitRow>,
    /// Keys, instants, amounts and processes.
    pub(super) bookings: BTreeSet<(String, Timestamp, u64, u32)>,
    pub(super) waiting: BTreeSet<Waiter>,
    /// Which processes have died whose things wait to come back: since when they are owners, and their ids.
    pub(super) dead: BTreeSet<(Timestamp, u32)>,
    is_cut: bool,
}

/// How one limit stands.
#[derive(Clone, Debug, Default)]
pub(super) struct OfLimit {
    /// Nothing where it is not a number.
    pub(super) available: Option<u64>,
    pub(super) paused_until: Option<Timestamp>,
    pub(super) breaker: Option<(BreakerState, Option<String>)>,
    /// What was charged of late at each instant: how many rows, and how much.
    pub(super) charged: BTreeMap<Timestamp, (u64, u64)>,
}

impl Snapshot {
    pub(super) fn is_cut(&self) -> bool {
        self.is_cut
    }

    pub(super) fn read(
        look: &mut Look<'_>,
        pattern: &str,
        most: usize,
        former: Option<&Self>,
    ) -> Result<Self, Error> {
        let keys = look.keys(pattern, most.saturating_add(1))?;
        if keys.len() > most {
            return Ok(Self {
                is_cut: true,
                ..Self::default()
            });
        }
        let since = former.and_then(|former| former.now).unwrap_or(look.now());
        let since = look.now().saturating_duration_since(since);
        let mut limits = BTreeMap::new();
        for key in keys {
            let limit = OfLimit::read(look, &key, since)?;
            limits.insert(key, limit);
        }
        let is_ours = |key: &String| limits.contains_key(key);
        let concerns = |takes: &[(String, u64)]| takes.iter().any(|(key, _)| is_ours(key));
        let was_ours = |row: &PermitRow| {
            let former = former.is_some_and(|former| former.permits.contains_key(&row.fence));
            former || concerns(&row.takes)
        };
        let definitions = look.limits()?;
        let definitions = definitions.iter().filter(|limit| {
            let key = limit.key().to_owned();
            pattern == "*" || is_ours(&key) || key == pattern
        });
        Ok(Self {
            now: Some(look.now()),
            definitions: definitions
                .map(|limit| (limit.key().to_owned(), limit.as_given().to_string()))
                .collect(),
            permits: look
                .permits()?
                .into_iter()
                .filter(was_ours)
                .map(|row| (row.fence, row))
                .collect(),
            bookings: look
                .bookings()?
                .into_iter()
                .filter(|row| is_ours(&row.key))
                .map(|row| (row.key, row.at, row.amount, row.pid))
                .collect(),
            waiting: look
                .waiting()?
                .into_iter()
                .filter(|row| concerns(&row.takes))
                .map(|row| (row.since, row.pid, row.takes))
                .collect(),
            dead: look
                .owners()?
                .into_iter()
                .filter(|row| row.is_alive == Some(false))
                .map(|row| (row.since, row.pid))
                .collect(),
            limits,
            is_cut: false,
        })
    }
}

impl OfLimit {
    /// What was charged is read from as far back as somebody can have been late since the look before.
    fn read(look: &mut Look<'_>, key: &str, since: Duration) -> Result<Self, Error> {
        let usage = look.usage(key)?;
        let resolution = usage.limit().resolution().unwrap_or_default();
        let after = before(look, LATEST + since + resolution);
        let mut charged = BTreeMap::new();
        for row in look.charges(key, after)? {
            if row.kind == ChargeKind::Charged {
                let (rows, amount) = charged.entry(row.at).or_insert((0, 0));
                *rows += 1;
                *amount += row.amount;
            }
        }
        let breaker = usage.breaker();
        Ok(Self {
            available: breaker.is_none().then(|| usage.available()),
            paused_until: usage.pause().map(|pause| pause.until()),
            breaker: breaker.map(|breaker| (breaker.state(), breaker.reason().map(str::to_owned))),
            charged,
        })
    }
}
