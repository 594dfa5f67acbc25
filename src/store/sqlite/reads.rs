//! What is asked of a file without changing it.

use super::acquire::decide_in_line;
use super::transaction::Transaction;
use crate::decision::{Peek, Verdict};
use crate::error::Error;
use crate::limit::Limit;
use crate::plan::Plan;
use crate::store::{denial, lines};
use crate::usage::Usage;

impl Transaction<'_> {
    /// What is defined under a text, limit or pattern, or what a pattern makes of it.
    pub(super) fn limit_of(&mut self, key: &str) -> Result<Limit, Error> {
        match self.defined(key)? {
            Some(known) => Ok(known.limit),
            None => Ok(self.known(key)?.limit.clone()),
        }
    }

    pub(super) fn all_limits(&self) -> Result<Vec<Limit>, Error> {
        let known = self.read_all_definitions()?;
        Ok(known.into_iter().map(|known| known.limit).collect())
    }

    pub(super) fn peek(&mut self, plan: &Plan<'_>) -> Result<Peek, Error> {
        let known = self.all_known(plan)?;
        let lines = lines(plan, &known, &self.place.database)?;
        let now = self.now();
        match decide_in_line(self, &lines, plan, None, now)?.0 {
            Verdict::Admit(_) => Ok(Peek::Now),
            Verdict::Refuse(refusal) => {
                denial(refusal, &lines, now, &self.place.database).map(Peek::Later)
            }
        }
    }

    pub(super) fn usage(&mut self, key: &str) -> Result<Usage, Error> {
        let known = self.known(key)?;
        let now = self.now();
        let people = self.people(&known)?;
        Usage::read(self, known.id, &known.limit, now).map(|usage| usage.with(people))
    }
}
