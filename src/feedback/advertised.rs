//! A limit as a response tells it.

use std::time::Duration;

/// One limit that a response tells of: as much of it as was said, in a way that could be read.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use quotalite::{Counted, Dialect, Feedback};
///
/// let headers = [
///     ("RateLimit-Policy", r#""burst";q=100;w=60"#),
///     ("RateLimit", r#""burst";r=50;t=30"#),
/// ];
/// let feedback = Feedback::read(200, headers, SystemTime::now());
/// let burst = &feedback.advertised()[0];
/// assert_eq!((burst.dialect(), burst.counted()), (Dialect::RateLimitList, &Counted::Requests));
/// assert_eq!((burst.name(), burst.limit(), burst.remaining()), (Some("burst"), Some(100), Some(50)));
/// assert_eq!(burst.window(), Some(Duration::from_secs(60)));
/// assert_eq!(burst.reset(), Some(Duration::from_secs(30)));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertised {
    pub(super) dialect: Dialect,
    pub(super) name: Option<String>,
    pub(super) partition_key: Option<Vec<u8>>,
    pub(super) counted: Counted,
    pub(super) window: Option<Duration>,
    pub(super) limit: Option<u64>,
    pub(super) remaining: Option<u64>,
    pub(super) reset: Option<Duration>,
}

impl Advertised {
    pub(super) const fn new(dialect: Dialect, counted: Counted) -> Self {
        Self {
            dialect,
            name: None,
            partition_key: None,
            counted,
            window: None,
            limit: None,
            remaining: None,
            reset: None,
        }
    }

    /// Which headers it stood in.
    #[must_use]
    pub const fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// What the server calls it: the policy of a `RateLimit` field, the resource of GitHub, the bucket of Discord.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Which share of the policy it is, where the server keeps one for each client, user or the like: the parameter
    /// `pk`. Policies of one name with different partition keys are different limits.
    #[must_use]
    pub fn partition_key(&self) -> Option<&[u8]> {
        self.partition_key.as_deref()
    }

    /// What it counts.
    #[must_use]
    pub const fn counted(&self) -> &Counted {
        &self.counted
    }

    /// How much may be used in one [`window`](Self::window).
    #[must_use]
    pub const fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// How much of it was left when the response was made. The server need not keep this promise: others may use it
    /// up in the meantime.
    #[must_use]
    pub const fn remaining(&self) -> Option<u64> {
        self.remaining
    }

    /// How long from the response until more of it comes back, or all of it: which of the two differs from server to
    /// server. At most [`Feedback::MAX_TIME`](super::Feedback::MAX_TIME), and zero if it is past.
    #[must_use]
    pub const fn reset(&self) -> Option<Duration> {
        self.reset
    }

    /// The time that the limit is for. Never zero, and at most [`Feedback::MAX_TIME`](super::Feedback::MAX_TIME).
    #[must_use]
    pub const fn window(&self) -> Option<Duration> {
        self.window
    }

    /// Whether anything was told besides that there is a limit.
    pub(super) const fn says_something(&self) -> bool {
        self.limit.is_some() || self.remaining.is_some() || self.reset.is_some()
    }

    /// Nothing is left of it.
    pub(super) fn is_used_up(&self) -> bool {
        self.remaining == Some(0)
    }

    /// Of two limits that a server tells, the lower one is the safe one.
    pub(super) fn lower_limit(&mut self, limit: u64) {
        self.limit = Some(self.limit.map_or(limit, |known| known.min(limit)));
    }

    pub(super) fn lower_remaining(&mut self, remaining: u64) {
        self.remaining = Some(
            self.remaining
                .map_or(remaining, |known| known.min(remaining)),
        );
    }

    /// Of two times to wait, the longer one is the safe one.
    pub(super) fn put_off_reset(&mut self, reset: Duration) {
        self.reset = self.reset.max(Some(reset));
    }
}

/// What a limit counts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Counted {
    /// Requests. Also what counts if the server does not say.
    Requests,
    /// Tokens of a language model, read and written.
    Tokens,
    /// Tokens that are read.
    InputTokens,
    /// Tokens that are written.
    OutputTokens,
    /// Requests that are in progress.
    Concurrency,
    /// Bytes of content.
    ContentBytes,
    /// Something else, as the server spells it.
    Other(String),
}

impl Counted {
    /// What a word in a header means; case, and whether `-`, `_` or a space joins two words, do not matter.
    pub(super) fn named(word: &str) -> Self {
        let plain = word.to_ascii_lowercase().replace(['_', ' '], "-");
        match plain.as_str() {
            "requests" | "request" | "req" => Self::Requests,
            "tokens" | "token" => Self::Tokens,
            "input-tokens" => Self::InputTokens,
            "output-tokens" => Self::OutputTokens,
            "concurrent-requests" => Self::Concurrency,
            "content-bytes" => Self::ContentBytes,
            _ => Self::Other(word.to_owned()),
        }
    }

    /// Its name, as the [registry of quota units][units] has it where that has one.
    ///
    /// [units]: https://www.ietf.org/archive/id/draft-ietf-httpapi-ratelimit-headers-10.html
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
            Self::InputTokens => "input-tokens",
            Self::OutputTokens => "output-tokens",
            Self::Concurrency => "concurrent-requests",
            Self::ContentBytes => "content-bytes",
            Self::Other(name) => name,
        }
    }
}

/// Which headers a limit was told in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dialect {
    /// `x-ratelimit-limit-requests` and the like, one header for each figure of each thing that is counted:
    /// [OpenAI](https://developers.openai.com/api/docs/guides/rate-limits), Azure,
    /// [Groq](https://console.groq.com/docs/rate-limits).
    OpenAi,
    /// `anthropic-ratelimit-requests-limit` and the like:
    /// [Anthropic](https://platform.claude.com/docs/en/api/rate-limits).
    Anthropic,
    /// `X-RateLimit-Limit` and the like, for one limit:
    /// [GitHub](https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api),
    /// [Discord](https://docs.discord.com/developers/topics/rate-limits), and many others.
    XRateLimit,
    /// `RateLimit-Limit`, `RateLimit-Remaining`, `RateLimit-Reset`: [drafts 00 to 06][draft] of the IETF.
    ///
    /// [draft]: https://www.ietf.org/archive/id/draft-ietf-httpapi-ratelimit-headers-06.html
    RateLimitFields,
    /// `RateLimit: limit=100, remaining=50, reset=5`: [draft 07][draft].
    ///
    /// [draft]: https://www.ietf.org/archive/id/draft-ietf-httpapi-ratelimit-headers-07.html
    RateLimitDictionary,
    /// `RateLimit: "default";r=50;t=30`: [drafts from 08 on][draft].
    ///
    /// [draft]: https://www.ietf.org/archive/id/draft-ietf-httpapi-ratelimit-headers-10.html
    RateLimitList,
}
