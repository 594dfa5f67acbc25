//! Many permits in one transaction.

use crate::error::{Error, RequestError};
use crate::permit::{Permit, PermitId, State, tell_settled};
use crate::request::MAX_BATCH;
use crate::settlement::{Settled, Used};
use crate::store::{Change, Store, Which};

/// A permit, as it is at hand or by its id: for calls that deal with many.
#[derive(Clone, Copy, Debug)]
pub struct Handle<'a>(Named<'a>);

#[derive(Clone, Copy, Debug)]
enum Named<'a> {
    Permit(&'a Permit),
    Id(&'a str),
}

impl<'a> From<&'a Permit> for Handle<'a> {
    fn from(permit: &'a Permit) -> Self {
        Self(Named::Permit(permit))
    }
}

impl<'a> From<&'a PermitId> for Handle<'a> {
    fn from(id: &'a PermitId) -> Self {
        Self(Named::Id(id.as_ref()))
    }
}

impl<'a> From<&'a String> for Handle<'a> {
    fn from(id: &'a String) -> Self {
        Self(Named::Id(id))
    }
}

impl<'a> From<&'a str> for Handle<'a> {
    fn from(id: &'a str) -> Self {
        Self(Named::Id(id))
    }
}

impl<'a> Handle<'a> {
    const fn permit(&self) -> Option<&'a Permit> {
        match self.0 {
            Named::Permit(permit) => Some(permit),
            Named::Id(_) => None,
        }
    }

    /// The permit, or its id.
    pub(crate) const fn permit_or_id(self) -> Result<&'a Permit, &'a str> {
        match self.0 {
            Named::Permit(permit) => Ok(permit),
            Named::Id(id) => Err(id),
        }
    }
}

/// Refuses more than one transaction should do.
pub(crate) fn check_length(count: usize) -> Result<(), RequestError> {
    if count > MAX_BATCH {
        return Err(RequestError::BatchLength { count });
    }
    Ok(())
}

/// Settles permits, or cancels those of which nothing was used, in their order.
pub(crate) fn change_all(
    store: &dyn Store,
    changes: &[(Handle<'_>, Option<Used>)],
) -> Result<Vec<Result<Settled, Error>>, Error> {
    check_length(changes.len())?;
    let address = |permit: &Permit| std::ptr::from_ref(permit).addr();
    let mut permits: Vec<&Permit> = changes
        .iter()
        .filter_map(|(handle, _)| handle.permit())
        .collect();
    // Each once, and in an order that is the same for everybody who locks them.
    permits.sort_by_key(|permit| address(permit));
    permits.dedup_by_key(|permit| address(permit));
    let mut locked: Vec<_> = permits.iter().map(|permit| permit.lock()).collect();
    let place = |handle: &Handle<'_>| {
        let address_of_it = address(handle.permit()?);
        permits
            .binary_search_by_key(&address_of_it, |permit| address(permit))
            .ok()
    };
    let mut ended: Vec<Option<Settled>> = locked.iter().map(|inner| inner.told()).collect();
    let mut todo = Vec::with_capacity(changes.len());
    // What is told without asking the store.
    let mut told = Vec::with_capacity(changes.len());
    for (handle, used) in changes {
        let used = used.as_ref();
        told.push(match (handle.0, place(handle)) {
            (Named::Permit(permit), Some(place)) => {
                let claim = &locked[place].claim;
                let wrong = used.and_then(|used| used.check(&claim.rows).err());
                if !permit.is_of(store) {
                    Some(Err(RequestError::OtherLimiter.into()))
                } else if let Some(ended) = &ended[place] {
                    Some(Ok(ended.clone()))
                } else if let Some(wrong) = wrong {
                    Some(Err(wrong))
                } else {
                    ended[place] = Some(Settled::Before);
                    let which = Which::Claim(claim);
                    todo.push(Change { which, used });
                    None
                }
            }
            (Named::Id(id), _) => {
                let which = Which::Id(id);
                todo.push(Change { which, used });
                None
            }
            (Named::Permit(_), None) => Some(Ok(Settled::Before)),
        });
    }
    let mut answers = store.change_all(&todo)?.into_iter();
    drop(todo);
    let mut results = Vec::with_capacity(changes.len());
    for ((handle, _), told) in changes.iter().zip(told) {
        let Some(result) = told.or_else(|| {
            let answer = answers.next()?;
            // Only a store can say that a permit has ended.
            if let (Ok(_), Some(place)) = (&answer, place(handle)) {
                locked[place].state = State::Closed;
            }
            Some(answer)
        }) else {
            continue;
        };
        if let Ok(settled) = &result {
            tell_settled(settled);
        }
        results.push(result);
    }
    Ok(results)
}
