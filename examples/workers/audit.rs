//! An audit of the ledger that owes nothing to the library: it reads the table `charge` with plain
//! SQLite and adds up every window of every rate at every charge itself.

use std::collections::HashMap;
use std::path::Path;

use quotalite::{Limit, Rate};
use rusqlite::{Connection, OpenFlags};

use crate::worker::Grant;
use crate::{Failure, TOKENS};

/// What the audit found.
pub struct Findings {
    pub rates: Vec<RateFindings>,
    /// How many windows were added up.
    pub windows: usize,
    /// Grants looked for in the ledger, and those that were not there.
    pub sought: usize,
    pub missing: usize,
    /// Charges that no worker acknowledged.
    pub unacknowledged: usize,
    /// How full the rate in the way was while a worker waited for it, from 0 to 1.
    pub capacity_used: Option<f64>,
    /// Waits at whose end the ledger shows no full rate: what they waited for was given back meanwhile.
    pub outlasted: usize,
}

/// What the audit found about one rate.
pub struct RateFindings {
    pub key: String,
    pub rate: Rate,
    /// The most that any of its windows held.
    pub peak: u64,
    /// Instants at which a window held more than the capacity.
    pub over: usize,
    /// Waits that lasted until this rate had room.
    pub waits: usize,
}

struct Ledger<'a> {
    limit: &'a Limit,
    charges: Vec<Charge>,
}

struct Charge {
    at_ns: i64,
    amount: u64,
}

impl Ledger<'_> {
    /// What the grant was charged in this ledger.
    fn amount(&self, grant: &Grant) -> u64 {
        if self.limit.key() == TOKENS {
            grant.tokens
        } else {
            1
        }
    }
}

pub fn audit(db: &Path, limits: &[Limit], grants: &[Grant]) -> Result<Findings, Failure> {
    let connection = Connection::open_with_flags(db, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let mut ledgers = Vec::new();
    for limit in limits {
        ledgers.push(Ledger {
            limit,
            charges: read(&connection, limit.key())?,
        });
    }

    let mut windows = 0;
    let mut rates = Vec::new();
    for ledger in &ledgers {
        for rate in ledger.limit.rates() {
            let (peak, over, looked_at) = scan(&ledger.charges, *rate);
            windows += looked_at;
            let key = ledger.limit.key().to_owned();
            rates.push(RateFindings {
                key,
                rate: *rate,
                peak,
                over,
                waits: 0,
            });
        }
    }

    let since_ns = ledgers.iter().map(kept_since).max().unwrap_or(i64::MIN);
    let kept: Vec<Grant> = grants
        .iter()
        .filter(|grant| grant.at_ns > since_ns)
        .copied()
        .collect();
    let (missing, unacknowledged) = compare(&ledgers, &kept, since_ns);
    let (capacity_used, outlasted) = explain_waits(&ledgers, &kept, &mut rates);
    Ok(Findings {
        rates,
        windows,
        sought: kept.len(),
        missing,
        unacknowledged,
        capacity_used,
        outlasted,
    })
}

const CHARGES: &str = "SELECT at_ns, amount FROM charge JOIN limit_definition USING (limit_id)
    WHERE key = ?1 ORDER BY at_ns";

fn read(connection: &Connection, key: &str) -> Result<Vec<Charge>, Failure> {
    let mut statement = connection.prepare(CHARGES)?;
    let mut rows = statement.query([key])?;
    let mut charges = Vec::new();
    while let Some(row) = rows.next()? {
        let amount = u64::try_from(row.get::<_, i64>(1)?)?;
        charges.push(Charge {
            at_ns: row.get(0)?,
            amount,
        });
    }
    Ok(charges)
}

fn window_ns(rate: Rate) -> i64 {
    let window = rate.window().rolling().unwrap_or(std::time::Duration::MAX);
    i64::try_from(window.as_nanos()).unwrap_or(i64::MAX)
}

/// The fullest window, how many are over, and how many there are. The sum of a window rises only where
/// a charge is made, so that no other instant can be worse than these.
fn scan(charges: &[Charge], rate: Rate) -> (u64, usize, usize) {
    let (mut peak, mut over, mut windows) = (0, 0, 0);
    let (mut first, mut sum) = (0, 0);
    for (position, charge) in charges.iter().enumerate() {
        sum += charge.amount;
        if charges
            .get(position + 1)
            .is_some_and(|next| next.at_ns == charge.at_ns)
        {
            continue;
        }
        while charges[first].at_ns <= charge.at_ns - window_ns(rate) {
            sum -= charges[first].amount;
            first += 1;
        }
        peak = peak.max(sum);
        over += usize::from(sum > rate.capacity());
        windows += 1;
    }
    (peak, over, windows)
}

/// The library must still have the charges after this instant. It removes what has left every window,
/// which happens only in runs that are longer than the longest.
fn kept_since(ledger: &Ledger<'_>) -> i64 {
    let longest = ledger
        .limit
        .rates()
        .iter()
        .map(|rate| window_ns(*rate))
        .max();
    let last = ledger.charges.last().map_or(0, |charge| charge.at_ns);
    last - longest.unwrap_or(0)
}

/// Grants without their charges, and charges after an instant without a grant.
fn compare(ledgers: &[Ledger<'_>], grants: &[Grant], since_ns: i64) -> (usize, usize) {
    let (mut missing, mut unacknowledged) = (0, 0);
    for ledger in ledgers {
        let mut left: HashMap<(i64, u64), usize> = HashMap::new();
        for charge in ledger
            .charges
            .iter()
            .filter(|charge| charge.at_ns > since_ns)
        {
            *left.entry((charge.at_ns, charge.amount)).or_default() += 1;
        }
        let mut lost = 0;
        for grant in grants {
            match left.get_mut(&(grant.at_ns, ledger.amount(grant))) {
                Some(count) if *count > 0 => *count -= 1,
                _ => lost += 1,
            }
        }
        missing = missing.max(lost);
        unacknowledged = unacknowledged.max(left.values().sum());
    }
    (missing, unacknowledged)
}

/// Finds which rates each wait was for: those that were too full just before it ended. Returns how full
/// they were, averaged over the time waited, and the number of waits that no rate explains; for those,
/// the fullest rate counts.
fn explain_waits(
    ledgers: &[Ledger<'_>],
    grants: &[Grant],
    rates: &mut [RateFindings],
) -> (Option<f64>, usize) {
    let (mut used, mut time, mut outlasted) = (0.0, 0.0, 0);
    for grant in grants.iter().filter(|grant| grant.waited_ns > 0) {
        let waited = grant.at_ns - grant.waited_ns..grant.at_ns;
        let (mut in_the_way, mut fullest) = (None, 0.0_f64);
        let all = ledgers
            .iter()
            .flat_map(|ledger| ledger.limit.rates().iter().map(move |rate| (ledger, *rate)));
        for ((ledger, rate), found) in all.zip(rates.iter_mut()) {
            let full = mean_usage(&ledger.charges, rate, &waited) / as_f64(rate.capacity());
            fullest = fullest.max(full);
            if is_too_full(ledger, rate, grant) {
                found.waits += 1;
                in_the_way = Some(in_the_way.map_or(full, |other: f64| other.max(full)));
            }
        }
        let weight = as_f64(grant.waited_ns.unsigned_abs());
        used += in_the_way.unwrap_or(fullest) * weight;
        time += weight;
        outlasted += usize::from(in_the_way.is_none());
    }
    ((time > 0.0).then(|| used / time), outlasted)
}

/// Whether the window that ends just before a grant had no room for it.
fn is_too_full(ledger: &Ledger<'_>, rate: Rate, grant: &Grant) -> bool {
    let window = grant.at_ns - window_ns(rate)..grant.at_ns;
    let in_window = ledger
        .charges
        .iter()
        .filter(|charge| window.contains(&charge.at_ns));
    let sum: u64 = in_window.map(|charge| charge.amount).sum();
    sum + ledger.amount(grant) > rate.capacity()
}

/// The usage of a rate, averaged over a time.
fn mean_usage(charges: &[Charge], rate: Rate, time: &std::ops::Range<i64>) -> f64 {
    let mut sum = 0.0;
    for charge in charges {
        let counted = (charge.at_ns + window_ns(rate)).min(time.end) - charge.at_ns.max(time.start);
        if counted > 0 {
            sum += as_f64(charge.amount) * as_f64(counted.unsigned_abs());
        }
    }
    sum / as_f64((time.end - time.start).unsigned_abs())
}

#[expect(clippy::cast_precision_loss, reason = "for percentages")]
pub fn as_f64(number: u64) -> f64 {
    number as f64
}

/// The charges that a process has booked after an instant, by plain SQLite too.
pub struct Booked {
    owner: i64,
    after_ns: i64,
    pub at_kill: u32,
}

const OWNED: &str = "SELECT count(*) FROM booking WHERE owner_id = ?1 AND at_ns > ?2";

impl Booked {
    pub fn by(db: &Path, pid: u32, after_ns: i64) -> Result<Option<Self>, Failure> {
        let connection = Connection::open_with_flags(db, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let mut owners = connection.prepare("SELECT owner_id FROM owner WHERE pid = ?1")?;
        let mut rows = owners.query([pid])?;
        let Some(row) = rows.next()? else {
            return Ok(None);
        };
        let owner = row.get(0)?;
        let at_kill = connection.query_row(OWNED, (owner, after_ns), |row| row.get(0))?;
        Ok(Some(Self {
            owner,
            after_ns,
            at_kill,
        }))
    }

    /// How many of them are still charged.
    pub fn still(&self, db: &Path) -> Result<u32, Failure> {
        let connection = Connection::open_with_flags(db, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        Ok(connection.query_row(OWNED, (self.owner, self.after_ns), |row| row.get(0))?)
    }
}
