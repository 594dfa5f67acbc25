//! A definition from arguments: `limits set`.

use std::time::Duration;

use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueEnum};
use quotalite::{Definition, Error, Limit, LimitBuilder, LimitError, Limiter, Overage};

use super::Outcome;
use crate::ask;
use crate::shell::{Code, Failure, Shell};

/// Define a limit, or change it, for all processes from their next request on
///
/// What is not said stays as it is defined: its rates, its pad, its unit. A limit that is not defined yet needs rates, or --slots,
/// or --burst and --refill; the file is made if it is not there. A key with a `*` in it is a pattern: one limit for every
/// key that matches.
#[derive(Args, Debug)]
pub(crate) struct SetArgs {
    /// The limit, or a pattern
    key: String,
    /// Rates: "10/s, 300/min", "90000 tokens/min", "1500/calendar day in Asia/Tokyo"
    #[arg(conflicts_with_all = ["slots", "burst", "refill"])]
    rates: Option<String>,
    /// So many slots: how many permits may hold it at once
    #[arg(long, value_name = "COUNT", value_parser = ask::count, conflicts_with_all = ["burst", "refill"])]
    slots: Option<u64>,
    #[command(flatten)]
    terms: TermsArgs,
    /// Slots come back after this long, unless they are renewed; 0: never
    ///
    /// `run` renews them while its command runs.
    #[arg(long, value_name = "TIME", value_parser = ask::duration)]
    timeout: Option<Duration>,
    /// Keep what is charged in the file for this long, to be looked at and replayed
    ///
    /// It changes nothing about who is admitted. At least what the windows still hold is always there.
    #[arg(long, value_name = "TIME", value_parser = ask::duration)]
    history: Option<Duration>,
    /// Merge what is charged within so long: a long window of a hot limit stays small
    #[arg(long, value_name = "TIME", value_parser = ask::duration)]
    resolution: Option<Duration>,
    /// What the amounts are: "tokens", or "" for nothing in particular; the rates can say it, too
    #[arg(long)]
    unit: Option<String>,
    /// What becomes of what was used beyond the estimate, where it does not fit
    #[arg(long, value_name = "HOW")]
    overage: Option<Beyond>,
    /// No pause is longer than this; 15 minutes, if nothing else was said
    #[arg(long, value_name = "TIME", value_parser = ask::duration)]
    pause_cap: Option<Duration>,
    /// With how much of its rates it starts again after a pause; 50, if nothing else was said, and 100: all at once
    #[arg(long, value_name = "PERCENT", value_parser = RangedU64ValueParser::<u8>::new().range(1..=100))]
    slow_start: Option<u8>,
    /// Fail if something of this is defined differently, instead of changing it
    #[arg(long)]
    no_replace: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Beyond {
    /// It is shown as debt
    Debt,
    /// It is charged, and who comes later waits it out
    Charge,
    /// It is forgotten
    Deny,
}

impl From<Beyond> for Overage {
    fn from(beyond: Beyond) -> Self {
        match beyond {
            Beyond::Debt => Self::Debt,
            Beyond::Charge => Self::Charge,
            Beyond::Deny => Self::Deny,
        }
    }
}

/// What a definition can say besides its rates, whether it is set or only tried.
#[derive(Args, Debug)]
pub(crate) struct TermsArgs {
    /// A bucket that holds so much; --refill says how it fills
    #[arg(long, value_name = "AMOUNT", value_parser = ask::count)]
    burst: Option<u64>,
    /// How fast the bucket refills: "10/s"
    #[arg(long, value_name = "RATE", value_parser = refill)]
    refill: Option<Refill>,
    /// Lengthen each window by this, for the jitter on the way to a provider
    #[arg(long, value_name = "TIME", value_parser = ask::duration)]
    pad: Option<Duration>,
}

/// How fast a bucket refills, which is written as a rate is, and of what.
#[derive(Clone, Debug)]
struct Refill {
    amount: u64,
    per: Duration,
    unit: Option<String>,
}

fn refill(text: &str) -> Result<Refill, String> {
    let limit = Limit::new("refill").rates(text).build();
    let limit = limit.map_err(|error| error.to_string())?;
    let [rate] = limit.rates() else {
        return Err("a bucket refills at one rate: \"10/s\"".to_owned());
    };
    match rate.window().rolling() {
        Some(per) => Ok(Refill {
            amount: rate.capacity(),
            per,
            unit: limit.unit().map(str::to_owned),
        }),
        None => Err("a bucket refills evenly, not by a calendar".to_owned()),
    }
}

impl TermsArgs {
    pub(crate) const fn is_bucket(&self) -> bool {
        self.burst.is_some() || self.refill.is_some()
    }

    /// Adds these, and the rates if there are any, to the definition of a limit.
    pub(crate) fn add_to(&self, mut builder: LimitBuilder, rates: Option<&str>) -> LimitBuilder {
        if let Some(rates) = rates {
            builder = builder.rates(rates);
        }
        if let Some(burst) = self.burst {
            builder = builder.burst(burst);
        }
        if let Some(Refill { amount, per, unit }) = &self.refill {
            builder = builder.refill(*amount, *per);
            if let Some(unit) = unit {
                builder = builder.unit(unit);
            }
        }
        if let Some(pad) = self.pad {
            builder = builder.pad(pad);
        }
        builder
    }
}

pub(super) fn set(shell: &Shell, args: &SetArgs) -> Result<Code, Failure> {
    args.check()?;
    // Nothing is made or opened for a definition that is none.
    let new = args.is_whole().then(|| args.definition(None).build());
    let new = new.transpose();
    let new = new.map_err(|error| not_a_definition(&error, args.rates.as_deref()))?;
    let limiter = match new {
        Some(_) => shell.new_limiter()?,
        None => shell.limiter()?,
    };
    let outcome = if args.no_replace {
        args.define_only(shell, &limiter, new)?
    } else {
        args.change_or_define(shell, &limiter, new.as_ref())?
    };
    shell.print(&outcome, |out| outcome.write(out))?;
    Ok(Code::Done)
}

/// These rates make no definition, perhaps because they are said as they are printed.
pub(crate) fn not_a_definition(error: &LimitError, rates: Option<&str>) -> Failure {
    let failure = Failure::misused(error);
    let rates = rates.unwrap_or_default();
    if rates.trim_start().starts_with("burst") {
        failure.hint("a bucket is said as `--burst 100 --refill 10/s`")
    } else if rates.contains("slot") {
        failure.hint("slots are said as `--slots 8`")
    } else {
        failure
    }
}

impl SetArgs {
    fn check(&self) -> Result<(), Failure> {
        if Limit::new("key").rates(&self.key).build().is_ok() {
            let message = format!("`{}` is a rate, and no key of a limit", self.key);
            return Err(Failure::misused(message).hint("the key comes first: KEY RATES"));
        }
        let said = self.unit_of_rates();
        if let (Some(unit), Some(said)) = (&self.unit, &said)
            && unit != said
        {
            let message = format!("--unit says `{unit}`, and the rates say `{said}`");
            return Err(Failure::misused(message));
        }
        let says_nothing = [
            self.rates.is_none(),
            self.slots.is_none(),
            !self.terms.is_bucket(),
            self.terms.pad.is_none(),
            self.timeout.is_none(),
            self.history.is_none(),
            self.resolution.is_none(),
            self.unit.is_none(),
            self.overage.is_none(),
            self.pause_cap.is_none(),
            self.slow_start.is_none(),
        ];
        if says_nothing.into_iter().all(|is_so| is_so) {
            return Err(Failure::misused("nothing of it is said")
                .hint("its rates, as \"10/s, 300/min\", or options: see `--help`"));
        }
        Ok(())
    }

    /// Whether it can define what is not defined yet.
    const fn is_whole(&self) -> bool {
        self.rates.is_some()
            || self.slots.is_some()
            || self.terms.burst.is_some() && self.terms.refill.is_some()
    }

    /// Defines the limit, or fails if anything that is said here is defined differently. So does a change that somebody else makes
    /// just then.
    fn define_only(
        &self,
        shell: &Shell,
        limiter: &Limiter,
        new: Option<Limit>,
    ) -> Result<Outcome, Failure> {
        let stored = shell.inspector()?.look(|look| {
            if look.pattern_of(&self.key)?.is_some() {
                return Ok(None);
            }
            match look.limit(&self.key) {
                Ok(stored) => Ok(Some(stored)),
                Err(Error::UnknownLimit { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        })?;
        let same = match stored {
            Some(stored) => self
                .definition(Some(&stored))
                .build()
                .map_err(Failure::misused)?,
            None => new.ok_or_else(|| self.is_not_whole())?,
        };
        let definition = limiter.define(same.clone())?;
        Ok(Outcome::of(&same, &definition))
    }

    /// Others may define the limit and remove it meanwhile.
    fn change_or_define(
        &self,
        shell: &Shell,
        limiter: &Limiter,
        new: Option<&Limit>,
    ) -> Result<Outcome, Failure> {
        let change = |stored: &Limit| self.definition(Some(stored));
        let inspector = shell.inspector()?;
        loop {
            // What a pattern makes of a key is no definition of its own, of which anything could stay.
            let pattern = inspector.look(|look| look.pattern_of(&self.key))?;
            let updated = match pattern {
                None => limiter.update(&self.key, change).map(Some),
                Some(_) => Ok(None),
            };
            match updated {
                Ok(Some(former)) => {
                    let limit = change(&former).build().map_err(Failure::misused)?;
                    let definition = if former == limit {
                        Definition::Unchanged
                    } else {
                        Definition::Replaced(former)
                    };
                    return Ok(Outcome::of(&limit, &definition));
                }
                Ok(None) | Err(Error::UnknownLimit { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            let new = new.ok_or_else(|| self.is_not_whole())?;
            match limiter.define(new.clone()) {
                Ok(definition) => return Ok(Outcome::of(new, &definition)),
                Err(Error::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn is_not_whole(&self) -> Failure {
        let message = format!("`{}` has no definition of its own to be changed", self.key);
        Failure::misused(message).hint("a new one needs rates, or --slots, or --burst and --refill")
    }

    /// What is defined now, with what is said here in its place. What is not said stays, unless it is of another kind.
    fn definition(&self, stored: Option<&Limit>) -> LimitBuilder {
        let stored = stored.filter(|stored| self.is_of_its_kind(stored));
        let mut builder = match stored {
            Some(stored) => stored.to_builder(),
            None if self.key.contains('*') => Limit::pattern(&self.key),
            None => Limit::new(&self.key),
        };
        if self.rates.is_some() {
            builder = builder.without_rates();
        }
        if self.unit.is_some() || self.unit_of_rates().is_some() {
            builder = builder.without_unit();
        }
        builder = self.terms.add_to(builder, self.rates.as_deref());
        if let Some(slots) = self.slots {
            builder = builder.slots(slots);
        }
        if let Some(history) = self.history {
            builder = builder.keep(history);
        }
        if let Some(resolution) = self.resolution {
            builder = builder.resolution(resolution);
        }
        builder = match self.timeout {
            None => builder,
            Some(Duration::ZERO) => builder.without_timeout(),
            Some(timeout) => builder.timeout(timeout),
        };
        if let Some(unit) = self.unit.as_deref().filter(|unit| !unit.is_empty()) {
            builder = builder.unit(unit);
        }
        if let Some(overage) = self.overage {
            builder = builder.overage(overage.into());
        }
        let mut pauses = stored.map(Limit::pauses).unwrap_or_default();
        if let Some(cap) = self.pause_cap {
            pauses = pauses.cap(cap);
        }
        if let Some(percent) = self.slow_start {
            pauses = pauses.slow_start(percent);
        }
        builder.pauses(pauses)
    }

    /// The unit that the rates, or the speed of the bucket, are said in.
    fn unit_of_rates(&self) -> Option<String> {
        let refill = self.terms.refill.as_ref();
        let rates = self.rates.as_deref().unwrap_or_default();
        let limit = Limit::new("unit").rates(rates).build().ok();
        let unit = limit.and_then(|limit| limit.unit().map(str::to_owned));
        unit.or_else(|| refill.and_then(|refill| refill.unit.clone()))
    }

    fn is_of_its_kind(&self, stored: &Limit) -> bool {
        if self.slots.is_some() {
            stored.slot_count().is_some()
        } else if self.terms.is_bucket() {
            stored.bucket().is_some()
        } else {
            self.rates.is_none() || !stored.rates().is_empty()
        }
    }
}
