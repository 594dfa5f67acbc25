//! What has happened between two looks.

#[cfg(test)]
mod tests;

use quotalite::{BreakerState, PermitState, Timestamp};
use serde::Serialize;

use super::patterns::share_a_key;
use super::snapshot::{Booking, Counted, MOST, OfLimit, Permit, Snapshot, Waiter};
use crate::ledger::{Taken, list, taken};
use crate::show::{counted, number};

/// Something that has happened. What does not apply is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Event {
    at: String,
    #[serde(skip)]
    pub(super) time: String,
    #[serde(rename = "event")]
    what: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    amount: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    charges: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
    #[serde(skip)]
    until_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fence: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    takes: Vec<Taken>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    definition: Option<String>,
}

/// An instant for programs, and for people.
type Wall<'w> = dyn Fn(Timestamp) -> (String, String) + 'w;

impl Event {
    fn of(event: &'static str, key: impl Into<Option<String>>) -> Self {
        Self {
            what: event,
            key: key.into(),
            ..Self::default()
        }
    }

    /// What is said behind the key.
    pub(super) fn text(&self) -> String {
        let amount = self.amount.map(number).unwrap_or_default();
        let until = self.until_time.as_deref().unwrap_or_default();
        let pid = self.pid.map(|pid| format!(" by process {pid}"));
        let id = self.id.as_ref().map(|id| format!(", id {id}"));
        let takes = list(&self.takes);
        let (pid, id) = (pid.unwrap_or_default(), id.unwrap_or_default());
        let event = self.what.replace('_', " ");
        match self.what {
            "charged" => {
                let charges = counted(self.charges.unwrap_or_default(), "charge");
                format!("{event} {amount} in {charges}")
            }
            "booked" => format!("{event} {amount} for {until}{pid}"),
            "paused" => format!("{event} until {until}"),
            "breaker" => {
                let state = self.state.as_deref().unwrap_or_default();
                let reason = self.reason.as_ref().map(|reason| format!(": {reason}"));
                format!("{event} {state}{}", reason.unwrap_or_default())
            }
            "defined" | "changed" => format!(
                "{event}: {}",
                self.definition.as_deref().unwrap_or_default()
            ),
            "owner_died" => format!("{event}{pid}").replace(" by", ":"),
            "too_many_keys" => {
                let most = number(MOST as u64);
                format!("{event}: more than {most} match, and new ones are not watched")
            }
            _ if takes.is_empty() => format!("{event}{pid}{id}"),
            _ => format!("{event}: {takes}{pid}{id}"),
        }
    }
}

/// What has happened since a look, in an order that makes sense: definitions, then limits, then those who use them.
pub(super) fn difference(former: &Snapshot, present: &Snapshot, wall: &Wall<'_>) -> Vec<Event> {
    let mut events = definitions(former, present);
    let resets = present.resets.difference(&former.resets);
    events.extend(resets.map(|(_, key)| Event::of("reset", key.clone())));
    if present.has_too_many && !former.has_too_many {
        events.push(Event::of("too_many_keys", None));
    }
    let new = OfLimit::default();
    for (key, limit) in &present.limits {
        match former.limits.get(key) {
            Some(before) => events.extend(of_limit(key, before, limit, wall)),
            // It may have been there for long, and is watched from now on.
            None if former.has_too_many => {}
            None => events.extend(of_limit(key, &new, limit, wall)),
        }
    }
    events.extend(begun_anew(former, present));
    events.extend(bookings(former, present, wall));
    events.extend(permits(former, present));
    events.extend(waiting(former, present));
    events.extend(present.dead.difference(&former.dead).map(|pid| Event {
        pid: Some(*pid),
        ..Event::of("owner_died", None)
    }));
    for event in &mut events {
        (event.at, event.time) = wall(present.now);
    }
    events
}

/// Each as often as there are more of it than before.
fn more_of<'c, T: Ord>(
    present: &'c Counted<T>,
    former: &Counted<T>,
) -> impl Iterator<Item = &'c T> {
    present.iter().flat_map(move |(one, count)| {
        let before = former.get(one).copied().unwrap_or_default();
        (before..*count).map(move |_| one)
    })
}

fn definitions(former: &Snapshot, present: &Snapshot) -> Vec<Event> {
    let defined = present.definitions.iter().filter_map(|(key, definition)| {
        let event = match former.definitions.get(key) {
            None => "defined",
            Some(before) if before != definition => "changed",
            Some(_) => return None,
        };
        Some(Event {
            definition: Some(definition.clone()),
            ..Event::of(event, key.clone())
        })
    });
    let gone = former.definitions.keys();
    let gone = gone.filter(|key| !present.definitions.contains_key(*key));
    defined
        .chain(gone.map(|key| Event::of("removed", key.clone())))
        .collect()
}

/// Keys that were full, and of which nothing is left where a pattern still makes them: they are as nobody has used them.
fn begun_anew(former: &Snapshot, present: &Snapshot) -> Vec<Event> {
    let gone = former.limits.iter();
    let gone = gone.filter(|(key, limit)| {
        let is_made = |pattern: &String| pattern != *key && share_a_key(pattern, key);
        limit.is_full == Some(true)
            && !present.limits.contains_key(*key)
            && present.definitions.keys().any(is_made)
    });
    gone.map(|(key, _)| Event::of("free", key.clone()))
        .collect()
}

fn of_limit(key: &str, before: &OfLimit, limit: &OfLimit, wall: &Wall<'_>) -> Vec<Event> {
    let mut events = Vec::new();
    let event = |event| Event::of(event, key.to_owned());
    let (mut charges, mut amount) = (0, 0);
    for (at, (rows, charged)) in &limit.charged {
        let (rows_before, charged_before) = before.charged.get(at).copied().unwrap_or_default();
        charges += rows.saturating_sub(rows_before);
        amount += charged.saturating_sub(charged_before);
    }
    if amount > 0 {
        events.push(Event {
            amount: Some(amount),
            // What was merged with a row that was there is one charge more.
            charges: Some(charges.max(1)),
            ..event("charged")
        });
    }
    match (before.paused_until, limit.paused_until) {
        (before, Some(until)) if before != Some(until) => {
            let (until, until_time) = wall(until);
            events.push(Event {
                until: Some(until),
                until_time: Some(until_time),
                ..event("paused")
            });
        }
        (Some(_), None) => events.push(event("resumed")),
        _ => {}
    }
    let state = |of: &OfLimit| of.breaker.as_ref().map(|(state, _)| *state);
    if let Some((now, reason)) = &limit.breaker
        && state(before).unwrap_or(BreakerState::Closed) != *now
    {
        events.push(Event {
            state: Some(now.to_string()),
            reason: reason.clone(),
            ..event("breaker")
        });
    }
    match (before.is_full, limit.is_full) {
        (Some(true), Some(false)) => events.push(event("free")),
        (None | Some(false), Some(true)) => events.push(event("full")),
        _ => {}
    }
    events
}

fn bookings(former: &Snapshot, present: &Snapshot, wall: &Wall<'_>) -> Vec<Event> {
    let told = |event: &'static str, (key, at, amount, pid): &Booking| {
        let (until, until_time) = wall(*at);
        Event {
            amount: Some(*amount),
            pid: Some(*pid),
            until: Some(until),
            until_time: Some(until_time),
            ..Event::of(event, key.clone())
        }
    };
    let new = more_of(&present.bookings, &former.bookings);
    // What has come to its instant is charged by now, and no news.
    let gone = more_of(&former.bookings, &present.bookings).filter(|(_, at, ..)| *at > present.now);
    new.map(|booking| told("booked", booking))
        .chain(gone.map(|booking| told("booking_gone", booking)))
        .collect()
}

fn waiting(former: &Snapshot, present: &Snapshot) -> Vec<Event> {
    let told = |event: &'static str, (_, pid, takes): &Waiter| Event {
        pid: *pid,
        takes: taken(takes.clone()),
        ..Event::of(event, None)
    };
    let came = more_of(&present.waiting, &former.waiting);
    let left = more_of(&former.waiting, &present.waiting);
    came.map(|waiter| told("waits", waiter))
        .chain(left.map(|waiter| told("waits_no_more", waiter)))
        .collect()
}

fn permits(former: &Snapshot, present: &Snapshot) -> Vec<Event> {
    let told = |event: &'static str, permit: &Permit| Event {
        id: permit.id.clone(),
        pid: permit.pid,
        fence: Some(permit.fence.to_string()),
        takes: taken(permit.takes.clone()),
        ..Event::of(event, None)
    };
    // What is booked is told as such, and granted when its instant has come.
    let is_granted =
        |permit: &Permit| permit.state.is_open() && permit.state != PermitState::Booked;
    let changed = present.permits.iter().filter_map(|(name, permit)| {
        let before = former.permits.get(name);
        let was_granted = before.filter(|before| is_granted(before));
        match (was_granted, is_granted(permit)) {
            (None, true) => Some(told("granted", permit)),
            // What has ended tells no more what it held.
            (Some(before), false) => Some(told(permit.state.as_str(), before)),
            (None, false) if before.is_none() && permit.state != PermitState::Booked => {
                Some(told(permit.state.as_str(), permit))
            }
            // Somebody else has it, or it is taken up again.
            (Some(before), true)
                if (before.state, before.fence, before.pid)
                    != (permit.state, permit.fence, permit.pid) =>
            {
                Some(told(permit.state.as_str(), permit))
            }
            _ => None,
        }
    });
    let gone = former
        .permits
        .iter()
        .filter(|(name, permit)| is_granted(permit) && !present.permits.contains_key(*name));
    changed
        .chain(gone.map(|(_, permit)| told("released", permit)))
        .collect()
}
