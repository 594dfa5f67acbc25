//! Headers that tell one figure each.

use std::time::Duration;

use super::advertised::{Advertised, Counted, Dialect};
use super::structured::{self, Figures, Quota};
use super::time::Origin;
use crate::limit::{DAY, HOUR, MINUTE, SECOND};

/// What a header tells of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Figure {
    Limit,
    Remaining,
    Used,
    Reset,
    Name,
}

/// What a header is about, by its name in lower case: its dialect, what is counted where the name says so, and the
/// figure.
pub(super) fn subject(header: &str) -> Option<(Dialect, Option<&str>, Figure)> {
    if let Some(rest) = header.strip_prefix("anthropic-") {
        let (family, _) = rest.split_once('-')?;
        if !matches!(family, "ratelimit" | "priority") {
            return None;
        }
        let (what, figure) = rest.rsplit_once('-')?;
        // It counts nothing if the family itself is all that is left.
        what.split_once('-')?;
        let figure = figure_named(figure)?;
        return Some((Dialect::Anthropic, Some(what), figure));
    }
    if let Some(rest) = header.strip_prefix("ratelimit-") {
        return Some((Dialect::RateLimitFields, None, figure_named(rest)?));
    }
    let rest = header.strip_prefix("x-ratelimit-");
    let rest = rest.or_else(|| header.strip_prefix("x-rate-limit-"))?;
    match rest {
        "reset-after" => Some((Dialect::XRateLimit, None, Figure::Reset)),
        "resource" | "bucket" => Some((Dialect::XRateLimit, None, Figure::Name)),
        _ => match rest.split_once('-') {
            None => Some((Dialect::XRateLimit, None, figure_named(rest)?)),
            Some((figure, what)) => Some((Dialect::OpenAi, Some(what), figure_named(figure)?)),
        },
    }
}

/// GitLab says how much it has [observed](https://docs.gitlab.com/administration/settings/user_and_ip_rate_limits/)
/// where GitHub says how much is used.
fn figure_named(word: &str) -> Option<Figure> {
    match word {
        "limit" => Some(Figure::Limit),
        "remaining" => Some(Figure::Remaining),
        "used" | "observed" => Some(Figure::Used),
        "reset" => Some(Figure::Reset),
        _ => None,
    }
}

/// What the name of a header says of a limit: `tokens-minute`, as
/// [Cerebras](https://inference-docs.cerebras.ai/support/rate-limits) has it, or `tokens-per-minute`, as
/// [DigitalOcean](https://docs.digitalocean.com/products/inference/reference/quota-specific-response-headers/) has.
pub(super) fn limit_named(dialect: Dialect, what: &str) -> Advertised {
    let (name, what) = match dialect {
        Dialect::Anthropic => match what.split_once('-') {
            Some(("priority", what)) => (Some("priority"), what),
            Some((_, what)) => (None, what),
            None => (None, what),
        },
        _ => (None, what),
    };
    let (what, window) = match what.rsplit_once('-') {
        Some((rest, word)) => match window_named(word) {
            Some(window) => (rest.strip_suffix("-per").unwrap_or(rest), Some(window)),
            None => (what, None),
        },
        None => match window_named(what) {
            Some(window) => ("requests", Some(window)),
            None => (what, None),
        },
    };
    Advertised {
        name: name.map(str::to_owned),
        window,
        ..Advertised::new(dialect, Counted::named(what))
    }
}

/// Months are not all of one length, and so no window.
fn window_named(word: &str) -> Option<Duration> {
    match word {
        "second" => Some(SECOND),
        "minute" => Some(MINUTE),
        "hour" => Some(HOUR),
        "day" => Some(DAY),
        _ => None,
    }
}

/// What an amount is; more than fits is as much as fits. `-1`, which
/// [Azure](https://github.com/openai/openai-dotnet/issues/838) sends for what it does not know, is none.
pub(super) fn amount(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

/// Adds what a header says of a limit.
pub(super) fn tell(limit: &mut Advertised, figure: Figure, text: &str, origin: Origin) {
    match figure {
        Figure::Limit => {
            if let Some(amount) = amount(text) {
                limit.lower_limit(amount);
            }
        }
        Figure::Remaining => {
            if let Some(amount) = amount(text) {
                limit.lower_remaining(amount);
            }
        }
        Figure::Reset => {
            if let Some(reset) = origin.time_until(text) {
                limit.put_off_reset(reset);
            }
        }
        Figure::Used | Figure::Name => {}
    }
}

/// The one limit of a dialect that has no names for limits, and what else applies beside it.
#[derive(Clone, Debug)]
pub(super) struct Single {
    told: Advertised,
    used: Option<u64>,
    quotas: Vec<Quota>,
}

impl Single {
    pub(super) const fn new(dialect: Dialect) -> Self {
        Self {
            told: Advertised::new(dialect, Counted::Requests),
            used: None,
            quotas: Vec::new(),
        }
    }

    pub(super) const fn is_told(&self) -> bool {
        self.told.says_something()
    }

    pub(super) fn tell(&mut self, figure: Figure, text: &str, origin: Origin) {
        match figure {
            Figure::Limit if amount(text).is_none() => self.tell_quotas(text, origin),
            Figure::Used => self.used = self.used.max(amount(text)),
            Figure::Name if self.told.name.is_none() && !text.is_empty() => {
                self.told.name = Some(text.to_owned());
            }
            _ => tell(&mut self.told, figure, text, origin),
        }
    }

    /// The limit may be followed by the quotas it is the next one to be reached of, as in draft 03 and in
    /// [Envoy](https://www.envoyproxy.io/docs/envoy/latest/api-v3/extensions/filters/http/ratelimit/v3/rate_limit.proto):
    /// `100, 100;w=10, 1000;w=3600`.
    fn tell_quotas(&mut self, text: &str, origin: Origin) {
        let mut quotas = structured::quotas(text, origin).into_iter();
        if let Some(first) = quotas.next() {
            self.told.lower_limit(first.limit);
            self.told.window = self.told.window.or(first.window);
        }
        self.add_quotas(quotas);
    }

    pub(super) fn tell_figures(&mut self, figures: Figures) {
        if let Some(limit) = figures.limit {
            self.told.lower_limit(limit);
        }
        if let Some(remaining) = figures.remaining {
            self.told.lower_remaining(remaining);
        }
        if let Some(reset) = figures.reset {
            self.told.put_off_reset(reset);
        }
    }

    pub(super) fn add_quotas(&mut self, quotas: impl IntoIterator<Item = Quota>) {
        for quota in quotas {
            if self.quotas.len() < super::Feedback::MAX_ADVERTISED && !self.quotas.contains(&quota)
            {
                self.quotas.push(quota);
            }
        }
    }

    pub(super) fn take_quotas(&mut self, from: &mut Self) {
        self.add_quotas(from.quotas.drain(..));
    }

    pub(super) fn into_limits(self) -> impl Iterator<Item = Advertised> {
        let Self {
            mut told,
            used,
            mut quotas,
        } = self;
        if let (None, Some(limit), Some(used)) = (told.remaining, told.limit, used) {
            told.remaining = Some(limit.saturating_sub(used));
        }
        // Its window is that of the quota it is, if only one can be meant.
        let mut same = quotas
            .iter()
            .enumerate()
            .filter(|(_, quota)| Some(quota.limit) == told.limit);
        if let (Some((at, quota)), None) = (same.next(), same.next())
            && (told.window.is_none() || told.window == quota.window)
        {
            told.window = quota.window;
            quotas.remove(at);
        }
        let dialect = told.dialect;
        let others = quotas.into_iter().map(move |quota| Advertised {
            limit: Some(quota.limit),
            window: quota.window,
            ..Advertised::new(dialect, Counted::Requests)
        });
        let told = told.says_something().then_some(told);
        told.into_iter().chain(others)
    }
}
