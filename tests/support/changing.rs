//! The steps of a history that make definitions, change them and remove them.

use quotalite::{Definition, Limit, OnConflict, Rate, Window};

use super::{Check, Player, same};
use crate::history::{KEYS, NAMES, Op, POOLS, SEEN, is_of_slots};
use crate::shapes::{Shape, Turn};
use crate::subject::{Defined, Removed, ns};

impl Player<'_> {
    pub(super) fn step_changing(&mut self, op: &Op) -> Check {
        match op {
            Op::Define {
                slot,
                line,
                shape,
                conflict,
            } => self.define(*slot, *line, shape, *conflict),
            Op::DefineAgain {
                slot,
                line,
                conflict,
            } => match self.model.definitions.get(KEYS[line % KEYS.len()]) {
                Some(stored) => self.define_as(*slot, &stored.limit.clone(), *conflict),
                None => Ok(()),
            },
            Op::DefinePool {
                slot,
                pool,
                shape,
                conflict,
            } => self.define_as(*slot, &shape.limit(POOLS[pool % POOLS.len()]), *conflict),
            Op::DefineName {
                slot,
                name,
                shape,
                pool,
                conflict,
            } => {
                let name = NAMES[*name];
                let limit = if is_of_slots(name) {
                    pool.limit(name)
                } else {
                    shape.named(name)
                };
                self.define_as(*slot, &limit, *conflict)
            }
            Op::ChangeOverage {
                slot,
                line,
                overage,
            } => match self.model.definitions.get(KEYS[line % KEYS.len()]) {
                Some(stored) => {
                    let limit = stored.limit.to_builder().overage(*overage);
                    let limit = limit.build().expect("a limit that can be");
                    self.define_as(*slot, &limit, OnConflict::Replace)
                }
                None => Ok(()),
            },
            Op::Update { slot, name, turn } => {
                let limit = match self.definition(*name) {
                    Some(limit) => turn.of(&limit),
                    None => Limit::new("nobody")
                        .per_second(1)
                        .build()
                        .expect("a limit that can be"),
                };
                self.update(*slot, &limit)
            }
            Op::Remove {
                slot,
                name,
                is_forced,
            } => {
                let limit = self.definition(*name);
                let name = limit.as_ref().map_or("nobody", Limit::key);
                self.remove(*slot, name, *is_forced)
            }
            op => Err(format!("nobody plays {op:?}")),
        }
    }

    /// One of all definitions, or none.
    fn definition(&self, number: usize) -> Option<Limit> {
        let stored = self.model.definitions.values();
        let limits = stored.map(|stored| &stored.limit);
        let limits: Vec<&Limit> = limits.filter(|limit| limit.key() != SEEN).collect();
        let limit = limits.get(number % (limits.len() + 1))?;
        Some((*limit).clone())
    }

    pub(super) fn define(
        &mut self,
        slot: usize,
        line: usize,
        shape: &Shape,
        conflict: OnConflict,
    ) -> Check {
        let key = KEYS[line % KEYS.len()];
        let limit = match self.model.lines.get(key) {
            None => shape.limit(key, i64::MAX),
            Some(line) if line.has_calendar() => {
                let turn = Turn {
                    quarters: shape.rates[0].1 * 2,
                    refill_quarters: 4,
                };
                turn.of(&line.limit)
            }
            Some(line) => {
                let windows = line.limit.rates().iter().map(Rate::window);
                let longest = windows.filter_map(Window::rolling).max();
                let longer = line.limit.pad() + line.limit.resolution().unwrap_or_default();
                let longest_ns = longest.map_or(i64::MAX, |longest| ns(longest + longer));
                shape.alike(&line.limit).limit(key, longest_ns)
            }
        };
        self.define_as(slot, &limit, conflict)
    }

    pub(super) fn define_as(&mut self, slot: usize, limit: &Limit, conflict: OnConflict) -> Check {
        let slot = self.open(slot);
        let defined = self.subject.define(slot, limit, conflict);
        let must_be = self.model.define(limit, conflict);
        self.check_defined(slot, &must_be, &defined)
    }

    fn update(&mut self, slot: usize, limit: &Limit) -> Check {
        let slot = self.open(slot);
        let updated = self.subject.update(slot, limit);
        let must_be = self.model.update(limit);
        self.check_defined(slot, &must_be, &updated)
    }

    fn check_defined(&mut self, slot: usize, must_be: &Defined, defined: &Defined) -> Check {
        if let Defined::Done(Definition::Created | Definition::Replaced(_)) = must_be {
            self.written_ns = self.model.now_ns;
        }
        same(must_be, defined)?;
        self.check_limits(slot)
    }

    fn check_limits(&mut self, slot: usize) -> Check {
        match self.subject.limits(slot) {
            Some(limits) => same(&self.model.limits(), &limits),
            None => Ok(()),
        }
    }

    fn remove(&mut self, slot: usize, name: &str, is_forced: bool) -> Check {
        let slot = self.open(slot);
        let removed = self.subject.remove(slot, name, is_forced);
        let keys = self.model.keys_of(name);
        let must_be = self.model.remove(name, is_forced);
        if let Removed::Done(_) = must_be {
            self.written_ns = self.model.now_ns;
            for key in keys {
                self.witness.forget_limit(key);
            }
        }
        same(&must_be, &removed)?;
        self.check_limits(slot)
    }
}
