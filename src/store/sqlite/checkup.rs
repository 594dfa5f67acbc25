//! Looking at everything that can be wrong with a file: see [`Checkup`].

mod files;
mod ledgers;
mod mending;
mod people;

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};

use super::inspector::Inspector;
use super::place::Place;
use super::schema::{PAGE_BYTES, check_sqlite, latest, version};
use crate::checkup::{Checkup, Finding, FindingKind};
use crate::clock::Clock;
use crate::error::Error;

pub(crate) use self::files::mend_permissions;

/// For how long one look at the ledgers goes on, before the WAL may start anew.
const LOOK: Duration = Duration::from_millis(50);

/// Free pages up to these are kept for growth, or come and go with floods of keys.
const FREE_PAGES: i64 = 4_096;

/// By how much the clocks may be apart before it is told.
const APART_NS: i64 = 3_600 * 1_000_000_000;

pub(crate) fn check_up(path: &Path, clock: Box<dyn Clock>) -> Result<Checkup, Error> {
    check_sqlite(rusqlite::version_number(), rusqlite::version())?;
    let mut checkup = Checkup {
        file: path.to_owned(),
        findings: Vec::new(),
        checked: vec![format!("SQLite {}", rusqlite::version())],
    };
    let place = match Place::new(path) {
        Ok(place) => place,
        Err(error) => {
            checkup.find(FindingKind::Missing, path, error.to_string());
            return Ok(checkup);
        }
    };
    if !checkup.look_at_files(&place) {
        return Ok(checkup);
    }
    let inspector = Inspector { place, clock };
    if checkup.look_at_database(&inspector)? {
        checkup.look_at_people(&inspector)?;
        checkup.look_at_definitions(&inspector)?;
        checkup.look_at_ledgers(&inspector)?;
    }
    checkup.findings.sort_by(|a, b| {
        (a.severity(), a.kind, &a.subject).cmp(&(b.severity(), b.kind, &b.subject))
    });
    Ok(checkup)
}

/// What can be shown in a message.
trait Subject {
    fn text(&self) -> String;
}

impl Subject for Path {
    fn text(&self) -> String {
        self.display().to_string()
    }
}

impl Subject for str {
    fn text(&self) -> String {
        self.to_owned()
    }
}

impl Checkup {
    fn find(
        &mut self,
        kind: FindingKind,
        subject: &(impl Subject + ?Sized),
        what: impl Into<String>,
    ) {
        self.findings.push(Finding {
            kind,
            subject: subject.text(),
            what: what.into(),
        });
    }

    /// Notes what was well, if nothing of these kinds was found.
    fn note_well(&mut self, kinds: &[FindingKind], text: impl Into<String>) {
        if !self
            .findings
            .iter()
            .any(|found| kinds.contains(&found.kind))
        {
            self.checked.push(text.into());
        }
    }

    /// Looks at the file as a database. False if there is nothing more to look at.
    fn look_at_database(&mut self, inspector: &Inspector) -> Result<bool, Error> {
        let place = &inspector.place;
        let looked = inspector.patiently(|| {
            let connection = inspector.open_alone()?;
            let found = version(&connection, place)?;
            self.look_at_setup(&connection, place)?;
            // An error of the disk, once, is no proof.
            let mut damage = integrity(&connection, place)?;
            if damage.is_some() {
                damage = integrity(&inspector.open_alone()?, place)?;
            }
            if let Some(damage) = damage {
                self.find(FindingKind::Damaged, &*place.database, damage);
                return Ok(false);
            }
            self.checked.push("PRAGMA integrity_check".to_owned());
            if found == 0 {
                let what = "nothing was ever defined in it";
                self.find(FindingKind::Empty, &*place.database, what);
                return Ok(false);
            }
            if found < latest() {
                let what = format!(
                    "its schema has version {found}, and this program version {}",
                    latest()
                );
                self.find(FindingKind::OlderSchema, &*place.database, what);
                return Ok(false);
            }
            self.checked.push(format!("schema version {found}"));
            Ok(true)
        });
        match looked {
            Ok(goes_on) => Ok(goes_on),
            Err(error) => match kind_of(&error) {
                Some(kind) => {
                    self.find(kind, &*place.database, error.to_string());
                    Ok(false)
                }
                None => Err(error),
            },
        }
    }
}

/// What an error says of a file.
fn kind_of(error: &Error) -> Option<FindingKind> {
    Some(match error {
        Error::ForeignFile { .. } => FindingKind::Foreign,
        Error::NewerSchema { .. } => FindingKind::NewerSchema,
        Error::Damaged { .. } => FindingKind::Damaged,
        Error::Sqlite { source, .. } => match source.sqlite_error_code()? {
            ErrorCode::NotADatabase => FindingKind::Foreign,
            ErrorCode::CannotOpen
            | ErrorCode::PermissionDenied
            | ErrorCode::ReadOnly
            | ErrorCode::AuthorizationForStatementDenied => FindingKind::Unreadable,
            ErrorCode::DatabaseCorrupt
            | ErrorCode::SystemIoFailure
            | ErrorCode::Unknown
            | ErrorCode::ConstraintViolation
            | ErrorCode::TypeMismatch => FindingKind::Damaged,
            _ => return None,
        },
        _ => return None,
    })
}

const INTEGRITY: &str = "PRAGMA integrity_check(5)";

/// What SQLite finds damaged: one read of the whole file.
fn integrity(connection: &Connection, place: &Place) -> Result<Option<String>, Error> {
    let lines = connection.prepare(INTEGRITY).and_then(|mut statement| {
        let lines = statement.query_map([], |row| row.get::<_, String>(0))?;
        lines.collect::<rusqlite::Result<Vec<String>>>()
    });
    match lines.map_err(|error| place.sqlite(error)) {
        Ok(lines) if lines == ["ok"] => Ok(None),
        Ok(lines) => Ok(Some(lines.join("; "))),
        Err(error) if kind_of(&error) == Some(FindingKind::Damaged) => Ok(Some(error.to_string())),
        Err(error) => Err(error),
    }
}

impl Checkup {
    fn look_at_setup(&mut self, connection: &Connection, place: &Place) -> Result<(), Error> {
        let number = |name: &str| -> Result<i64, Error> {
            connection
                .pragma_query_value(None, name, |row| row.get(0))
                .map_err(|error| place.sqlite(error))
        };
        if number("schema_version")? == 0 {
            return Ok(());
        }
        let mode: String = connection
            .pragma_query_value(None, "journal_mode", |row| row.get(0))
            .map_err(|error| place.sqlite(error))?;
        if mode != "wal" {
            let what = format!(
                "its journal mode is `{mode}` and not `wal`; who opens it next changes that"
            );
            self.find(FindingKind::Setup, "journal_mode", what);
        }
        if number("page_size")? != PAGE_BYTES {
            let what = format!(
                "its pages have {} bytes and not {PAGE_BYTES}",
                number("page_size")?
            );
            self.find(FindingKind::Setup, "page_size", what);
        }
        if number("auto_vacuum")? != 2 {
            let what = "its `auto_vacuum` is not `incremental`: it never becomes smaller";
            self.find(FindingKind::Setup, "auto_vacuum", what);
        }
        let (free, pages) = (number("freelist_count")?, number("page_count")?);
        if free > FREE_PAGES && free > pages / 2 {
            let what = format!("{free} of its {pages} pages are free");
            self.find(FindingKind::FreePages, &*place.database, what);
        }
        self.note_well(
            &[FindingKind::Setup],
            "journal mode, page size, auto_vacuum",
        );
        self.note_well(
            &[FindingKind::FreePages],
            format!("{free} of {pages} pages are free"),
        );
        Ok(())
    }

    fn look_at_definitions(&mut self, inspector: &Inspector) -> Result<(), Error> {
        let (shift_ns, found) = inspector.look(|look| {
            let shift_ns = look.transaction.timeline().wall_minus_instant_ns;
            Ok((shift_ns, look.transaction.unreadable()?))
        })?;
        if shift_ns.saturating_abs() > APART_NS {
            let minutes = shift_ns / 60_000_000_000;
            let what = format!(
                "the wall clock is {minutes:+} minutes from where it would be if it had never been set"
            );
            self.find(FindingKind::ClockApart, "clock", what);
        }
        self.note_well(&[FindingKind::ClockApart], "clock");
        for (key, error) in found {
            let kind = match error {
                Error::Definition { .. } => FindingKind::UnknownZone,
                _ => FindingKind::BadDefinition,
            };
            self.find(kind, &*key, error.to_string());
        }
        self.note_well(
            &[FindingKind::BadDefinition, FindingKind::UnknownZone],
            "definitions",
        );
        Ok(())
    }

    fn look_at_ledgers(&mut self, inspector: &Inspector) -> Result<(), Error> {
        let mut after = Some(i64::MIN);
        let mut count: u64 = 0;
        while let Some(from) = after {
            let (next, found) = inspector.look(|look| {
                let until = Instant::now() + LOOK;
                let mut found = Vec::new();
                let mut next = Some(from);
                while let Some(from) = next {
                    next = look.transaction.check_next_ledger(from, &mut found)?;
                    count += u64::from(next.is_some());
                    if Instant::now() >= until {
                        break;
                    }
                }
                Ok((next, found))
            })?;
            self.findings.extend(found);
            after = next;
        }
        self.note_well(
            &[
                FindingKind::WrongTotals,
                FindingKind::WrongAmount,
                FindingKind::WindowOver,
                FindingKind::SlotsOver,
            ],
            format!("ledgers ({count}): amounts, totals, windows, slots"),
        );
        Ok(())
    }
}
