//! Rates that follow what a provider allows.

use rusqlite::OptionalExtension;

use super::transaction::Transaction;
use crate::adaptive::{Adapted, Adaptive};
use crate::calendar::{self, LimitId};
use crate::clock::Timestamp;
use crate::definition::{Author, Known};
use crate::error::Error;
use crate::limit::{Limit, Rate};

const READ: &str = "SELECT changed_ns, cut_ns, refused_ns FROM adaptation WHERE limit_id = ?1";
const WRITE: &str = "INSERT OR REPLACE INTO adaptation (limit_id, changed_ns, cut_ns, refused_ns)
    VALUES (?1, ?2, ?3, ?4)";

impl Transaction<'_> {
    /// What would become of a limit with an answer. Mostly nothing.
    pub(super) fn would_adapt(
        &mut self,
        key: &str,
        adaptive: &Adaptive,
        was_refused: bool,
    ) -> Result<Option<(Known, Adapted, Option<Rate>)>, Error> {
        let known = self.defined(key)?.ok_or_else(|| self.unknown(key))?;
        let last = self.read_adapted(known.id)?;
        let now = self.now();
        let adapted = adaptive.adapt(&known.limit, last, (was_refused, now), |rate| {
            let usage = calendar::usage(self, known.id, &known.limit, rate, now)?;
            Ok::<_, Error>(usage.used)
        })?;
        Ok(adapted.map(|(adapted, rate)| (known, adapted, rate)))
    }

    /// Lets a rate follow an answer. Returns the limit if it is another now.
    pub(super) fn adapt(
        &mut self,
        key: &str,
        adaptive: &Adaptive,
        was_refused: bool,
        author: &Author,
    ) -> Result<Option<Limit>, Error> {
        let Some((known, adapted, rate)) = self.would_adapt(key, adaptive, was_refused)? else {
            return Ok(None);
        };
        self.write_adapted(known.id, adapted)?;
        let Some(rate) = rate else {
            return Ok(None);
        };
        let limit: Limit = known.limit.to_builder().set_rate(rate).try_into()?;
        self.replace(&known, &limit, author)?;
        Ok(Some(limit))
    }

    fn read_adapted(&self, limit: LimitId) -> Result<Adapted, Error> {
        let adapted = self
            .link
            .connection
            .prepare_cached(READ)
            .and_then(|mut s| {
                s.query_row([limit.0], |row| {
                    let at = |column| row.get(column).map(Timestamp::from_nanos);
                    Ok(Adapted {
                        changed: at(0)?,
                        cut: at(1)?,
                        refused: at(2)?,
                    })
                })
                .optional()
            })
            .map_err(|error| self.sqlite(error))?;
        Ok(adapted.unwrap_or(Adapted::NEVER))
    }

    fn write_adapted(&mut self, limit: LimitId, adapted: Adapted) -> Result<(), Error> {
        self.wrote();
        let Adapted {
            changed,
            cut,
            refused,
        } = adapted;
        let [changed_ns, cut_ns, refused_ns] = [changed, cut, refused].map(Timestamp::as_nanos);
        self.link
            .connection
            .prepare_cached(WRITE)
            .and_then(|mut s| s.execute((limit.0, changed_ns, cut_ns, refused_ns)))
            .map(drop)
            .map_err(|error| self.sqlite(error))
    }
}
