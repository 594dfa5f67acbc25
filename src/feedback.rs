//! What HTTP responses say about limits.

mod advertised;
mod fields;
mod figures;
mod limit_set;
mod structured;
mod time;

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode};

pub use self::advertised::{Advertised, Counted, Dialect};
pub use self::fields::LimitFields;
use self::figures::{Figure, Single};
pub use self::limit_set::{Heard, Learned, LimitSet};
use self::structured::Member;
use self::time::Origin;

/// What an HTTP response says about the limits of the server that sent it, as data: nothing is waited for, and no
/// limit is changed. Needs the feature `http`.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use quotalite::{Counted, Feedback};
///
/// let headers = [
///     ("retry-after", "2"),
///     ("x-ratelimit-limit-tokens", "150000"),
///     ("x-ratelimit-remaining-tokens", "0"),
///     ("x-ratelimit-reset-tokens", "6m0s"),
/// ];
/// let feedback = Feedback::read(429, headers, SystemTime::now());
/// assert!(feedback.is_rate_limited());
/// assert_eq!(feedback.retry_after(), Some(Duration::from_secs(2)));
///
/// let tokens = &feedback.advertised()[0];
/// assert_eq!(tokens.counted(), &Counted::Tokens);
/// assert_eq!((tokens.limit(), tokens.remaining()), (Some(150_000), Some(0)));
/// assert_eq!(tokens.reset(), Some(Duration::from_secs(360)));
/// ```
///
/// # What is read
///
/// | headers | as in |
/// |---|---|
/// | `Retry-After` | [RFC 9110, 10.2.3](https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3) |
/// | `retry-after-ms`, `x-ms-retry-after-ms` | [Azure](https://learn.microsoft.com/en-us/azure/ai-services/openai/how-to/provisioned-get-started) |
/// | those of a [`Dialect`] | what each of them names |
///
/// A time is read in every form that is in use, whichever header it stands in: as a number of seconds, with parts
/// or without; as an HTTP date in one of the three forms of
/// [RFC 9110, 5.6.7](https://www.rfc-editor.org/rfc/rfc9110#section-5.6.7); as an instant of
/// [RFC 3339](https://www.rfc-editor.org/rfc/rfc3339); or with units, as [Go](https://pkg.go.dev/time#Duration.String)
/// prints it (`6m0s`, `20ms`). A number says by its size what it counts: below 10^9 it is a time to wait,
/// below 10^11 seconds since 1970, and from there on milliseconds since 1970.
///
/// Instants are taken from the `Date` of the response, if it has a valid one, and from `now` otherwise: the server
/// read both from its own clock, which may be minutes off ours, and only their distance is the time to wait.
/// `Date` has no parts of seconds, so that such a time can be too long by up to a second, and is never too short.
///
/// # What cannot be read
///
/// No header makes this fail. What is not of the form that its header has, what is negative, and what is longer than
/// [`MAX_VALUE_BYTES`](Self::MAX_VALUE_BYTES) is passed over, and hides no other header. What is said twice counts
/// in its stricter form: the longest wait, the lowest limit, the least remaining. Amounts are at most [`u64::MAX`], no
/// time exceeds [`MAX_TIME`](Self::MAX_TIME), and there are at most
/// [`MAX_ADVERTISED`](Self::MAX_ADVERTISED) limits, those that come first.
///
/// What a response from a cache says is as old as the response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feedback {
    status: u16,
    retry_after: Option<Duration>,
    advertised: Vec<Advertised>,
}

impl Feedback {
    /// What no time exceeds, 366 days. A longer one is cut to this.
    pub const MAX_TIME: Duration = time::MAX_TIME;
    /// How many limits are kept.
    pub const MAX_ADVERTISED: usize = 64;
    /// How many bytes the value of a header may have, and its name.
    pub const MAX_VALUE_BYTES: usize = 4096;

    /// Reads the status and the headers of a response, as names and values. A name that comes several times has
    /// several values; its case does not matter.
    ///
    /// `now` is when the response came, by the clock of this machine.
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    /// use quotalite::Feedback;
    ///
    /// let headers = [
    ///     ("Date", "Wed, 21 Oct 2015 07:27:00 GMT"),
    ///     ("Retry-After", "Wed, 21 Oct 2015 07:28:00 GMT"),
    /// ];
    /// let feedback = Feedback::read(503, headers, SystemTime::now());
    /// assert_eq!(feedback.retry_after(), Some(Duration::from_secs(60)));
    /// ```
    #[must_use]
    pub fn read(
        status: u16,
        headers: impl IntoIterator<Item = (impl AsRef<str>, impl AsRef<[u8]>)>,
        now: SystemTime,
    ) -> Self {
        let headers = headers.into_iter().filter_map(|(name, value)| {
            let (name, value) = (name.as_ref(), value.as_ref());
            if name.len().max(value.len()) > Self::MAX_VALUE_BYTES {
                return None;
            }
            let name = name.to_ascii_lowercase();
            if !is_of_interest(&name) {
                return None;
            }
            let value = str::from_utf8(value).ok()?;
            Some((name, value.trim_matches([' ', '\t']).to_owned()))
        });
        let headers: Vec<(String, String)> = headers.collect();
        let dates = headers.iter().filter(|(name, _)| name == "date");
        let dates = dates.filter_map(|(_, value)| Origin::of_date(value));
        let origin = dates.reduce(Origin::earlier);

        let mut reader = Reader::new(origin.unwrap_or(Origin::at(now)));
        for (name, value) in &headers {
            reader.read(name, value);
        }
        reader.into_feedback(status)
    }

    /// Reads a response of the crate [`http`], or of a client that uses its types.
    ///
    /// `now` is when the response came, by the clock of this machine.
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    /// use quotalite::Feedback;
    ///
    /// let response = http::Response::builder().status(429).header("Retry-After", "7").body(()).unwrap();
    /// let feedback = Feedback::of_response(response.status(), response.headers(), SystemTime::now());
    /// assert_eq!(feedback.retry_after(), Some(Duration::from_secs(7)));
    /// ```
    #[must_use]
    pub fn of_response(status: StatusCode, headers: &HeaderMap, now: SystemTime) -> Self {
        Self::read(status.as_u16(), headers, now)
    }

    /// The status of the response.
    #[must_use]
    pub const fn status(&self) -> u16 {
        self.status
    }

    /// Whether the request was refused because of a limit, and may succeed later:
    ///
    /// - 429, always ([RFC 6585, 4](https://www.rfc-editor.org/rfc/rfc6585#section-4));
    /// - 503, and 529, which Anthropic sends when it is overloaded, if they say when to come back. Without that they
    ///   tell of a failure, not of a limit;
    /// - 403, if it says when to come back, or that nothing remains of an [`XRateLimit`](Dialect::XRateLimit): so
    ///   does [GitHub][github] refuse.
    ///
    /// [github]: https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api
    #[must_use]
    pub fn is_rate_limited(&self) -> bool {
        match self.status {
            429 => true,
            503 | 529 => self.retry_after.is_some(),
            403 => {
                let mut limits = self.advertised.iter();
                self.retry_after.is_some()
                    || limits
                        .any(|limit| limit.dialect == Dialect::XRateLimit && limit.is_used_up())
            }
            _ => false,
        }
    }

    /// How long to wait from the response on, as `Retry-After` and its kin say. Milliseconds count rather than seconds
    /// that they round up to; otherwise the longest counts.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// How long to wait from the response on, if the request was [refused because of a limit](Self::is_rate_limited):
    /// [`retry_after`](Self::retry_after), which [takes precedence][draft]; or else the longest
    /// [`reset`](Advertised::reset) of the limits that nothing remains of. `None` if the response does not say it.
    ///
    /// [draft]: https://www.ietf.org/archive/id/draft-ietf-httpapi-ratelimit-headers-10.html
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    /// use quotalite::Feedback;
    ///
    /// // https://github.com/anthropics/anthropic-sdk-typescript/issues/357
    /// let headers = [
    ///     ("date", "Tue, 26 Mar 2024 19:59:59 GMT"),
    ///     ("anthropic-ratelimit-requests-limit", "5"),
    ///     ("anthropic-ratelimit-requests-remaining", "0"),
    ///     ("anthropic-ratelimit-requests-reset", "2024-03-26T20:00:00Z"),
    /// ];
    /// let feedback = Feedback::read(429, headers, SystemTime::now());
    /// assert_eq!((feedback.retry_after(), feedback.wait()), (None, Some(Duration::from_secs(1))));
    /// ```
    #[must_use]
    pub fn wait(&self) -> Option<Duration> {
        if !self.is_rate_limited() {
            return None;
        }
        let used_up = self.advertised.iter().filter(|limit| limit.is_used_up());
        let resets = used_up.filter_map(|limit| limit.reset);
        self.retry_after.or_else(|| resets.max())
    }

    /// The limits that the response tells of, dialect by dialect, each in the order of the headers.
    #[must_use]
    pub fn advertised(&self) -> &[Advertised] {
        &self.advertised
    }
}

fn is_of_interest(name: &str) -> bool {
    match name {
        "date"
        | "retry-after"
        | "retry-after-ms"
        | "x-ms-retry-after-ms"
        | "ratelimit"
        | "ratelimit-policy" => true,
        _ => figures::subject(name).is_some(),
    }
}

/// Reads one header after the other.
struct Reader {
    origin: Origin,
    seconds: Option<Duration>,
    milliseconds: Option<Duration>,
    /// Those that their headers name.
    named: Vec<Advertised>,
    x_rate_limit: Single,
    fields: Single,
    dictionary: Single,
    policies: Vec<Advertised>,
    limits: Vec<Advertised>,
}

impl Reader {
    const fn new(origin: Origin) -> Self {
        Self {
            origin,
            seconds: None,
            milliseconds: None,
            named: Vec::new(),
            x_rate_limit: Single::new(Dialect::XRateLimit),
            fields: Single::new(Dialect::RateLimitFields),
            dictionary: Single::new(Dialect::RateLimitDictionary),
            policies: Vec::new(),
            limits: Vec::new(),
        }
    }

    fn read(&mut self, name: &str, value: &str) {
        match name {
            "retry-after" => self.seconds = self.seconds.max(self.origin.time_until(value)),
            "retry-after-ms" | "x-ms-retry-after-ms" => {
                self.milliseconds = self.milliseconds.max(time::milliseconds(value));
            }
            "ratelimit" => self.read_limits(value),
            "ratelimit-policy" => self.read_policies(value),
            _ => {
                if let Some((dialect, what, figure)) = figures::subject(name) {
                    self.read_figure(dialect, what, figure, value);
                }
            }
        }
    }

    /// Each line is read by itself, although those of one name make one list: so one that is wrong hides no other.
    fn read_limits(&mut self, value: &str) {
        if let Some(members) = structured::list(value, self.origin) {
            for member in members {
                if let Member::Named(limit) = member {
                    push(&mut self.limits, limit);
                }
            }
        } else if let Some(figures) = structured::dictionary(value, self.origin) {
            self.dictionary.tell_figures(figures);
        }
    }

    fn read_policies(&mut self, value: &str) {
        for member in structured::list(value, self.origin).unwrap_or_default() {
            match member {
                Member::Named(policy) => push(&mut self.policies, policy),
                Member::Unnamed(quota) => self.fields.add_quotas([quota]),
            }
        }
    }

    fn read_figure(&mut self, dialect: Dialect, what: Option<&str>, figure: Figure, value: &str) {
        let Some(what) = what else {
            let single = match dialect {
                Dialect::XRateLimit => &mut self.x_rate_limit,
                _ => &mut self.fields,
            };
            single.tell(figure, value, self.origin);
            return;
        };
        let mut limit = figures::limit_named(dialect, what);
        let known = self.named.iter_mut().find(|known| {
            known.dialect == dialect
                && known.name == limit.name
                && known.counted == limit.counted
                && known.window == limit.window
        });
        if let Some(known) = known {
            figures::tell(known, figure, value, self.origin);
        } else {
            figures::tell(&mut limit, figure, value, self.origin);
            if limit.says_something() {
                push(&mut self.named, limit);
            }
        }
    }

    fn into_feedback(mut self, status: u16) -> Feedback {
        // Drafts 06 and 07 have the same policies, and differ in what they say of the one that counts.
        if self.dictionary.is_told() && !self.fields.is_told() {
            self.dictionary.take_quotas(&mut self.fields);
        }
        let mut advertised = structured::joined(self.policies, self.limits);
        advertised.retain(Advertised::says_something);
        advertised.extend(self.dictionary.into_limits());
        advertised.extend(self.fields.into_limits());
        advertised.extend(self.x_rate_limit.into_limits());
        advertised.append(&mut self.named);
        advertised.truncate(Feedback::MAX_ADVERTISED);
        Feedback {
            status,
            retry_after: retry_after(self.seconds, self.milliseconds),
            advertised,
        }
    }
}

fn push(limits: &mut Vec<Advertised>, limit: Advertised) {
    if limits.len() < Feedback::MAX_ADVERTISED {
        limits.push(limit);
    }
}

fn retry_after(seconds: Option<Duration>, milliseconds: Option<Duration>) -> Option<Duration> {
    match (seconds, milliseconds) {
        (Some(seconds), Some(milliseconds))
            if Duration::from_secs(time::whole_seconds(milliseconds)) == seconds =>
        {
            Some(milliseconds)
        }
        _ => seconds.max(milliseconds),
    }
}
