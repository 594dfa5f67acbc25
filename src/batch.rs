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
    let mut closed: Vec<bool> = locked
        .iter()
        .map(|inner| inner.state == State::Closed)
        .collect();
    let mut todo = Vec::with_capacity(changes.len());
    let mut is_too_late = Vec::with_capacity(changes.len());
    for (handle, used) in changes {
        let which = match (place(handle), handle.0) {
            (Some(place), _) if std::mem::replace(&mut closed[place], true) => None,
            (Some(place), _) => Some(Which::Claim(&locked[place].claim)),
            (None, Named::Id(id)) => Some(Which::Id(id)),
            (None, Named::Permit(_)) => None,
        };
        is_too_late.push(which.is_none());
        let used = used.as_ref();
        todo.extend(which.map(|which| Change { which, used }));
    }
    let mut answers = store.change_all(&todo)?.into_iter();
    drop(todo);
    let mut results = Vec::with_capacity(changes.len());
    for ((handle, _), is_too_late) in changes.iter().zip(is_too_late) {
        let result = if is_too_late { None } else { answers.next() };
        let result = result.unwrap_or(Ok(Settled::Before));
        if let Ok(settled) = &result {
            if let Some(place) = place(handle) {
                locked[place].state = State::Closed;
            }
            tell_settled(settled);
        }
        results.push(result);
    }
    Ok(results)
}
