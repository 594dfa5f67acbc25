//! What becomes of the definitions of limits while they are in use.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::calendar::LimitId;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::limit::{Kind, Limit, Pattern};

/// What to do when a limit is already defined, differently.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnConflict {
    /// Fail with [`Error::Conflict`], which shows both definitions.
    #[default]
    Fail,
    /// Keep what is stored, whatever that is: [`Definition::Adopted`] tells.
    Adopt,
    /// Put the new definition in its place, for all processes, from the next decision on. Charges and bookings
    /// stay. A window that is new or longer counts what the ledger still holds; what is missing in a bucket stays
    /// missing. Where more is in use than the new definition allows, nothing is taken back, and nothing is
    /// admitted until it fits.
    ///
    /// Rates cannot become slots in this way, nor either of them a bucket, or the other way round
    /// ([`Error::OtherKind`]), and a [resolution](crate::LimitBuilder::resolution) cannot become finer
    /// ([`Error::Finer`]): [remove](crate::Limiter::remove) the limit first.
    Replace,
}

/// What came of a definition.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Definition {
    /// The limit was not there and now is.
    Created,
    /// The limit was there, defined the same.
    Unchanged,
    /// The limit was there, and this stored definition stays in force ([`OnConflict::Adopt`]).
    Adopted(Limit),
    /// The limit was there, and this former definition is gone ([`OnConflict::Replace`]).
    Replaced(Limit),
}

/// What would be lost if a limit were removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Use {
    /// How many permits hold slots of it.
    pub slots: u64,
    /// How many open permits that have an id have charged it.
    pub permits: u64,
    /// How many charges are booked ahead.
    pub bookings: u64,
    /// How many blocks are open.
    pub blocks: u64,
    /// How many callers wait in line for it.
    pub waiting: u64,
}

impl Use {
    pub(crate) const fn any(&self) -> bool {
        self.slots > 0
            || self.permits > 0
            || self.bookings > 0
            || self.blocks > 0
            || self.waiting > 0
    }
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            (self.slots, "holding slots"),
            (self.permits, "open permits"),
            (self.bookings, "bookings"),
            (self.blocks, "open blocks"),
            (self.waiting, "in line"),
        ];
        let mut used = parts.iter().filter(|(count, _)| *count > 0);
        if let Some((count, what)) = used.next() {
            write!(f, "{what}: {count}")?;
        }
        used.try_for_each(|(count, what)| write!(f, ", {what}: {count}"))
    }
}

/// A limit as a store has found it.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) id: LimitId,
    pub(crate) limit: Limit,
    /// The pattern that it is made by, if one is.
    pub(crate) pattern: Option<LimitId>,
    /// When its definition was last changed.
    pub(crate) changed: Timestamp,
    /// Whether that was to less than was in use, as far as anybody looked.
    pub(crate) was_lowered: bool,
}

impl Known {
    /// As it was first defined.
    #[cfg(test)]
    pub(crate) fn of(id: LimitId, limit: Limit) -> Self {
        Self {
            id,
            limit,
            pattern: None,
            changed: Timestamp::from_nanos(0),
            was_lowered: false,
        }
    }

    /// What names the definition that counts for it, for as long as that is not removed.
    pub(crate) fn definition_id(&self) -> LimitId {
        self.pattern.unwrap_or(self.id)
    }

    /// What this pattern makes of a key, whose ledger has this number.
    pub(crate) fn applied_to(&self, key: &str, id: LimitId) -> Self {
        Self {
            id,
            limit: self.limit.applied_to(key),
            pattern: Some(self.id),
            changed: self.changed,
            was_lowered: self.was_lowered,
        }
    }
}

/// The most specific of all patterns that match a key.
pub(crate) fn most_specific<'p>(patterns: &'p [Arc<Known>], key: &str) -> Option<&'p Arc<Known>> {
    let pattern = |known: &'p Arc<Known>| Pattern(known.limit.key());
    let matching = patterns.iter().filter(|known| pattern(known).matches(key));
    matching.max_by(|a, b| pattern(a).cmp_specific(pattern(b)))
}

/// Refuses to make a limit of another kind: what was taken of the one says nothing of the other. Refuses also to
/// make the resolution finer: what is merged would not count for as long as each part of it has to.
pub(crate) fn check_replaceable(stored: &Limit, given: &Limit, place: &Path) -> Result<(), Error> {
    let name = |limit: &Limit| match (limit.is_pattern(), limit.kind()) {
        (false, kind) => kind.as_str(),
        (true, Kind::Rates(_)) => "a pattern of rates",
        (true, Kind::Slots(_)) => "a pattern of slots",
        (true, Kind::Breaker(_)) => "a pattern of breakers",
        (true, Kind::Bucket(_)) => "a pattern of buckets",
    };
    if name(stored) != name(given) {
        return Err(Error::OtherKind {
            key: stored.key().to_owned(),
            stored: name(stored),
            given: name(given),
            file: place.to_owned(),
        });
    }
    check_resolution(stored, given, place)
}

/// Refuses to let a definition count with a finer resolution than another, for what was charged by that.
pub(crate) fn check_resolution(former: &Limit, given: &Limit, place: &Path) -> Result<(), Error> {
    if given.resolution_ns() >= former.resolution_ns() {
        return Ok(());
    }
    Err(Error::Finer {
        stored: Box::new(former.clone()),
        given: Box::new(given.clone()),
        file: place.to_owned(),
    })
}

/// Who changes limits.
#[derive(Clone, Debug)]
pub(crate) struct Author {
    pub(crate) pid: u32,
    pub(crate) program: String,
}

impl Author {
    pub(crate) fn this_process() -> Self {
        let program = std::env::current_exe().ok();
        let name = program.as_deref().and_then(Path::file_name);
        Self {
            pid: std::process::id(),
            // It is shown on terminals.
            program: name.map_or_else(String::new, |name| {
                name.to_string_lossy().replace(char::is_control, "?")
            }),
        }
    }
}

/// What was done to a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// It was defined for the first time.
    Created,
    /// Another definition was put in the place of the one it had.
    Replaced,
    /// It was removed.
    Removed,
    /// What was charged to it was forgotten, and the definition stays.
    Reset,
}

impl Action {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Replaced => "replaced",
            Self::Removed => "removed",
            Self::Reset => "reset",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Created, Self::Replaced, Self::Removed, Self::Reset]
            .into_iter()
            .find(|action| action.as_str() == text)
    }
}

/// One change of a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitChange {
    pub(crate) at: Timestamp,
    pub(crate) action: Action,
    pub(crate) pid: u32,
    pub(crate) program: String,
    pub(crate) definition: String,
}

impl LimitChange {
    /// How many changes of one limit are kept.
    pub const KEPT: usize = 16;

    /// When it was changed.
    #[must_use]
    pub const fn at(&self) -> Timestamp {
        self.at
    }

    /// What was done.
    #[must_use]
    pub const fn action(&self) -> Action {
        self.action
    }

    /// The process that did it.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// The name of that process's program; empty if the system does not tell.
    #[must_use]
    pub fn program(&self) -> &str {
        &self.program
    }

    /// The definition that came into force, without its key; the former one, if the limit was removed.
    #[must_use]
    pub fn definition(&self) -> &str {
        &self.definition
    }
}
