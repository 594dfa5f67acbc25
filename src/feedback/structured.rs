//! The fields `RateLimit` and `RateLimit-Policy`, which are [structured](https://www.rfc-editor.org/rfc/rfc9651).
//!
//! A list of strings, from draft 08 on:
//! <https://www.ietf.org/archive/id/draft-ietf-httpapi-ratelimit-headers-10.html>. Before that, policies were a list
//! of integers, and `RateLimit` a dictionary:
//! <https://www.ietf.org/archive/id/draft-ietf-httpapi-ratelimit-headers-07.html>.

use std::time::Duration;

use sfv::{BareItem, Dictionary, Item, List, ListEntry, Parser};

use super::advertised::{Advertised, Counted, Dialect};
use super::time::{MAX_TIME, Origin};

/// How much may be used in which time, without a name: `100;w=60`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Quota {
    pub(super) limit: u64,
    pub(super) window: Option<Duration>,
}

/// One member of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Member {
    Named(Advertised),
    Unnamed(Quota),
}

/// What a dictionary says, of which there is one for all limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Figures {
    pub(super) limit: Option<u64>,
    pub(super) remaining: Option<u64>,
    pub(super) reset: Option<Duration>,
}

/// The members of a list that can be read; nothing if it is no list.
pub(super) fn list(text: &str, origin: Origin) -> Option<Vec<Member>> {
    let list: List = Parser::new(text).parse().ok()?;
    let members = list.iter().filter_map(|entry| match entry {
        ListEntry::Item(item) => member(item, origin),
        ListEntry::InnerList(_) => None,
    });
    Some(members.collect())
}

/// The quotas of a list, in its order.
pub(super) fn quotas(text: &str, origin: Origin) -> Vec<Quota> {
    let members = list(text, origin).unwrap_or_default().into_iter();
    let quotas = members.filter_map(|member| match member {
        Member::Unnamed(quota) => Some(quota),
        Member::Named(_) => None,
    });
    quotas.collect()
}

pub(super) fn dictionary(text: &str, origin: Origin) -> Option<Figures> {
    let dictionary: Dictionary = Parser::new(text).parse().ok()?;
    let figure = |key: &str| match dictionary.get(key) {
        Some(ListEntry::Item(item)) => whole(&item.bare_item),
        _ => None,
    };
    Some(Figures {
        limit: figure("limit"),
        remaining: figure("remaining"),
        reset: figure("reset").map(|reset| origin.time_until_number(Duration::from_secs(reset))),
    })
}

fn member(item: &Item, origin: Origin) -> Option<Member> {
    let whole = |key: &str| item.params.get(key).and_then(whole);
    let window = whole("w").and_then(window);
    let name = match &item.bare_item {
        BareItem::String(name) => name.as_str(),
        // Drafts 08 to 10 ask for a string, and have tokens in some of their examples.
        BareItem::Token(name) => name.as_str(),
        limit => {
            let limit = self::whole(limit)?;
            return Some(Member::Unnamed(Quota { limit, window }));
        }
    };
    let counted = match item.params.get("qu") {
        Some(BareItem::String(unit)) => Counted::named(unit.as_str()),
        Some(BareItem::Token(unit)) => Counted::named(unit.as_str()),
        // Servers that name a policy `tokens` and say no unit do not mean requests, as the draft would have it.
        _ => match Counted::named(name) {
            Counted::Other(_) => Counted::Requests,
            counted => counted,
        },
    };
    let partition_key = item.params.get("pk").and_then(BareItem::as_byte_sequence);
    Some(Member::Named(Advertised {
        name: Some(name.to_owned()),
        partition_key: partition_key.map(<[u8]>::to_vec),
        window,
        limit: whole("q"),
        remaining: whole("r"),
        reset: whole("t").map(|reset| origin.time_until_number(Duration::from_secs(reset))),
        ..Advertised::new(Dialect::RateLimitList, counted)
    }))
}

/// A window of no length says nothing.
fn window(seconds: u64) -> Option<Duration> {
    (seconds > 0).then(|| Duration::from_secs(seconds).min(MAX_TIME))
}

/// No figure of these fields is negative, or has parts.
fn whole(value: &BareItem) -> Option<u64> {
    u64::try_from(value.as_integer()?).ok()
}

/// Joins policies and what is left of them. What is left counts for every policy of the name, since a server that
/// tells two of one name does not say which it means.
pub(super) fn joined(policies: Vec<Advertised>, limits: Vec<Advertised>) -> Vec<Advertised> {
    let mut joined: Vec<Advertised> = Vec::new();
    for policy in policies {
        let known = joined.iter_mut().find(|known| {
            known.name == policy.name
                && known.partition_key == policy.partition_key
                && known.window == policy.window
                && known.counted == policy.counted
        });
        match known {
            Some(known) => overlay(known, &policy),
            None => joined.push(policy),
        }
    }
    let mut by_themselves: Vec<Advertised> = Vec::new();
    for limit in limits {
        let mut is_joined = false;
        for policy in joined.iter_mut().filter(|policy| is_of(&limit, policy)) {
            overlay(policy, &limit);
            is_joined = true;
        }
        if is_joined {
            continue;
        }
        let mut known = by_themselves.iter_mut();
        let known = known
            .find(|known| known.name == limit.name && known.partition_key == limit.partition_key);
        match known {
            Some(known) => overlay(known, &limit),
            None => by_themselves.push(limit),
        }
    }
    joined.append(&mut by_themselves);
    joined
}

/// A partition key that is told only in one of the two fields is taken to be that of the other.
fn is_of(limit: &Advertised, policy: &Advertised) -> bool {
    let keys = limit
        .partition_key
        .as_ref()
        .zip(policy.partition_key.as_ref());
    limit.name == policy.name && keys.is_none_or(|(one, other)| one == other)
}

fn overlay(known: &mut Advertised, more: &Advertised) {
    if let Some(limit) = more.limit {
        known.lower_limit(limit);
    }
    if let Some(remaining) = more.remaining {
        known.lower_remaining(remaining);
    }
    if let Some(reset) = more.reset {
        known.put_off_reset(reset);
    }
    known.window = known.window.or(more.window);
    if known.partition_key.is_none() {
        known.partition_key.clone_from(&more.partition_key);
    }
}
