//! What a server says about its own limits.

use std::fmt::Write as _;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use sfv::{Integer, ItemSerializer, KeyRef, StringRef, key_ref};

use super::Feedback;
use super::time::{MAX_TIME, whole_seconds};
use crate::clock::Timestamp;
use crate::decision::Denial;
use crate::limit::Obstacle;
use crate::usage::Usage;

const QUOTA: &KeyRef = key_ref("q");
const QUOTA_UNIT: &KeyRef = key_ref("qu");
const WINDOW: &KeyRef = key_ref("w");
const REMAINING: &KeyRef = key_ref("r");
const RESET: &KeyRef = key_ref("t");

const SLOTS_UNIT: &str = "concurrent-requests";

/// The header fields by which a server tells its clients how limits stand: `RateLimit` and `RateLimit-Policy` as of
/// [draft 10][draft] of the IETF, and `Retry-After` as of
/// [RFC 9110, 10.2.3](https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3). Needs the feature `http`.
///
/// [draft]: https://www.ietf.org/archive/id/draft-ietf-httpapi-ratelimit-headers-10.html
///
/// ```
/// use quotalite::{Decision, Limit, LimitFields, Limiter, ManualClock};
///
/// let limiter = Limiter::in_memory_with(ManualClock::new());
/// limiter.define(Limit::new("tenant:42").per_second(1).per_minute(10))?;
/// let _permit = limiter.try_acquire("tenant:42")?;
/// let Decision::Denied(denial) = limiter.try_acquire("tenant:42")? else { unreachable!() };
///
/// let fields = LimitFields::of(&[limiter.usage("tenant:42")?]).with_denial(&denial);
/// let mut response = http::Response::builder().status(429).body(()).unwrap();
/// fields.insert_into(response.headers_mut());
/// assert_eq!(response.headers()["ratelimit-policy"], r#""tenant:42;s";q=1;w=1, "tenant:42;min";q=10;w=60"#);
/// assert_eq!(response.headers()["ratelimit"], r#""tenant:42;s";r=0;t=1, "tenant:42;min";r=9"#);
/// assert_eq!(response.headers()["retry-after"], "1");
/// # Ok::<(), quotalite::Error>(())
/// ```
///
/// # What they say
///
/// Each rate of a limit is a policy of its own, and so are slots and a bucket. [`policy_name`](Self::policy_name)
/// tells what they are called.
///
/// - `q` is the capacity, the number of slots, or the burst, and `qu` what it counts: `concurrent-requests` for
///   slots, and the unit of any other limit. Where a limit has no unit, clients take it to count requests.
/// - `w` is the window, and of a bucket the time in which it fills. Windows of a calendar are not all of one length
///   and slots have none, so they have no `w`.
/// - `r` is what is available.
/// - `t` is the time until more of it is, if it comes back by time alone. Beside a `Retry-After` that is earlier it is
///   left out, as the draft asks.
///
/// The fields know no parts of seconds: times are rounded up, so that nobody comes too early, and `Retry-After` is at
/// least 1. Times are at most [`Feedback::MAX_TIME`], and amounts 10^15 - 1, which is the largest integer that the
/// fields can hold.
///
/// What clients learn here they can use to tell how many others there are; tell nobody of the limits of somebody else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "the fields have to be added to a response"]
pub struct LimitFields {
    policies: Vec<Policy>,
    retry_after: Option<u64>,
}

/// One policy, in whole seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Policy {
    name: String,
    /// Unknown where only a denial tells of the policy.
    quota: Option<Quota>,
    remaining: u64,
    reset: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Quota {
    limit: u64,
    unit: Option<String>,
    window: Option<u64>,
}

impl LimitFields {
    /// The fields of limits, as [`Limiter::usage`](crate::Limiter::usage) tells how they stand. The first
    /// [`Feedback::MAX_ADVERTISED`] policies are kept, and the first of each name.
    pub fn of<'u>(usages: impl IntoIterator<Item = &'u Usage>) -> Self {
        let mut fields = Self::default();
        for policy in usages.into_iter().flat_map(policies) {
            let is_known = fields
                .policies
                .iter()
                .any(|known| known.name == policy.name);
            if !is_known && fields.policies.len() < Feedback::MAX_ADVERTISED {
                fields.policies.push(policy);
            }
        }
        fields
    }

    /// Adds when to come back: the longest wait, if there are several denials. A denial that does not know adds no
    /// `Retry-After`.
    ///
    /// If what stands in the way is none of the limits that the fields are of, it is added to `RateLimit` with
    /// nothing remaining, and not to `RateLimit-Policy`, since a denial does not know what the limit counts.
    pub fn with_denial(mut self, denial: &Denial) -> Self {
        let wait = denial.retry_after().map(told);
        self.retry_after = self.retry_after.max(wait.map(|seconds| seconds.max(1)));
        let name = Self::policy_name(denial.key(), denial.obstacle());
        // A pause is of all policies of its limit, and these say that nothing remains.
        let rates = format!("{name};");
        let is_of_them = |policy: &Policy| match denial.obstacle() {
            Obstacle::Paused | Obstacle::SlowStart => policy.name.starts_with(&rates),
            _ => false,
        };
        let is_told = |policy: &Policy| policy.name == name || is_of_them(policy);
        if !self.policies.iter().any(is_told) {
            let policy = Policy {
                name,
                quota: None,
                remaining: 0,
                reset: wait,
            };
            self.policies.insert(0, policy);
            self.policies.truncate(Feedback::MAX_ADVERTISED);
        }
        self
    }

    /// What the fields call a limit's rate, its slots, or its bucket: the key, and for a rate also `;` and its window, as
    /// the crate prints it. No two have the same name.
    ///
    /// Bytes of the key that are not printable ASCII, and the characters `%`, `;`, `"` and `\`, are
    /// [percent-encoded](https://www.rfc-editor.org/rfc/rfc3986#section-2.1): a name is a string that every
    /// parser of the fields can read, and the key can be had back from it. The same goes for units.
    ///
    /// ```
    /// use quotalite::{LimitFields, MINUTE, Obstacle, Rate};
    ///
    /// let rate = Obstacle::Rate(Rate::new(300, MINUTE)?);
    /// assert_eq!(LimitFields::policy_name("openai:requests", rate), "openai:requests;min");
    /// assert_eq!(LimitFields::policy_name("a;b°", Obstacle::Slots(8)), "a%3Bb%C2%B0");
    /// # Ok::<(), quotalite::LimitError>(())
    /// ```
    #[must_use]
    pub fn policy_name(key: &str, obstacle: Obstacle) -> String {
        let mut name = encoded(key);
        if let Obstacle::Rate(rate) = obstacle {
            let rate = rate.to_string();
            if let Some((_, window)) = rate.split_once('/') {
                name.push(';');
                name.push_str(&encoded(window));
            }
        }
        name
    }

    /// The fields, as names in lower case and values. A name comes more than once where its value would otherwise have
    /// more than [`Feedback::MAX_VALUE_BYTES`]: then add each of them, since all of them together are one list.
    ///
    /// ```
    /// use quotalite::{Limit, LimitFields, Limiter, ManualClock};
    ///
    /// let limiter = Limiter::in_memory_with(ManualClock::new());
    /// limiter.define(Limit::slots("gpu", 8))?;
    /// let _permit = limiter.try_acquire("gpu")?;
    /// let fields = LimitFields::of(&[limiter.usage("gpu")?]);
    /// let fields: Vec<_> = fields.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    /// assert_eq!(fields, [
    ///     r#"ratelimit-policy: "gpu";q=8;qu="concurrent-requests""#,
    ///     r#"ratelimit: "gpu";r=7"#,
    /// ]);
    /// # drop(_permit);
    /// # Ok::<(), quotalite::Error>(())
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, String)> {
        let policies = self.policies.iter().filter_map(Policy::quota_item);
        let limits = self
            .policies
            .iter()
            .filter_map(|policy| policy.limit_item(self.retry_after));
        let policies = lines(policies)
            .into_iter()
            .map(|line| ("ratelimit-policy", line));
        let limits = lines(limits).into_iter().map(|line| ("ratelimit", line));
        let retry_after = self
            .retry_after
            .map(|seconds| ("retry-after", seconds.to_string()));
        policies.chain(limits).chain(retry_after)
    }

    /// Puts the fields into a response's headers, in the place of those of the same names.
    pub fn insert_into(&self, headers: &mut HeaderMap) {
        let mut last = "";
        for (name, value) in self.iter() {
            let Ok(value) = HeaderValue::try_from(value) else {
                continue;
            };
            let key = HeaderName::from_static(name);
            if name == last {
                headers.append(key, value);
            } else {
                headers.insert(key, value);
            }
            last = name;
        }
    }
}

impl Policy {
    fn quota_item(&self) -> Option<String> {
        let quota = self.quota.as_ref()?;
        let item = ItemSerializer::new().bare_item(StringRef::from_str(&self.name).ok()?);
        let mut item = item.parameter(QUOTA, integer(quota.limit));
        if let Some(unit) = &quota.unit {
            item = item.parameter(QUOTA_UNIT, StringRef::from_str(unit).ok()?);
        }
        if let Some(window) = quota.window {
            item = item.parameter(WINDOW, integer(window));
        }
        Some(item.finish())
    }

    fn limit_item(&self, retry_after: Option<u64>) -> Option<String> {
        let item = ItemSerializer::new().bare_item(StringRef::from_str(&self.name).ok()?);
        let mut item = item.parameter(REMAINING, integer(self.remaining));
        let reset = self
            .reset
            .filter(|reset| retry_after.is_none_or(|after| *reset <= after));
        if let Some(reset) = reset {
            item = item.parameter(RESET, integer(reset));
        }
        Some(item.finish())
    }
}

fn policies(usage: &Usage) -> Vec<Policy> {
    let limit = usage.limit();
    let unit = limit.unit().map(encoded);
    let resumes = usage.pause().map(|pause| pause.until());
    let policy = |obstacle: Obstacle,
                  window: Option<u64>,
                  remaining: u64,
                  release: Option<Timestamp>| Policy {
        name: LimitFields::policy_name(limit.key(), obstacle),
        quota: Some(Quota {
            limit: obstacle.capacity(),
            unit: match obstacle {
                Obstacle::Slots(_) => Some(SLOTS_UNIT.to_owned()),
                _ => unit.clone(),
            },
            window: window.map(|seconds| seconds.max(1)),
        }),
        remaining,
        // Nothing comes back before a pause ends.
        reset: release
            .max(resumes)
            .map(|release| told(release.saturating_duration_since(usage.at()))),
    };
    let mut policies = Vec::new();
    if let Some(count) = limit.slot_count() {
        policies.push(policy(
            Obstacle::Slots(count),
            None,
            usage.available(),
            None,
        ));
    }
    for used in usage.rates() {
        let rate = used.rate();
        let window = rate.window().rolling().map(told);
        policies.push(policy(
            Obstacle::Rate(rate),
            window,
            used.available(),
            used.next_release(),
        ));
    }
    if let Some(used) = usage.bucket() {
        let bucket = used.bucket();
        let fills_in = bucket
            .per()
            .as_nanos()
            .saturating_mul(bucket.burst().into());
        let fills_in = fills_in.div_ceil(u128::from(bucket.refill()).max(1));
        let fills_in = u64::try_from(fills_in).map_or(MAX_TIME, Duration::from_nanos);
        let obstacle = Obstacle::Bucket(bucket);
        policies.push(policy(
            obstacle,
            Some(told(fills_in)),
            used.available(),
            used.next_release(),
        ));
    }
    policies
}

/// A time as the fields tell it.
fn told(time: Duration) -> u64 {
    whole_seconds(time.min(MAX_TIME))
}

fn integer(amount: u64) -> Integer {
    Integer::try_from(amount).unwrap_or(Integer::MAX)
}

fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' | b';' | b'"' | b'\\' => push_encoded(&mut encoded, byte),
            b' '..=b'~' => encoded.push(char::from(byte)),
            _ => push_encoded(&mut encoded, byte),
        }
    }
    encoded
}

fn push_encoded(text: &mut String, byte: u8) {
    // Nothing that is written to a string fails.
    let _ = write!(text, "%{byte:02X}");
}

/// Lists of items, as few as do not become too long.
fn lines(items: impl Iterator<Item = String>) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for item in items {
        match lines.last_mut() {
            Some(line) if line.len() + 2 + item.len() <= Feedback::MAX_VALUE_BYTES => {
                line.push_str(", ");
                line.push_str(&item);
            }
            _ => lines.push(item),
        }
    }
    lines
}
