//! What was charged and who holds it: `charges`, `permits`, `settle`, `cancel`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use clap::Args;
use quotalite::{
    ChargeKind, Error, Inspector, Limit, Look, OwnerId, PermitRow, Settled, Timestamp,
};
use serde::Serialize;

use crate::ask::{self, Take};
use crate::shell::{Code, Failure, Shell};
use crate::show::{self, BOLD, Cell, Column, DIM, GOOD, Table, WARN};

/// What was charged to a limit, and is booked
///
/// A ledger keeps what still counts in one of its windows, and a little more until it is swept.
#[derive(Args, Debug)]
pub(crate) struct ChargesArgs {
    /// The limit
    #[arg(value_parser = ask::key)]
    key: String,
    /// Only what was charged since then: so long ago, as `2h`, or a time as `2026-07-01T12:00:00Z`
    #[arg(long, value_name = "TIME", value_parser = ask::since)]
    since: Option<ask::Since>,
    /// Only the last so many
    #[arg(long, value_name = "COUNT", value_parser = ask::count)]
    max: Option<u64>,
}

/// Permits that hold slots or have an id
#[derive(Args, Debug)]
pub(crate) struct PermitsArgs {
    /// Only those of this limit
    #[arg(value_parser = ask::key)]
    key: Option<String>,
    /// Those that have ended within the last hour, too
    #[arg(long)]
    all: bool,
}

/// Say what the call of a permit has used, and give back the rest and its slots
#[derive(Args, Debug)]
pub(crate) struct SettleArgs {
    /// The permit
    id: String,
    /// What was used, where that is not what was asked for
    #[arg(value_name = "KEY=AMOUNT", value_parser = ask::take)]
    used: Vec<Take>,
}

/// Give back all that a permit has taken: its call was never made
#[derive(Args, Debug)]
pub(crate) struct CancelArgs {
    /// The permit
    id: String,
}

#[derive(Debug, Serialize)]
struct ChargeList {
    key: String,
    total: u64,
    charges: Vec<Charge>,
    /// Why there can be none.
    #[serde(skip)]
    has_no_ledger: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct Charge {
    at: String,
    amount: u64,
    kind: &'static str,
    #[serde(flatten)]
    by: Spenders,
    #[serde(skip)]
    time: String,
}

/// Who is known to have spent what was charged at an instant.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Spenders {
    /// The ids of permits.
    pub(crate) ids: Vec<String>,
    pub(crate) pids: Vec<u32>,
}

/// So many of each are named in a line.
const NAMED: usize = 3;

impl Spenders {
    /// Those of a limit after an instant, by the instant of the charge.
    pub(crate) fn read(
        look: &mut Look<'_>,
        key: &str,
        after: Timestamp,
    ) -> Result<BTreeMap<Timestamp, Self>, Error> {
        let mut spenders = BTreeMap::<_, Self>::new();
        for row in look.spenders(key, after)? {
            let of = spenders.entry(row.at).or_default();
            of.ids.extend(row.id);
            of.pids.extend(row.pid.filter(|pid| !of.pids.contains(pid)));
        }
        Ok(spenders)
    }

    pub(crate) const fn is_nobody(&self) -> bool {
        self.ids.is_empty() && self.pids.is_empty()
    }
}

/// `process 17, id nightly`; nothing if nobody is known.
impl fmt::Display for Spenders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pids = self.pids.iter().map(|pid| format!("process {pid}"));
        let ids = self.ids.iter().map(|id| format!("id {id}"));
        let mut named: Vec<String> = pids.take(NAMED).chain(ids.take(NAMED)).collect();
        let untold = self.ids.len() + self.pids.len() - named.len();
        if untold > 0 {
            named.push(format!("{untold} more"));
        }
        f.write_str(&named.join(", "))
    }
}

pub(crate) fn charges(shell: &Shell, args: &ChargesArgs) -> Result<Code, Failure> {
    let charges = shell.inspector()?.look(|look| {
        let after = match args.since {
            Some(since) => since.after(look),
            None => Timestamp::from_nanos(i64::MIN),
        };
        let mut rows = look.charges(&args.key, after)?;
        let most = args.max.and_then(|most| usize::try_from(most).ok());
        rows.drain(..rows.len().saturating_sub(most.unwrap_or(usize::MAX)));
        let spenders = Spenders::read(look, &args.key, after)?;
        let charges = rows.iter().map(|row| Charge {
            at: show::instant(look, row.at),
            amount: row.amount,
            kind: match row.kind {
                ChargeKind::Charged => "charged",
                ChargeKind::Booked => "booked",
                _ => "block",
            },
            by: spenders.get(&row.at).cloned().unwrap_or_default(),
            time: show::time(look.wall(row.at)),
        });
        Ok(ChargeList {
            key: args.key.clone(),
            total: rows
                .iter()
                .fold(0, |total, row| total.saturating_add(row.amount)),
            charges: charges.collect(),
            has_no_ledger: has_no_ledger(&look.limit(&args.key)?),
        })
    })?;
    shell.print(&charges, |out| {
        if charges.charges.is_empty() {
            let why = charges.has_no_ledger.unwrap_or("no charges");
            return writeln!(out, "{DIM}{why}{DIM:#}");
        }
        let mut table = Table::new([
            Column::left("WHEN", 0),
            Column::right("AMOUNT", 0),
            Column::left("", 1),
            Column::left("BY", 2).cut_to(12),
        ]);
        for charge in &charges.charges {
            let kind = if charge.kind == "charged" {
                ""
            } else {
                charge.kind
            };
            table.row(vec![
                charge.time.as_str().into(),
                show::number(charge.amount).into(),
                Cell::styled(kind, WARN),
                charge.by.to_string().into(),
            ]);
        }
        table.write(out, show::width())?;
        let count = show::counted(charges.charges.len() as u64, "charge");
        writeln!(
            out,
            "{DIM}{} in {count}{DIM:#}",
            show::number(charges.total)
        )
    })?;
    Ok(Code::Done)
}

fn has_no_ledger(limit: &Limit) -> Option<&'static str> {
    if limit.slot_count().is_some() {
        Some("slots are held and not charged: `quotalite permits` shows by whom")
    } else if limit.bucket().is_some() {
        Some("a bucket knows how full it is, and not who has taken what")
    } else if limit.rates().is_empty() {
        Some("nothing is charged to a breaker")
    } else {
        None
    }
}

#[derive(Debug, Serialize)]
struct Permits {
    permits: Vec<Permit>,
}

/// Finds out which processes hold permits, where those that have taken them do not: see [`Inspector::heirs`].
pub(crate) fn find_heirs<'p>(
    inspector: &Inspector,
    permits: impl IntoIterator<Item = &'p mut Permit>,
) {
    let mut permits: Vec<_> = permits.into_iter().collect();
    let owners: Vec<OwnerId> = permits.iter().filter_map(|permit| permit.owner).collect();
    let heirs = inspector.heirs(&owners);
    for permit in &mut permits {
        let of = permit.owner.and_then(|owner| heirs.get(&owner));
        permit.heirs = of.cloned().unwrap_or_default();
    }
}

/// What there is to say of a process with heirs: it has ended, or has another id here.
pub(crate) fn held_by(heirs: &[u32]) -> String {
    let named = heirs.iter().map(|pid| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
        let name = name.map(|name| format!(" ({})", name.trim_end()));
        format!("{pid}{}", name.unwrap_or_default())
    });
    let named: Vec<_> = named.collect();
    format!("is gone or elsewhere: held by {}", named.join(", "))
}

/// A permit, as it is printed.
#[derive(Debug, Serialize)]
pub(crate) struct Permit {
    pub(crate) id: Option<String>,
    /// Some programs keep no number as large as this, and round it.
    pub(crate) fence: String,
    pub(crate) state: &'static str,
    pub(crate) pid: Option<u32>,
    #[serde(skip)]
    owner: Option<OwnerId>,
    /// The processes that hold it, if the one that has taken it does not: see [`find_heirs`].
    pub(crate) heirs: Vec<u32>,
    pub(crate) since: String,
    pub(crate) since_s: f64,
    pub(crate) expires: Option<String>,
    pub(crate) expires_in_s: Option<f64>,
    pub(crate) takes: Vec<Taken>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Taken {
    pub(crate) key: String,
    pub(crate) amount: u64,
}

impl Permit {
    pub(crate) fn new(row: PermitRow, look: &Look<'_>) -> Self {
        let now = look.now();
        Self {
            owner: row.owner,
            heirs: Vec::new(),
            id: row.id,
            fence: row.fence.to_string(),
            state: row.state.as_str(),
            pid: row.pid,
            since: show::instant(look, row.at),
            since_s: now.saturating_duration_since(row.at).as_secs_f64(),
            expires: row.expires.map(|at| show::instant(look, at)),
            expires_in_s: row
                .expires
                .map(|at| at.saturating_duration_since(now).as_secs_f64()),
            takes: taken(row.takes),
        }
    }
}

pub(crate) fn taken(takes: Vec<(String, u64)>) -> Vec<Taken> {
    let each = takes.into_iter();
    each.map(|(key, amount)| Taken { key, amount }).collect()
}

/// Amounts and keys in a line: `2 gpu, 900 tokens`.
pub(crate) fn list(takes: &[Taken]) -> String {
    let each = takes
        .iter()
        .map(|take| format!("{} {}", show::number(take.amount), take.key));
    each.collect::<Vec<_>>().join(", ")
}

pub(crate) fn permits(shell: &Shell, args: &PermitsArgs) -> Result<Code, Failure> {
    let is_of = |row: &PermitRow| match &args.key {
        None => true,
        Some(wanted) => row.takes.iter().any(|(key, _)| key == wanted),
    };
    let inspector = shell.inspector()?;
    let mut permits = inspector.look(|look| -> Result<_, Error> {
        if let Some(key) = &args.key {
            look.limit(key)?;
        }
        let mut rows = look.permits()?;
        rows.retain(|row| (args.all || row.state.is_open()) && is_of(row));
        let permits = rows.into_iter().map(|row| Permit::new(row, look));
        Ok(Permits {
            permits: permits.collect(),
        })
    })?;
    find_heirs(&inspector, &mut permits.permits);
    shell.print(&permits, |out| {
        if permits.permits.is_empty() {
            return writeln!(out, "{DIM}no permits{DIM:#}");
        }
        let mut table = Table::new([
            Column::left("ID", 0),
            Column::left("STATE", 0),
            Column::right("PID", 1),
            Column::right("FOR", 3),
            Column::right("EXPIRES IN", 4),
            Column::right("FENCE", 5),
            Column::left("HOLDS", 2).cut_to(12),
        ]);
        for permit in &permits.permits {
            table.row(vec![
                Cell::styled(permit.id.as_deref().unwrap_or("-"), BOLD),
                permit.state.into(),
                permit
                    .pid
                    .map(|pid| pid.to_string())
                    .unwrap_or_default()
                    .into(),
                show::seconds(permit.since_s).into(),
                permit
                    .expires_in_s
                    .map(show::seconds)
                    .unwrap_or_default()
                    .into(),
                permit.fence.as_str().into(),
                list(&permit.takes).into(),
            ]);
        }
        table.write(out, show::width())?;
        let inherited = permits
            .permits
            .iter()
            .filter(|permit| !permit.heirs.is_empty());
        let inherited: BTreeSet<_> = inherited
            .map(|permit| (permit.owner, &permit.heirs))
            .collect();
        inherited.into_iter().try_for_each(|(owner, heirs)| {
            let pid = owner.map(|owner| owner.pid()).unwrap_or_default();
            writeln!(out, "{DIM}process {pid} {}{DIM:#}", held_by(heirs))
        })
    })?;
    Ok(Code::Done)
}

#[derive(Debug, Serialize)]
struct Ended {
    id: String,
    outcome: &'static str,
    amounts: Vec<Amount>,
}

#[derive(Debug, Serialize)]
struct Amount {
    key: String,
    estimated: u64,
    used: u64,
    charged: u64,
    debt: u64,
}

pub(crate) fn settle(shell: &Shell, args: &SettleArgs) -> Result<Code, Failure> {
    let used = args
        .used
        .iter()
        .map(|take| (take.key.as_str(), take.amount));
    let settled = shell.limiter()?.settle(&args.id, used)?;
    end(shell, &args.id, "settled", &settled)
}

pub(crate) fn cancel(shell: &Shell, args: &CancelArgs) -> Result<Code, Failure> {
    let cancelled = shell.limiter()?.cancel(&args.id)?;
    end(shell, &args.id, "cancelled", &cancelled)
}

/// Says what came of ending a permit. It is no error if somebody else was first, and one if it is not known.
fn end(shell: &Shell, id: &str, how: &'static str, settled: &Settled) -> Result<Code, Failure> {
    let outcome = match settled {
        Settled::Now(_) => how,
        Settled::Before => "before",
        Settled::Expired => "expired",
        _ => "unknown",
    };
    let amounts = settled
        .settlement()
        .map_or(&[][..], |settlement| settlement.amounts());
    let ended = Ended {
        id: id.to_owned(),
        outcome,
        amounts: amounts
            .iter()
            .map(|amount| Amount {
                key: amount.key().to_owned(),
                estimated: amount.estimated(),
                used: amount.used(),
                charged: amount.charged(),
                debt: amount.debt(),
            })
            .collect(),
    };
    let is_first = matches!(settled, Settled::Now(_));
    if !is_first && !shell.json {
        return Err(Failure::of(
            Code::Found,
            match settled {
                Settled::Before => format!("permit `{id}` was settled or cancelled before"),
                Settled::Expired => format!("permit `{id}` has timed out"),
                _ => format!("no permit `{id}` is known"),
            },
        )
        .hint("`quotalite permits --all` shows those of the last hour"));
    }
    shell.print(&ended, |out| {
        writeln!(out, "{GOOD}{how}{GOOD:#}")?;
        ended.amounts.iter().try_for_each(|amount| {
            let Amount {
                key,
                estimated,
                charged,
                debt,
                ..
            } = amount;
            let [estimated, charged] = [*estimated, *charged].map(show::number);
            write!(out, "{BOLD}{key}{BOLD:#}: {charged} of {estimated}")?;
            if *debt > 0 {
                write!(out, ", {WARN}{} in debt{WARN:#}", show::number(*debt))?;
            }
            writeln!(out)
        })
    })?;
    Ok(if is_first { Code::Done } else { Code::Found })
}
