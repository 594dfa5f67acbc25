//! The limits that calls to language models usually have, and requests for them.
//!
//! | key | limits |
//! |---|---|
//! | `global:llm:<provider>:<model>:rpm` | requests a minute, of everybody |
//! | `global:llm:<provider>:<model>:tpm` | tokens a minute, of everybody |
//! | `global:llm:<provider>:<model>:concurrency` | calls at once, of everybody |
//! | `tenant:<id>:llm:daily_tokens` | tokens of one tenant in any 24 hours, of all models |
//!
//! [`LlmLimits`] defines the first three and [`daily_tokens`] the last one; an [`LlmCall`] asks for them in one [`Request`],
//! which is admitted whole or not at all.
//!
//! ```
//! use quotalite::llm::{self, LlmLimits};
//! use quotalite::{Limiter, OnConflict};
//!
//! let limiter = Limiter::in_memory()?;
//! let gpt = LlmLimits::new("openai", "gpt-4o").rpm(500).tpm(30_000).concurrency(8);
//! limiter.define_all(gpt.limits()?, OnConflict::Fail)?;
//! limiter.define(llm::daily_tokens(100_000))?;
//!
//! let call = gpt.call().tenant("42").tokens(1_800);
//! let permit = limiter.acquire(&call.request()?)?;
//! permit.settle(call.used(620)?)?;
//! assert_eq!(limiter.usage(&llm::tpm_key("openai", "gpt-4o")?)?.available(), 29_380);
//! assert_eq!(limiter.usage(&llm::daily_tokens_key("42")?)?.available(), 99_380);
//! # Ok::<(), quotalite::Error>(())
//! ```
//!
//! An [`Estimator`](crate::Estimator) for [`tpm_key`] knows how many tokens to ask for, and settles with what
//! [`LlmCall::used`] says.
//!
//! # Names
//!
//! The names of providers, models and tenants become parts of keys: they have a character at least, no `:`, no `*` and no
//! control characters, so that no two calls share a key by accident, and no name is a pattern. Names that have a `:`
//! (`llama3:8b`, `ft:gpt-4o:org`) are for the caller to write otherwise, and always in the same way. A key has
//! [`MAX_KEY_BYTES`] at most.

use crate::limit::{Limit, LimitBuilder, MAX_KEY_BYTES};
use crate::request::Request;

/// What is wrong with a call or its names. Nothing was asked for or defined.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LlmError {
    /// A name is empty.
    #[error("the name of a {what} is not empty")]
    Empty {
        /// What is named: `provider`, `model` or `tenant`.
        what: &'static str,
    },
    /// A name has a character that would make the key ambiguous.
    #[error(
        "the name of a {what} has no `:`, no `*` and no control characters, {name:?} has {character:?} at byte {offset}"
    )]
    Character {
        /// What is named.
        what: &'static str,
        /// The name.
        name: String,
        /// The first such character.
        character: char,
        /// Where it stands.
        offset: usize,
    },
    /// The names are too long for one key.
    #[error(
        "a key has at most {MAX_KEY_BYTES} bytes, `{resource}` would have {bytes} with these names"
    )]
    TooLong {
        /// What the key ends with: `rpm`, `tpm`, `concurrency` or `daily_tokens`.
        resource: &'static str,
        /// How many bytes the key would have.
        bytes: usize,
    },
    /// A call that takes tokens, of its model or of a tenant, does not say how many.
    #[error(
        "a call says how many tokens it takes, or that it takes none of its model and has no tenant"
    )]
    NoTokens,
}

const REQUESTS: &str = "rpm";
const TOKENS: &str = "tpm";
const CONCURRENCY: &str = "concurrency";
const DAILY_TOKENS: &str = "daily_tokens";

fn checked<'n>(what: &'static str, name: &'n str) -> Result<&'n str, LlmError> {
    if name.is_empty() {
        return Err(LlmError::Empty { what });
    }
    let is_wrong = |c: char| c == ':' || c == '*' || c.is_control();
    let mut characters = name.char_indices();
    match characters.find(|(_, character)| is_wrong(*character)) {
        None => Ok(name),
        Some((offset, character)) => Err(LlmError::Character {
            what,
            name: name.to_owned(),
            character,
            offset,
        }),
    }
}

fn short_enough(key: String, resource: &'static str) -> Result<String, LlmError> {
    match key.len() {
        bytes if bytes > MAX_KEY_BYTES => Err(LlmError::TooLong { resource, bytes }),
        _ => Ok(key),
    }
}

fn global_key(provider: &str, model: &str, resource: &'static str) -> Result<String, LlmError> {
    let (provider, model) = (checked("provider", provider)?, checked("model", model)?);
    let key = format!("global:llm:{provider}:{model}:{resource}");
    short_enough(key, resource)
}

/// The key of a model's requests a minute.
///
/// # Errors
/// [`LlmError`] if the names make no key.
pub fn rpm_key(provider: &str, model: &str) -> Result<String, LlmError> {
    global_key(provider, model, REQUESTS)
}

/// The key of a model's tokens a minute.
///
/// # Errors
/// [`LlmError`] if the names make no key.
pub fn tpm_key(provider: &str, model: &str) -> Result<String, LlmError> {
    global_key(provider, model, TOKENS)
}

/// The key of how many calls a model answers at once.
///
/// # Errors
/// [`LlmError`] if the names make no key.
pub fn concurrency_key(provider: &str, model: &str) -> Result<String, LlmError> {
    global_key(provider, model, CONCURRENCY)
}

/// The key of a tenant's tokens in any 24 hours.
///
/// # Errors
/// [`LlmError`] if the tenant's name makes no key.
pub fn daily_tokens_key(tenant: &str) -> Result<String, LlmError> {
    let tenant = checked("tenant", tenant)?;
    short_enough(format!("tenant:{tenant}:llm:{DAILY_TOKENS}"), DAILY_TOKENS)
}

/// The definition of what each tenant can use of all models in any 24 hours, in tokens: a [pattern](Limit::pattern), which
/// counts for each tenant by itself.
pub fn daily_tokens(capacity: u64) -> LimitBuilder {
    let pattern = format!("tenant:*:llm:{DAILY_TOKENS}");
    Limit::pattern(pattern).per_day(capacity).unit("tokens")
}

/// The definition of what this tenant can use of all models in any 24 hours, in tokens, in the place of what counts for
/// each.
///
/// # Errors
/// [`LlmError`] if the tenant's name makes no key.
pub fn daily_tokens_of(tenant: &str, capacity: u64) -> Result<LimitBuilder, LlmError> {
    let key = daily_tokens_key(tenant)?;
    Ok(Limit::new(key).per_day(capacity).unit("tokens"))
}

/// The limits of one model: those that are given.
#[derive(Clone, Debug)]
#[must_use = "it does nothing until its limits are defined"]
pub struct LlmLimits {
    provider: String,
    model: String,
    rpm: Option<u64>,
    tpm: Option<u64>,
    concurrency: Option<u64>,
}

impl LlmLimits {
    /// No limits yet, of this model of this provider.
    pub fn new(provider: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            provider: provider.into(),
            model: model.into(),
            rpm: None,
            tpm: None,
            concurrency: None,
        }
    }

    /// Allows so many requests in any minute.
    pub const fn rpm(mut self, requests: u64) -> Self {
        self.rpm = Some(requests);
        self
    }

    /// Allows so many tokens in any minute.
    pub const fn tpm(mut self, tokens: u64) -> Self {
        self.tpm = Some(tokens);
        self
    }

    /// Allows so many calls at once.
    pub const fn concurrency(mut self, calls: u64) -> Self {
        self.concurrency = Some(calls);
        self
    }

    /// The definitions, to be changed or handed to [`define_all`](crate::Limiter::define_all): what is wrong with a number is
    /// told there.
    ///
    /// # Errors
    /// [`LlmError`] if the names make no key.
    pub fn limits(&self) -> Result<Vec<LimitBuilder>, LlmError> {
        let (provider, model) = (&*self.provider, &*self.model);
        let mut limits = Vec::new();
        if let Some(requests) = self.rpm {
            let limit = Limit::new(rpm_key(provider, model)?);
            limits.push(limit.per_minute(requests).unit("requests"));
        }
        if let Some(tokens) = self.tpm {
            let limit = Limit::new(tpm_key(provider, model)?);
            limits.push(limit.per_minute(tokens).unit("tokens"));
        }
        if let Some(calls) = self.concurrency {
            limits.push(Limit::slots(concurrency_key(provider, model)?, calls));
        }
        Ok(limits)
    }

    /// A call that takes of those of its limits that are given here, and of no others.
    ///
    /// ```
    /// use quotalite::llm::LlmLimits;
    ///
    /// let claude = LlmLimits::new("anthropic", "sonnet").rpm(50).tpm(40_000);
    /// let request = claude.call().tokens(1_800).request()?;
    /// assert_eq!(request.takes().count(), 2);
    /// # Ok::<(), quotalite::llm::LlmError>(())
    /// ```
    pub fn call(&self) -> LlmCall {
        LlmCall {
            takes_rpm: self.rpm.is_some(),
            takes_tpm: self.tpm.is_some(),
            takes_concurrency: self.concurrency.is_some(),
            ..LlmCall::new(&*self.provider, &*self.model)
        }
    }
}

/// One call to a model: a request, its tokens, and a place among those that run at once; and the tokens of its tenant, if it
/// has one.
///
/// Every limit that it takes of has to be defined. [`LlmLimits::call`] takes of what was defined there; of a call that is made by
/// itself, what has no limit is left out: [`without_concurrency`](Self::without_concurrency). Only such a call can be [booked](crate::Limiter::book).
#[derive(Clone, Debug)]
#[must_use = "it does nothing until its request is admitted"]
pub struct LlmCall {
    provider: String,
    model: String,
    tenant: Option<String>,
    tokens: Option<u64>,
    takes_rpm: bool,
    takes_tpm: bool,
    takes_concurrency: bool,
}

impl LlmCall {
    /// A call to this model of this provider.
    pub fn new(provider: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            provider: provider.into(),
            model: model.into(),
            tenant: None,
            tokens: None,
            takes_rpm: true,
            takes_tpm: true,
            takes_concurrency: true,
        }
    }

    /// Takes its tokens of this tenant's daily ones, too.
    pub fn tenant(mut self, tenant: impl Into<String>) -> Self {
        self.tenant = Some(tenant.into());
        self
    }

    /// How many tokens it takes, text and answer together: the [amount](crate::Estimate::amount) of an estimate, say.
    pub const fn tokens(mut self, tokens: u64) -> Self {
        self.tokens = Some(tokens);
        self
    }

    /// Takes nothing of the model's requests a minute.
    pub const fn without_rpm(mut self) -> Self {
        self.takes_rpm = false;
        self
    }

    /// Takes nothing of the model's tokens a minute.
    pub const fn without_tpm(mut self) -> Self {
        self.takes_tpm = false;
        self
    }

    /// Takes no place among the calls that run at once.
    pub const fn without_concurrency(mut self) -> Self {
        self.takes_concurrency = false;
        self
    }

    /// What to ask for. It can be given an [id](Request::id), or more to take.
    ///
    /// # Errors
    /// [`LlmError`] if the names make no keys, and [`LlmError::NoTokens`] if it takes tokens and does not say how many.
    pub fn request(&self) -> Result<Request, LlmError> {
        let (provider, model) = (&*self.provider, &*self.model);
        let mut request = Request::new();
        if self.takes_rpm {
            request = request.take(rpm_key(provider, model)?, 1);
        }
        for key in self.token_keys()? {
            request = request.take(key, self.tokens.ok_or(LlmError::NoTokens)?);
        }
        if self.takes_concurrency {
            request = request.take(concurrency_key(provider, model)?, 1);
        }
        Ok(request)
    }

    /// What to [settle](crate::Permit::settle) its permit with, once it is known how many tokens it has used: each limit that
    /// it has taken tokens of.
    ///
    /// # Errors
    /// [`LlmError`] if the names make no keys.
    pub fn used(&self, tokens: u64) -> Result<Vec<(String, u64)>, LlmError> {
        let keys = self.token_keys()?.into_iter();
        Ok(keys.map(|key| (key, tokens)).collect())
    }

    fn token_keys(&self) -> Result<Vec<String>, LlmError> {
        let mut keys = Vec::new();
        if self.takes_tpm {
            keys.push(tpm_key(&self.provider, &self.model)?);
        }
        if let Some(tenant) = &self.tenant {
            keys.push(daily_tokens_key(tenant)?);
        }
        Ok(keys)
    }
}
