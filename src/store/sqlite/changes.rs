//! Who changed which limit, and when.

use super::transaction::Transaction;
use crate::clock::Timestamp;
use crate::definition::{Action, Author, LimitChange};
use crate::error::Error;
use crate::limit::Limit;

const INSERT: &str = "INSERT INTO limit_change (key, at_ns, pid, program, action, definition)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
// As many as `LimitChange::KEPT`.
const FORGET: &str = "DELETE FROM limit_change WHERE key = ?1 AND change_id <= (
        SELECT change_id FROM limit_change WHERE key = ?1
        ORDER BY change_id DESC LIMIT 1 OFFSET 16
    )";
// Of limits that were removed, too, but not for ever.
const FORGET_OLDEST: &str = "DELETE FROM limit_change
    WHERE change_id <= (SELECT max(change_id) FROM limit_change) - 65536";

impl Transaction<'_> {
    /// Writes down a change, and forgets the oldest one of the limit if there are too many.
    pub(super) fn note_change(
        &mut self,
        limit: &Limit,
        action: Action,
        author: &Author,
    ) -> Result<(), Error> {
        self.wrote();
        let connection = self.link.connection;
        let note = || -> rusqlite::Result<()> {
            connection.prepare_cached(INSERT)?.execute((
                limit.key(),
                self.now().as_nanos(),
                author.pid,
                &author.program,
                action.as_str(),
                limit.as_given().to_string(),
            ))?;
            connection.prepare_cached(FORGET)?.execute([limit.key()])?;
            connection.prepare_cached(FORGET_OLDEST)?.execute([])?;
            Ok(())
        };
        note().map_err(|error| self.sqlite(error))
    }
}

const READ: &str = "SELECT at_ns, pid, program, action, definition FROM limit_change
    WHERE key = ?1 ORDER BY change_id DESC LIMIT 16";

impl Transaction<'_> {
    /// The last changes of a limit, the last one first.
    pub(super) fn changes_of(&self, key: &str) -> Result<Vec<LimitChange>, Error> {
        let rows: Vec<(LimitChange, String)> = self
            .link
            .connection
            .prepare_cached(READ)
            .and_then(|mut s| {
                s.query_map([key], |row| {
                    let change = LimitChange {
                        at: Timestamp::from_nanos(row.get(0)?),
                        pid: row.get(1)?,
                        program: row.get(2)?,
                        action: Action::Created,
                        definition: row.get(4)?,
                    };
                    Ok((change, row.get(3)?))
                })?
                .collect()
            })
            .map_err(|error| self.sqlite(error))?;
        rows.into_iter()
            .map(|(change, action)| match Action::parse(&action) {
                Some(action) => Ok(LimitChange { action, ..change }),
                None => Err(self
                    .place
                    .damaged(format!("there is no change `{action}` of a limit"))),
            })
            .collect()
    }
}
