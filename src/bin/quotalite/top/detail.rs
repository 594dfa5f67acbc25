//! What there is to see of one limit.

use std::collections::BTreeSet;

use quotalite::{
    BookingRow, ChargeKind, Error, Inspector, Look, OwnerId, OwnerRow, PermitRow, Timestamp,
    WaiterRow,
};

use crate::ask::Since;
use crate::explain::state;
use crate::ledger::{Spenders, held_by, list, taken};
use crate::limits::action_of;
use crate::show;
use crate::status::{InLine, Standing};

/// So many lines of each are shown: more than anybody scrolls through.
const MOST: usize = 1_000;

/// Charges of so long ago are looked at.
const RECENT: std::time::Duration = quotalite::MINUTE;

/// One limit, with all who have to do with it.
#[derive(Debug)]
pub(super) struct Detail {
    pub(super) standing: Standing,
    /// What else there is to know about how it stands, in words.
    pub(super) state: Vec<String>,
    pub(super) sections: Vec<Section>,
    /// Those of the section of processes.
    owners: Vec<OwnerRow>,
}

/// Which section has the processes.
const PROCESSES: usize = 4;

/// Rows of texts under a title.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) title: &'static str,
    /// How many there are; no more than `MOST` are in `rows`.
    pub(super) count: usize,
    pub(super) rows: Vec<Vec<String>>,
}

impl Section {
    fn new<T>(title: &'static str, all: Vec<T>, row: impl FnMut(T) -> Vec<String>) -> Self {
        Self {
            title,
            count: all.len(),
            rows: all.into_iter().take(MOST).map(row).collect(),
        }
    }
}

impl Detail {
    pub(super) fn read(look: &mut Look<'_>, key: &str) -> Result<Self, Error> {
        let in_line = InLine::read(look)?;
        let standing = Standing::read(look, key, &in_line)?;
        let state = state(&look.usage(key)?, look);
        let is_of = |takes: &[(String, u64)]| takes.iter().any(|(taken, _)| taken == key);
        let mut permits = look.permits()?;
        permits.retain(|row| row.state.is_open() && is_of(&row.takes));
        let mut waiting = look.waiting()?;
        waiting.retain(|row| is_of(&row.takes));
        let mut booked = look.bookings()?;
        booked.retain(|row| row.key == key);
        let holders = permits.iter().filter_map(|row| row.pid);
        let waiters = waiting.iter().filter_map(|row| row.pid);
        let bookers = booked.iter().map(|row| row.pid);
        let mut pids: BTreeSet<u32> = holders.chain(waiters).chain(bookers).collect();
        let charges = charges(look, key, &mut pids)?;
        let mut owners = look.owners()?;
        owners.retain(|row| pids.contains(&row.pid));
        let sections = vec![
            permits_of(look, permits),
            waiting_of(look, waiting),
            booked_of(look, booked),
            charges,
            processes(look, &owners),
            changes(look, key)?,
        ];
        Ok(Self {
            standing,
            state,
            sections,
            owners,
        })
    }
}

fn process(pid: Option<u32>) -> String {
    pid.map_or_else(|| "no process".to_owned(), |pid| format!("process {pid}"))
}

fn ago(look: &Look<'_>, at: Timestamp) -> String {
    show::duration(look.now().saturating_duration_since(at))
}

fn ahead(look: &Look<'_>, at: Timestamp) -> String {
    show::duration(at.saturating_duration_since(look.now()))
}

fn permits_of(look: &Look<'_>, permits: Vec<PermitRow>) -> Section {
    Section::new("PERMITS", permits, |row| {
        let expires = row.expires.map(|at| ahead(look, at));
        let expires = expires.map(|left| format!("expires in {left}"));
        let id = row.id.map(|id| format!("id {id}"));
        vec![
            process(row.pid),
            format!("{} for {}", row.state.as_str(), ago(look, row.at)),
            list(&taken(row.takes)),
            expires.unwrap_or_default(),
            id.unwrap_or_default(),
        ]
    })
}

fn waiting_of(look: &Look<'_>, waiting: Vec<WaiterRow>) -> Section {
    Section::new("IN LINE FOR SLOTS", waiting, |row| {
        let until = row.deadline.map(|at| ahead(look, at));
        let until = until.map(|left| format!("for {left} more at most"));
        vec![
            process(row.pid),
            format!("waits for {}", ago(look, row.since)),
            list(&taken(row.takes)),
            until.unwrap_or_default(),
        ]
    })
}

fn booked_of(look: &Look<'_>, booked: Vec<BookingRow>) -> Section {
    Section::new("BOOKED", booked, |row| {
        vec![
            process(Some(row.pid)),
            format!("in {}", ahead(look, row.at)),
            show::number(row.amount),
        ]
    })
}

/// The last charges, and the processes that are known to have been charged.
fn charges(look: &mut Look<'_>, key: &str, pids: &mut BTreeSet<u32>) -> Result<Section, Error> {
    let after = Since::Ago(RECENT).after(look);
    let spenders = Spenders::read(look, key, after)?;
    let mut charges = look.charges(key, after)?;
    charges.retain(|row| row.kind == ChargeKind::Charged);
    charges.reverse();
    pids.extend(spenders.values().flat_map(|of| &of.pids));
    Ok(Section::new("CHARGED IN THE LAST MINUTE", charges, |row| {
        let by = spenders.get(&row.at).map(Spenders::to_string);
        vec![
            show::time(look.wall(row.at)),
            show::number(row.amount),
            by.unwrap_or_default(),
        ]
    }))
}

impl Detail {
    /// Says of each process that the limit has to do with how it stands.
    pub(super) fn find_heirs(&mut self, inspector: &Inspector) {
        let owners: Vec<OwnerId> = self.owners.iter().map(|row| row.id).collect();
        let heirs = inspector.heirs(&owners);
        for (owner, row) in self.owners.iter().zip(&mut self.sections[PROCESSES].rows) {
            if let (Some(heirs), Some(state)) = (heirs.get(&owner.id), row.last_mut()) {
                *state = held_by(heirs);
            }
        }
    }
}

/// Those of these processes that the file knows.
fn processes(look: &Look<'_>, owners: &[OwnerRow]) -> Section {
    Section::new("PROCESSES", owners.to_vec(), |row| {
        let state = match row.is_alive {
            Some(true) => "alive",
            Some(false) => "dead: what it held comes back when somebody needs it",
            None => "",
        };
        vec![
            process(Some(row.pid)),
            format!("since {}", ago(look, row.since)),
            state.to_owned(),
        ]
    })
}

fn changes(look: &mut Look<'_>, key: &str) -> Result<Section, Error> {
    let changes = look.changes(key)?;
    Ok(Section::new("CHANGES", changes, |change| {
        vec![
            show::time(look.wall(change.at())),
            action_of(&change).to_owned(),
            change.definition().to_owned(),
            format!("by {} {}", change.program(), change.pid()),
        ]
    }))
}
