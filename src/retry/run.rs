//! What happens when a job runs.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::answer::{Answer, Classify};
use super::error::{RetryError, RetryErrorKind, Told, Try};
use super::event::{Listeners, RetryEvent};
use super::policy::RetryPolicy;
use super::{Pauses, Retry};
use crate::clock::Clock;
use crate::decision::Peek;
use crate::error::Error;
use crate::limiter::Limiter;
use crate::pause::Backoff;
use crate::permit::{Permit, PermitId};
use crate::request::Ask;
use crate::retry_budget::RetryBudget;
use crate::store::stopped;

impl<C> Retry<'_, C> {
    pub(super) fn run_job<T, E>(
        &mut self,
        limiter: &Limiter,
        ask: Ask<'_>,
        call: impl FnMut(&Permit) -> Result<T, E>,
    ) -> Result<T, RetryError<C::Last>>
    where
        C: Classify<T, E>,
    {
        let new_id = || Arc::from(PermitId::new(limiter.store()).as_ref());
        let mut job = Job {
            limiter,
            ask,
            id: self.id.clone().unwrap_or_else(new_id),
            policy: self.policy,
            pauses: &self.pauses,
            budget: self.budget.as_ref(),
            deadline: None,
            tries: Vec::new(),
            last: None,
            listeners: &mut self.listeners,
        };
        let ended = job.make_tries(&mut self.classifier, call);
        let (id, at) = (Arc::clone(&job.id), job.wall());
        match ended {
            Ok(value) => {
                let tries = job.failures().saturating_add(1);
                job.listeners.tell(&RetryEvent::Succeeded { id, at, tries });
                Ok(value)
            }
            Err(End {
                kind,
                limiter_error,
            }) => {
                let tries = job.failures();
                job.listeners.tell(&RetryEvent::GaveUp {
                    id,
                    at,
                    tries,
                    kind,
                });
                Err(RetryError(Box::new(Told {
                    id: job.id,
                    kind,
                    last: job.last,
                    limiter_error,
                    tries: job.tries,
                })))
            }
        }
    }
}

/// Why a job ends without a value.
struct End {
    kind: RetryErrorKind,
    limiter_error: Option<Error>,
}

impl From<RetryErrorKind> for End {
    fn from(kind: RetryErrorKind) -> Self {
        Self {
            kind,
            limiter_error: None,
        }
    }
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        let kind = match error {
            Error::TooLate { .. } => RetryErrorKind::Deadline,
            _ => RetryErrorKind::Limiter,
        };
        Self {
            kind,
            limiter_error: Some(error),
        }
    }
}

/// One run, of which only failures are kept.
struct Job<'j, 'a, L> {
    limiter: &'j Limiter,
    ask: Ask<'j>,
    id: Arc<str>,
    policy: RetryPolicy,
    pauses: &'j Pauses,
    budget: Option<&'j (String, RetryBudget)>,
    /// What the clock shows when it is too late.
    deadline: Option<Duration>,
    tries: Vec<Try>,
    last: Option<L>,
    listeners: &'j mut Listeners<'a>,
}

/// How long a failure keeps everybody away.
#[derive(Clone, Copy, Default)]
struct Rest {
    longest: Duration,
    /// As long as that is not for a limit of the request, whose pause is waited for in line.
    elsewhere: Duration,
}

impl<L> Job<'_, '_, L> {
    fn make_tries<T, E, C>(
        &mut self,
        classifier: &mut C,
        mut call: impl FnMut(&Permit) -> Result<T, E>,
    ) -> Result<T, End>
    where
        C: Classify<T, E, Last = L>,
    {
        self.policy.check().map_err(RetryErrorKind::Policy)?;
        if let Some((_, budget)) = self.budget {
            budget.check().map_err(Error::from)?;
        }
        let started = self.clock().elapsed();
        let longest = self.policy.longest();
        self.deadline = longest.map(|longest| started.saturating_add(longest));
        let mut delays = self.policy.delays();
        loop {
            let permit = self.acquire()?;
            let result = call(&permit);
            let answered = self.clock().elapsed();
            let (answer, last) = match classifier.judge(result) {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            self.last = Some(last);
            self.tries.push(Try {
                at: permit.at(),
                waited: permit.waited(),
                answer,
                delay: None,
            });
            let rest = self.heed(answer, permit)?;
            if answer == Answer::Fatal {
                return Err(RetryErrorKind::Fatal.into());
            }
            let delay = delays.next().ok_or(RetryErrorKind::Exhausted)?;
            self.go_on_after(answered, delay.max(rest.longest))?;
            let own = answered.saturating_add(delay.max(rest.elsewhere));
            self.limiter.store().rest(own);
            if self.limiter.store().is_stopped() {
                return Err(
                    stopped(self.limiter.store(), self.first_key().unwrap_or_default()).into(),
                );
            }
        }
    }

    /// Waits in line for the next try.
    fn acquire(&mut self) -> Result<Permit, End> {
        let retry = self.failures();
        if retry == 0 {
            let permit = self.limiter.acquire_by(self.ask, self.deadline)?;
            if let Some((name, _)) = self.budget
                && let Err(error) = self.limiter.note_call(name)
            {
                // What cannot be counted is not called. If it cannot be given back either, it stays charged.
                drop(permit.cancel());
                return Err(error.into());
            }
            return Ok(permit);
        }
        if self.is_over(Duration::ZERO) {
            return Err(RetryErrorKind::Deadline.into());
        }
        // Under the id of the request, the permit of the first try would be taken for this one, too.
        let ask = self.ask.without_id();
        let permit = self.limiter.acquire_by(ask, self.deadline)?;
        self.listeners.tell(&RetryEvent::Resumed {
            id: Arc::clone(&self.id),
            at: self.wall(),
            retry,
            of: self.policy.count(),
        });
        Ok(permit)
    }

    /// Takes what a failure says about limits for everybody, and lets go of its permit.
    fn heed(&mut self, answer: Answer, permit: Permit) -> Result<Rest, Error> {
        let Answer::RateLimited { retry_after } = answer else {
            return Ok(Rest::default());
        };
        let backoff = retry_after.map_or_else(Backoff::strike, Backoff::retry_after);
        let backoff = backoff.asked_at(permit.at());
        let rest = self.pause(backoff, retry_after);
        // Only now, so that nobody gets its slots before the pause.
        drop(permit);
        let rest = rest?;
        self.listeners.tell(&RetryEvent::RateLimited {
            id: Arc::clone(&self.id),
            at: self.wall(),
            retry_after,
        });
        Ok(rest)
    }

    fn pause(&self, backoff: Backoff, retry_after: Option<Duration>) -> Result<Rest, Error> {
        let keys: Vec<&str> = match self.pauses {
            Pauses::First => self.first_key().into_iter().collect(),
            Pauses::Keys(keys) => keys.iter().map(String::as_str).collect(),
        };
        let mut rest = Rest::default();
        if keys.is_empty() {
            let longest = retry_after.unwrap_or_default();
            return Ok(Rest {
                longest,
                elsewhere: longest,
            });
        }
        for key in keys {
            let pause = self.limiter.pause(key, backoff)?;
            let left = pause.until().saturating_duration_since(self.limiter.now()?);
            rest.longest = rest.longest.max(left);
            if self.ask.iter().all(|(taken, _)| taken != key) {
                rest.elsewhere = rest.elsewhere.max(left);
            }
        }
        Ok(rest)
    }

    /// Whether there is a next try, so long after the answer to the last one; then it is told of.
    fn go_on_after(&mut self, answered: Duration, delay: Duration) -> Result<(), End> {
        let since = self.clock().elapsed().saturating_sub(answered);
        if self.is_over(delay.saturating_sub(since)) || self.is_admitted_too_late()? {
            return Err(RetryErrorKind::Deadline.into());
        }
        if let Some((name, budget)) = self.budget
            && !self.limiter.try_retry(name, *budget)?
        {
            return Err(RetryErrorKind::Budget.into());
        }
        if let Some(failure) = self.tries.last_mut() {
            failure.delay = Some(delay);
        }
        self.listeners.tell(&RetryEvent::Retrying {
            id: Arc::clone(&self.id),
            at: self.wall(),
            retry: self.failures(),
            of: self.policy.count(),
            delay,
        });
        Ok(())
    }

    /// Whether it will be too late by so long from now.
    fn is_over(&self, delay: Duration) -> bool {
        let then = self.clock().elapsed().saturating_add(delay);
        self.deadline.is_some_and(|deadline| then > deadline)
    }

    /// Whether the limits are known to admit the next try only when it is too late.
    fn is_admitted_too_late(&self) -> Result<bool, Error> {
        let Some(deadline) = self.deadline else {
            return Ok(false);
        };
        // Read before, so that nothing is given up that would come at the last instant.
        let now = self.clock().elapsed();
        Ok(match self.limiter.peek(self.ask)? {
            Peek::Now => false,
            Peek::Later(denial) => {
                let wait = denial.retry_after().unwrap_or_default();
                now.saturating_add(wait) > deadline
            }
        })
    }

    fn failures(&self) -> u32 {
        u32::try_from(self.tries.len()).unwrap_or(u32::MAX)
    }

    fn first_key(&self) -> Option<&str> {
        self.ask.get(0).map(|(key, _)| key)
    }

    fn clock(&self) -> &dyn Clock {
        self.limiter.store().clock()
    }

    fn wall(&self) -> SystemTime {
        self.clock().wall()
    }
}
