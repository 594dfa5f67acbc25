//! The schema: migrations, applied in order and once, whoever comes first.

use rusqlite::{Connection, ErrorCode};

use super::place::Place;
use crate::error::Error;

/// Append-only: what has once been released is never edited.
const MIGRATIONS: [&str; 14] = [
    include_str!("../../../migrations/0001_ledger.sql"),
    include_str!("../../../migrations/0002_permits.sql"),
    include_str!("../../../migrations/0003_shared.sql"),
    include_str!("../../../migrations/0004_kinds.sql"),
    include_str!("../../../migrations/0005_views.sql"),
    include_str!("../../../migrations/0006_corrections.sql"),
    include_str!("../../../migrations/0007_blocks.sql"),
    include_str!("../../../migrations/0008_resolution.sql"),
    include_str!("../../../migrations/0009_pauses.sql"),
    include_str!("../../../migrations/0010_retries.sql"),
    include_str!("../../../migrations/0011_breakers.sql"),
    include_str!("../../../migrations/0012_estimates.sql"),
    include_str!("../../../migrations/0013_history.sql"),
    include_str!("../../../migrations/0014_patterns.sql"),
];

/// Marks a file as ours in its header: "qtlt".
const APPLICATION_ID: i64 = 0x7174_6C74;

/// DESIGN.md has the measurement.
pub(super) const PAGE_BYTES: i64 = 1_024;

/// SQLite loses commits in WAL mode from 3.7.0 to 3.51.2: see "The WAL-Reset Bug" in
/// <https://www.sqlite.org/wal.html>.
const OLDEST_SQLITE: i32 = 3_051_003;

pub(super) fn check_sqlite(version_number: i32, version: &str) -> Result<(), Error> {
    if version_number < OLDEST_SQLITE {
        return Err(Error::OldSqlite {
            found: version.to_owned(),
        });
    }
    Ok(())
}

/// Puts the file into WAL mode and brings its schema up to date. The caller holds the open guard.
///
/// No statement writes to a file that is not ours or too new; nor to one that is up to date, whose write lock
/// somebody else may hold. SQLite itself copies a WAL into it that others have left.
pub(super) fn migrate(connection: &Connection, place: &Place) -> Result<(), Error> {
    let failed = |error| place.sqlite(error);
    let version = version(connection, place)?;
    let mode: String = connection
        .pragma_query_value(None, "journal_mode", |row| row.get(0))
        .map_err(failed)?;
    if version == latest() && mode == "wal" {
        return Ok(());
    }
    if version == 0 {
        // Both can only be chosen before the first table: small pages, because a transaction writes one for
        // each limit that it charges, and a file that can shrink.
        connection
            .pragma_update(None, "page_size", PAGE_BYTES)
            .map_err(failed)?;
        connection
            .pragma_update(None, "auto_vacuum", "INCREMENTAL")
            .map_err(failed)?;
    }
    let mode: String = connection
        .query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))
        .map_err(failed)?;
    if mode != "wal" {
        return Err(place.damaged(format!(
            "its journal mode is `{mode}` and cannot be changed to `wal`"
        )));
    }
    connection
        .execute_batch("BEGIN IMMEDIATE")
        .map_err(failed)?;
    let result = apply(connection, place);
    let end = if result.is_ok() { "COMMIT" } else { "ROLLBACK" };
    let ended = connection.execute_batch(end).map_err(failed);
    if ended.is_err() && end == "COMMIT" {
        // The error that matters is the commit's.
        let _ = connection.execute_batch("ROLLBACK");
    }
    result.and(ended)
}

pub(super) fn latest() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// Refuses a file that a newer program has migrated while it was open.
pub(super) fn check_version(connection: &Connection, place: &Place) -> Result<(), Error> {
    version(connection, place).map(drop)
}

/// Refuses a file that this program would have to bring up to date first.
#[cfg(feature = "inspect")]
pub(super) fn check_current(connection: &Connection, place: &Place) -> Result<(), Error> {
    let found = version(connection, place)?;
    if found < latest() {
        return Err(Error::OlderSchema {
            file: place.database.clone(),
            found,
            current: latest(),
        });
    }
    Ok(())
}

/// The version of the schema; 0 in an empty file. An error if the file is not ours or too new.
pub(super) fn version(connection: &Connection, place: &Place) -> Result<i64, Error> {
    let failed = |error| place.sqlite(error);
    let pragma = |name: &str| -> Result<i64, Error> {
        connection
            .pragma_query_value(None, name, |row| row.get(0))
            .map_err(failed)
    };
    let (application_id, version) = (pragma("application_id")?, pragma("user_version")?);
    if application_id != APPLICATION_ID {
        let objects: i64 = connection
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
            .map_err(failed)?;
        if application_id != 0 || version != 0 || objects != 0 {
            return Err(Error::ForeignFile {
                file: place.database.clone(),
                application_id,
                version,
            });
        }
    }
    if version > latest() {
        return Err(Error::NewerSchema {
            file: place.database.clone(),
            found: version,
            known: latest(),
        });
    }
    Ok(version)
}

fn apply(connection: &Connection, place: &Place) -> Result<(), Error> {
    let failed = |error| place.sqlite(error);
    // Read again under the write lock: of two processes that find an old file, the second sees what the
    // first has done.
    let done = usize::try_from(version(connection, place)?)
        .map_err(|_| place.damaged("its version is negative"))?;
    for migration in &MIGRATIONS[done..] {
        connection.execute_batch(migration).map_err(failed)?;
    }
    // Who has the file open looks at its version when the definitions have changed.
    connection
        .execute_batch("UPDATE clock SET definitions = definitions + 1")
        .map_err(failed)?;
    connection
        .pragma_update(None, "application_id", APPLICATION_ID)
        .map_err(failed)?;
    connection
        .pragma_update(None, "user_version", latest())
        .map_err(failed)
}

/// Whether an error means that a lock could not be had in time.
pub(super) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two processes have found an old file, and one of them was first.
    #[test]
    fn whoever_migrates_second_sees_what_the_first_has_done() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("limits.db");
        let [first, second] = [(); 2].map(|()| Connection::open(&path).unwrap());
        let place = Place::new(&path).unwrap();
        assert_eq!(version(&second, &place).unwrap(), 0);
        migrate(&first, &place).unwrap();
        second.execute_batch("BEGIN IMMEDIATE").unwrap();
        apply(&second, &place).unwrap();
        second.execute_batch("COMMIT").unwrap();
        assert_eq!(version(&second, &place).unwrap(), latest());
    }

    #[test]
    fn versions_that_lose_commits_are_refused() {
        for (number, safe) in [
            (3_007_000, false),
            (3_040_001, false),
            (3_051_002, false),
            (3_051_003, true),
            (3_053_002, true),
            (4_000_000, true),
        ] {
            assert_eq!(check_sqlite(number, "x").is_ok(), safe, "{number}");
        }
        assert!(check_sqlite(rusqlite::version_number(), rusqlite::version()).is_ok());
    }
}
