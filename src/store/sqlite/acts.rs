//! What several callers can do in one transaction.

use super::acquire::{Attempt, attempt};
use super::dropped::Dropped;
use super::session::Session;
use super::transaction::Transaction;
use crate::error::Error;
use crate::plan::{OwnedPlan, Plan};
use crate::settlement::{Settled, Used};
use crate::store::{Change, Claim, Outcome, TicketId, Which};

/// One of the things that are done in a transaction.
pub(super) trait Act: std::fmt::Debug + Send + Sync {
    type Answer: std::fmt::Debug + Send;

    fn act(
        &self,
        transaction: &mut Transaction<'_>,
        session: &Session,
    ) -> Result<Self::Answer, Error>;
}

/// What a caller has at hand, and can leave to another thread.
pub(super) trait Borrowed: Act {
    type Owned: Act<Answer = Self::Answer> + 'static;

    fn owned(&self) -> Self::Owned;
}

/// Does it, and gives the answer, also if that is an error of its own. Fails if the whole transaction has failed:
/// because of the file, or because something was changed before the error.
pub(super) fn tried<A: Act>(
    act: &A,
    transaction: &mut Transaction<'_>,
    session: &Session,
) -> Result<Result<A::Answer, Error>, Error> {
    let before = transaction.changes();
    match act.act(transaction, session) {
        Err(error) if !error.is_of_one() || transaction.changes() != before => Err(error),
        answer => Ok(answer),
    }
}

/// An attempt at an acquisition, with the ticket of one that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acquisition<'a> {
    pub(super) plan: &'a Plan<'a>,
    pub(super) ticket: Option<TicketId>,
}

#[derive(Debug)]
pub(super) struct OwnedAcquisition {
    plan: OwnedPlan,
    ticket: Option<TicketId>,
}

impl Act for Acquisition<'_> {
    type Answer = Attempt;

    fn act(&self, transaction: &mut Transaction<'_>, session: &Session) -> Result<Attempt, Error> {
        attempt(transaction, session, self.plan, self.ticket)
    }
}

impl Borrowed for Acquisition<'_> {
    type Owned = OwnedAcquisition;

    fn owned(&self) -> OwnedAcquisition {
        OwnedAcquisition {
            plan: self.plan.owned(),
            ticket: self.ticket,
        }
    }
}

impl Act for OwnedAcquisition {
    type Answer = Attempt;

    fn act(&self, transaction: &mut Transaction<'_>, session: &Session) -> Result<Attempt, Error> {
        attempt(transaction, session, &self.plan.as_plan(), self.ticket)
    }
}

/// What many attempts in one transaction came to.
pub(super) enum All {
    Done(Vec<Result<Outcome, Error>>),
    /// If one of them needs an owner, all of them begin again with one.
    NeedsOwner,
    /// One of them has failed by itself and left changes behind: each is to be undone by itself.
    NeedsCare,
}

/// Attempts many acquisitions, each by itself and in their order.
pub(super) fn attempt_all(
    transaction: &mut Transaction<'_>,
    session: &Session,
    plans: &[Plan<'_>],
    is_careful: bool,
) -> Result<All, Error> {
    let mut outcomes = Vec::with_capacity(plans.len());
    for plan in plans {
        let act = Acquisition { plan, ticket: None };
        let attempted = if is_careful {
            transaction.as_a_whole(|transaction| act.act(transaction, session))
        } else {
            match tried(&act, transaction, session) {
                Err(error) if error.is_of_one() => return Ok(All::NeedsCare),
                attempted => attempted?,
            }
        };
        match attempted {
            Ok(Attempt::Done(outcome)) => outcomes.push(Ok(outcome)),
            Ok(Attempt::NeedsOwner) => return Ok(All::NeedsOwner),
            Err(error) if error.is_of_one() => outcomes.push(Err(error)),
            Err(error) => return Err(error),
        }
    }
    Ok(All::Done(outcomes))
}

#[derive(Debug)]
pub(super) struct OwnedChange {
    which: OwnedWhich,
    used: Option<Used>,
}

#[derive(Debug)]
enum OwnedWhich {
    Claim(Box<Claim>),
    Id(Box<str>),
}

impl Act for Change<'_> {
    type Answer = Settled;

    fn act(&self, transaction: &mut Transaction<'_>, session: &Session) -> Result<Settled, Error> {
        transaction.change(*self, session)
    }
}

impl Borrowed for Change<'_> {
    type Owned = OwnedChange;

    fn owned(&self) -> OwnedChange {
        OwnedChange {
            which: match self.which {
                Which::Claim(claim) => OwnedWhich::Claim(Box::new(claim.clone())),
                Which::Id(id) => OwnedWhich::Id(id.into()),
            },
            used: self.used.cloned(),
        }
    }
}

impl Act for OwnedChange {
    type Answer = Settled;

    fn act(&self, transaction: &mut Transaction<'_>, session: &Session) -> Result<Settled, Error> {
        let change = Change {
            which: match &self.which {
                OwnedWhich::Claim(claim) => Which::Claim(claim),
                OwnedWhich::Id(id) => Which::Id(id),
            },
            used: self.used.as_ref(),
        };
        transaction.change(change, session)
    }
}

impl Act for Dropped {
    type Answer = ();

    fn act(&self, transaction: &mut Transaction<'_>, session: &Session) -> Result<(), Error> {
        transaction.let_go(self, session)
    }
}

impl Borrowed for Dropped {
    type Owned = Self;

    fn owned(&self) -> Self {
        self.clone()
    }
}

/// Stands for what only the thread itself can do.
#[derive(Debug)]
pub(super) struct Alone;

impl Act for Alone {
    type Answer = ();

    fn act(&self, _: &mut Transaction<'_>, _: &Session) -> Result<(), Error> {
        Ok(())
    }
}
