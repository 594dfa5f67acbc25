//! Definitions of limits in the file.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::OptionalExtension;

use super::transaction::Transaction;
use crate::calendar::LimitId;
use crate::error::Error;
use crate::limit::Limit;
use crate::plan::Plan;
use crate::settlement::Overage;
use crate::store::{Definition, Few, Known, OnConflict};

impl Transaction<'_> {
    pub(super) fn define(
        &mut self,
        limit: &Limit,
        conflict: OnConflict,
    ) -> Result<Definition, Error> {
        let Some(stored) = self.find(limit.key())? else {
            let id = self.insert_definition(limit)?;
            self.insert_rates(id, limit)?;
            self.changed_definitions();
            return Ok(Definition::Created);
        };
        if stored.limit == *limit {
            return Ok(Definition::Unchanged);
        }
        let former = stored.limit.clone();
        match conflict {
            OnConflict::Adopt => Ok(Definition::Adopted(former)),
            OnConflict::Fail => Err(Error::Conflict {
                stored: Box::new(former),
                given: Box::new(limit.clone()),
                file: self.place.database.clone(),
            }),
            OnConflict::Replace => {
                self.update_definition(stored.id, limit)?;
                self.insert_rates(stored.id, limit)?;
                self.changed_definitions();
                self.freed(stored.id);
                Ok(Definition::Replaced(former))
            }
        }
    }

    /// The definition of `key`.
    pub(super) fn known(&mut self, key: &str) -> Result<Arc<Known>, Error> {
        self.find(key)?.ok_or_else(|| Error::UnknownLimit {
            key: key.to_owned(),
            file: self.place.database.clone(),
        })
    }

    /// The definitions of all limits of a plan, in its order.
    pub(super) fn all_known(&mut self, plan: &Plan<'_>) -> Result<Few<Arc<Known>>, Error> {
        plan.takes().map(|(key, _)| self.known(key)).collect()
    }

    /// The definition of a limit, if there is one.
    pub(super) fn known_by_id(&mut self, id: LimitId) -> Result<Option<Arc<Known>>, Error> {
        if let Some(known) = self.link.memo.limit_by_id(id) {
            return Ok(Some(Arc::clone(known)));
        }
        let known = self
            .read_definition_from(id)?
            .filter(|known| known.id == id);
        Ok(known.map(|known| {
            let known = Arc::new(known);
            self.link.memo.remember_limit_by_id(&known);
            known
        }))
    }

    fn find(&mut self, key: &str) -> Result<Option<Arc<Known>>, Error> {
        if let Some(known) = self.link.memo.limit(key) {
            return Ok(Some(Arc::clone(known)));
        }
        let Some(known) = self.read_definition(key)? else {
            return Ok(None);
        };
        let known = Arc::new(known);
        self.link.memo.remember_limit(&known);
        Ok(Some(known))
    }
}

const INSERT_DEFINITION: &str =
    "INSERT INTO limit_definition (key, unit, pad_ns, overage, slots, timeout_ns)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6)";

impl Transaction<'_> {
    fn insert_definition(&mut self, limit: &Limit) -> Result<LimitId, Error> {
        self.link
            .connection
            .prepare_cached(INSERT_DEFINITION)
            .and_then(|mut s| {
                s.insert((
                    limit.key(),
                    limit.unit(),
                    limit.pad_ns(),
                    limit.overage().as_str(),
                    limit.slot_count().map(u64::cast_signed),
                    limit.timeout_ns(),
                ))
            })
            .map(LimitId)
            .map_err(|error| self.sqlite(error))
    }
}

const UPDATE_DEFINITION: &str = "UPDATE limit_definition
    SET unit = ?2, pad_ns = ?3, overage = ?4, slots = ?5, timeout_ns = ?6 WHERE limit_id = ?1";
const DELETE_RATES: &str = "DELETE FROM rate WHERE limit_id = ?1";

impl Transaction<'_> {
    fn update_definition(&mut self, id: LimitId, limit: &Limit) -> Result<(), Error> {
        let connection = self.link.connection;
        connection
            .prepare_cached(UPDATE_DEFINITION)
            .and_then(|mut s| {
                s.execute((
                    id.0,
                    limit.unit(),
                    limit.pad_ns(),
                    limit.overage().as_str(),
                    limit.slot_count().map(u64::cast_signed),
                    limit.timeout_ns(),
                ))
            })
            .and_then(|_| connection.prepare_cached(DELETE_RATES))
            .and_then(|mut s| s.execute([id.0]))
            .map(drop)
            .map_err(|error| self.sqlite(error))
    }
}

const INSERT_RATE: &str = "INSERT INTO rate (limit_id, window_ns, capacity) VALUES (?1, ?2, ?3)";

impl Transaction<'_> {
    fn insert_rates(&mut self, id: LimitId, limit: &Limit) -> Result<(), Error> {
        for rate in limit.rates() {
            self.link
                .connection
                .prepare_cached(INSERT_RATE)
                .and_then(|mut s| s.execute((id.0, rate.window_ns(), rate.capacity_units())))
                .map_err(|error| self.sqlite(error))?;
        }
        Ok(())
    }
}

const READ_DEFINITION: &str =
    "SELECT limit_id, key, unit, pad_ns, overage, slots, timeout_ns FROM limit_definition
    WHERE key = ?1";

impl Transaction<'_> {
    fn read_definition(&self, key: &str) -> Result<Option<Known>, Error> {
        self.link
            .connection
            .prepare_cached(READ_DEFINITION)
            .and_then(|mut s| s.query_row([key], Head::read).optional())
            .map_err(|error| self.sqlite(error))?
            .map(|head| self.complete(&head))
            .transpose()
    }
}

const READ_ALL_DEFINITIONS: &str =
    "SELECT limit_id, key, unit, pad_ns, overage, slots, timeout_ns FROM limit_definition
    ORDER BY key";

impl Transaction<'_> {
    /// All definitions, by key.
    pub(super) fn read_all_definitions(&self) -> Result<Vec<Known>, Error> {
        let heads: Vec<Head> = self
            .link
            .connection
            .prepare_cached(READ_ALL_DEFINITIONS)
            .and_then(|mut s| s.query_map([], Head::read)?.collect())
            .map_err(|error| self.sqlite(error))?;
        heads.iter().map(|head| self.complete(head)).collect()
    }
}

const READ_DEFINITION_FROM: &str =
    "SELECT limit_id, key, unit, pad_ns, overage, slots, timeout_ns FROM limit_definition
    WHERE limit_id >= ?1 ORDER BY limit_id LIMIT 1";

impl Transaction<'_> {
    /// The definition with the smallest id from this one on.
    pub(super) fn read_definition_from(&self, id: LimitId) -> Result<Option<Known>, Error> {
        self.link
            .connection
            .prepare_cached(READ_DEFINITION_FROM)
            .and_then(|mut s| s.query_row([id.0], Head::read).optional())
            .map_err(|error| self.sqlite(error))?
            .map(|head| self.complete(&head))
            .transpose()
    }
}

/// A row of `limit_definition`.
struct Head {
    id: LimitId,
    key: String,
    unit: Option<String>,
    pad_ns: i64,
    overage: String,
    slots: Option<i64>,
    timeout_ns: Option<i64>,
}

impl Head {
    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: LimitId(row.get(0)?),
            key: row.get(1)?,
            unit: row.get(2)?,
            pad_ns: row.get(3)?,
            overage: row.get(4)?,
            slots: row.get(5)?,
            timeout_ns: row.get(6)?,
        })
    }
}

impl Head {
    /// Checks everything as if a caller had given it: the file may have been edited.
    fn build(&self, rates: &[(i64, i64)]) -> Result<Limit, String> {
        let negative = || "a number is negative".to_owned();
        let nanos = |ns: i64| u64::try_from(ns).map(Duration::from_nanos);
        let mut builder = match self.slots {
            Some(count) => {
                let count = u64::try_from(count).map_err(|_| negative())?;
                Limit::slots(self.key.as_str(), count)
            }
            None => Limit::new(self.key.as_str()),
        };
        for (capacity, window_ns) in rates {
            let capacity = u64::try_from(*capacity).map_err(|_| negative())?;
            let window = nanos(*window_ns).map_err(|_| negative())?;
            builder = builder.rate(capacity, window);
        }
        let overage = Overage::parse(&self.overage)
            .ok_or_else(|| format!("there is no overage `{}`", self.overage))?;
        builder = builder
            .pad(nanos(self.pad_ns).map_err(|_| negative())?)
            .overage(overage);
        if let Some(unit) = &self.unit {
            builder = builder.unit(unit);
        }
        if let Some(timeout_ns) = self.timeout_ns {
            builder = builder.timeout(nanos(timeout_ns).map_err(|_| negative())?);
        }
        builder.build().map_err(|error| error.to_string())
    }
}

const READ_RATES: &str =
    "SELECT capacity, window_ns FROM rate WHERE limit_id = ?1 ORDER BY window_ns";

impl Transaction<'_> {
    /// Adds the rates.
    fn complete(&self, head: &Head) -> Result<Known, Error> {
        let rates: Vec<(i64, i64)> = self
            .link
            .connection
            .prepare_cached(READ_RATES)
            .and_then(|mut s| {
                s.query_map([head.id.0], |row| Ok((row.get(0)?, row.get(1)?)))?
                    .collect()
            })
            .map_err(|error| self.sqlite(error))?;
        let limit = head.build(&rates).map_err(|what| {
            self.place
                .damaged(format!("the definition of `{}` is wrong: {what}", head.key))
        })?;
        Ok(Known { id: head.id, limit })
    }
}
