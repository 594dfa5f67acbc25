//! What there is to see of one limit.

use quotalite::{ChargeKind, Error, Look, Timestamp};

use crate::ledger::{before, list, taken};
use crate::limits::action_of;
use crate::show;
use crate::status::{InLine, Standing};

/// So many lines of each are shown.
const MOST: usize = 20;

/// Charges of so long ago are looked at.
const RECENT: std::time::Duration = quotalite::MINUTE;

/// One limit, with all who have to do with it.
#[derive(Debug)]
pub(super) struct Detail {
    pub(super) standing: Standing,
    /// Under their titles.
    pub(super) sections: Vec<(&'static str, Vec<String>)>,
}

impl Detail {
    pub(super) fn read(look: &mut Look<'_>, key: &str) -> Result<Self, Error> {
        let in_line = InLine::read(look)?;
        let standing = Standing::read(look, key, &in_line)?;
        let sections = vec![
            ("PERMITS", permits(look, key)?),
            ("IN LINE FOR SLOTS", waiting(look, key)?),
            ("BOOKED", booked(look, key)?),
            ("CHARGED IN THE LAST MINUTE", charges(look, key)?),
            ("PROCESSES", owners(look)?),
            ("CHANGES", changes(look, key)?),
        ];
        Ok(Self { standing, sections })
    }
}

fn process(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!("process {pid}  "))
}

fn ago(look: &Look<'_>, at: Timestamp) -> String {
    show::duration(look.now().saturating_duration_since(at))
}

fn ahead(look: &Look<'_>, at: Timestamp) -> String {
    show::duration(at.saturating_duration_since(look.now()))
}

fn permits(look: &Look<'_>, key: &str) -> Result<Vec<String>, Error> {
    let rows = look.permits()?.into_iter();
    let rows = rows.filter(|row| row.state.is_open());
    let rows = rows.filter(|row| row.takes.iter().any(|(taken, _)| taken == key));
    let lines = rows.take(MOST).map(|row| {
        let id = row
            .id
            .as_ref()
            .map(|id| format!("  id {id}"))
            .unwrap_or_default();
        let expires = row
            .expires
            .map(|at| format!("  expires in {}", ahead(look, at)));
        format!(
            "{}{} for {}  {}{}{id}",
            process(row.pid),
            row.state.as_str(),
            ago(look, row.at),
            list(&taken(row.takes)),
            expires.unwrap_or_default()
        )
    });
    Ok(lines.collect())
}

fn waiting(look: &Look<'_>, key: &str) -> Result<Vec<String>, Error> {
    let rows = look.waiting()?.into_iter();
    let rows = rows.filter(|row| row.takes.iter().any(|(wanted, _)| wanted == key));
    let lines = rows.take(MOST).map(|row| {
        let since = ago(look, row.since);
        let until = row
            .deadline
            .map(|at| format!("  for {} at most", ahead(look, at)));
        let wants = list(&taken(row.takes));
        format!(
            "{}since {since}  {wants}{}",
            process(row.pid),
            until.unwrap_or_default()
        )
    });
    Ok(lines.collect())
}

fn booked(look: &Look<'_>, key: &str) -> Result<Vec<String>, Error> {
    let rows = look.bookings()?.into_iter().filter(|row| row.key == key);
    let lines = rows.take(MOST).map(|row| {
        let amount = show::number(row.amount);
        format!(
            "{}{amount} in {}",
            process(Some(row.pid)),
            ahead(look, row.at)
        )
    });
    Ok(lines.collect())
}

fn charges(look: &mut Look<'_>, key: &str) -> Result<Vec<String>, Error> {
    let after = before(look, RECENT);
    let rows = look.charges(key, after)?.into_iter();
    let rows = rows.filter(|row| row.kind == ChargeKind::Charged).rev();
    let lines = rows.take(MOST).map(|row| {
        let time = show::time(look.wall(row.at));
        format!("{time}  {}", show::number(row.amount))
    });
    Ok(lines.collect())
}

fn owners(look: &Look<'_>) -> Result<Vec<String>, Error> {
    let rows = look.owners()?.into_iter();
    let lines = rows.take(MOST).map(|row| {
        let state = match row.is_alive {
            Some(true) => "alive",
            Some(false) => "dead: what it held comes back when somebody needs it",
            None => "",
        };
        format!(
            "{}since {}  {state}",
            process(Some(row.pid)),
            ago(look, row.since)
        )
    });
    Ok(lines.collect())
}

fn changes(look: &mut Look<'_>, key: &str) -> Result<Vec<String>, Error> {
    let changes = look.changes(key)?;
    let lines = changes.iter().take(MOST).map(|change| {
        let time = show::time(look.wall(change.at()));
        let action = action_of(change);
        format!(
            "{time}  {action}: {}  by {} {}",
            change.definition(),
            change.program(),
            change.pid()
        )
    });
    Ok(lines.collect())
}
