//! A request that has been checked, as data for a store.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::error::{Error, RequestError};
use crate::request::{Ask, MAX_ID_BYTES, MAX_TAKES, Request};
use crate::store::{Block, Handed};

/// A checked request and how long its caller is ready to wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan<'a> {
    ask: Ask<'a>,
    pub(crate) patience: Patience,
    /// What its caller wants beyond it, to hand it out from memory.
    pub(crate) block: Option<BlockAsk<'a>>,
}

/// A block that is to be taken if it fits now, together with what is asked for at once, which is part of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockAsk<'a> {
    /// How much at most.
    pub(crate) size: u64,
    pub(crate) lifetime_ns: i64,
    /// The one before it, which ends with this request, whatever comes of it.
    pub(crate) former: Option<Handed<'a>>,
}

/// Whether a request may be admitted later than now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Now or not at all.
    Now,
    /// Its caller stays until it is.
    Wait(Latest),
    /// A place in the calendar is all that its caller wants to know.
    Book(Latest),
}

impl Patience {
    pub(crate) const fn waits(self) -> bool {
        matches!(self, Self::Wait(_))
    }

    pub(crate) const fn books(self) -> bool {
        matches!(self, Self::Book(_))
    }

    pub(crate) const fn latest(self) -> Option<Latest> {
        match self {
            Self::Now => None,
            Self::Wait(latest) | Self::Book(latest) => Some(latest),
        }
    }
}

/// How late a request may be admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Latest {
    /// At this reading of the clock (time since boot) at the latest.
    UntilElapsed(Duration),
    /// At this instant at the latest.
    Until(Timestamp),
    /// Whenever its turn comes.
    Forever,
}

/// A plan that outlives what its caller has asked with.
#[derive(Clone, Debug)]
pub(crate) struct OwnedPlan {
    request: Request,
    patience: Patience,
    block: Option<OwnedBlockAsk>,
}

#[derive(Clone, Debug)]
struct OwnedBlockAsk {
    size: u64,
    lifetime_ns: i64,
    former: Option<(Block, u64)>,
}

impl OwnedBlockAsk {
    fn of(ask: &BlockAsk<'_>) -> Self {
        Self {
            size: ask.size,
            lifetime_ns: ask.lifetime_ns,
            former: ask.former.map(|former| (former.block.clone(), former.used)),
        }
    }

    fn as_ask(&self) -> BlockAsk<'_> {
        let former = self.former.as_ref();
        BlockAsk {
            size: self.size,
            lifetime_ns: self.lifetime_ns,
            former: former.map(|(block, used)| Handed { block, used: *used }),
        }
    }
}

impl OwnedPlan {
    pub(crate) fn as_plan(&self) -> Plan<'_> {
        Plan {
            ask: (&self.request).into(),
            patience: self.patience,
            block: self.block.as_ref().map(OwnedBlockAsk::as_ask),
        }
    }
}

impl<'a> Plan<'a> {
    pub(crate) fn new(ask: Ask<'a>, patience: Patience) -> Result<Self, Error> {
        if ask.len() == 0 {
            return Err(RequestError::Empty.into());
        }
        if ask.len() > MAX_TAKES {
            return Err(RequestError::TooManyTakes { count: ask.len() }.into());
        }
        if let Some(id) = ask.id()
            && (id.is_empty() || id.len() > MAX_ID_BYTES || id.contains(char::is_control))
        {
            return Err(RequestError::Id { bytes: id.len() }.into());
        }
        for (position, (key, amount)) in ask.iter().enumerate() {
            if amount == 0 {
                return Err(RequestError::ZeroAmount {
                    key: key.to_owned(),
                }
                .into());
            }
            if ask.iter().take(position).any(|(earlier, _)| earlier == key) {
                return Err(RequestError::KeyTwice {
                    key: key.to_owned(),
                }
                .into());
            }
        }
        Ok(Self {
            ask,
            patience,
            block: None,
        })
    }

    /// The same for a caller that hands out from memory.
    pub(crate) const fn of_block(self, block: BlockAsk<'a>) -> Self {
        Self {
            block: Some(block),
            ..self
        }
    }

    pub(crate) fn to_request(self) -> Request {
        self.ask.to_request()
    }

    pub(crate) fn owned(self) -> OwnedPlan {
        OwnedPlan {
            request: self.to_request(),
            patience: self.patience,
            block: self.block.as_ref().map(OwnedBlockAsk::of),
        }
    }

    pub(crate) const fn id(&self) -> Option<&'a str> {
        self.ask.id()
    }

    /// What is asked for, in a form that is the same for the same request: an amount and a key a line, by
    /// key. No key has line breaks.
    pub(crate) fn print(&self) -> String {
        let mut takes: Vec<(&str, u64)> = self.takes().collect();
        takes.sort_unstable();
        print_takes(takes)
    }

    /// The keys and their amounts: 1 to 32 of them, no key twice, no amount zero.
    pub(crate) fn takes(&self) -> impl Iterator<Item = (&'a str, u64)> + use<'a> {
        self.ask.iter()
    }
}

/// Amounts and keys, one a line.
pub(crate) fn print_takes<'a>(takes: impl IntoIterator<Item = (&'a str, u64)>) -> String {
    let lines: Vec<String> = takes
        .into_iter()
        .map(|(key, amount)| format!("{amount} {key}"))
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_request_is_refused_before_any_store_sees_it() {
        let many = (0..33).fold(Request::new(), |ask, n| ask.take(n.to_string(), 1));
        let cases = [
            (Request::new(), "a request names at least one limit"),
            (many, "a request names at most 32 limits, this one names 33"),
            (Request::new().take("a", 0), "the amount of `a` is zero"),
            (
                Request::new().take("a", 1).take("b", 1).take("a", 2),
                "the limit `a` is named twice",
            ),
        ];
        for (request, message) in cases {
            let error = Plan::new((&request).into(), Patience::Now).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
        let most = (0..32).fold(Request::new(), |ask, n| ask.take(n.to_string(), 1));
        assert!(Plan::new((&most).into(), Patience::Now).is_ok());
    }
}
