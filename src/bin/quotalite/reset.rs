//! Limits that begin anew: `reset`.

use clap::Args;
use quotalite::Error;
use serde::Serialize;

use crate::shell::{Code, Failure, Shell};
use crate::show::{BOLD, counted};

/// Forget all that was charged to a limit, and what is held, owed and paused of it; its definition stays
///
/// Whoever waits for it keeps its place, and is admitted anew. Permits that were granted before go on; settling them
/// changes nothing any more.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("which").required(true))]
pub(crate) struct ResetArgs {
    /// The limit; a pattern, for all its keys; or a key that a pattern matches
    #[arg(group = "which")]
    key: Option<String>,
    /// All limits and patterns of the file
    #[arg(long, group = "which")]
    all: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

#[derive(Debug, Serialize)]
struct Reset {
    reset: Vec<String>,
}

pub(crate) fn reset(shell: &Shell, args: &ResetArgs) -> Result<Code, Failure> {
    let limiter = shell.limiter()?;
    let keys: Vec<String> = if let Some(key) = &args.key {
        limiter.limit(key)?;
        vec![key.clone()]
    } else {
        let limits = limiter.limits()?;
        limits.iter().map(|limit| limit.key().to_owned()).collect()
    };
    let question = match keys.as_slice() {
        [key] => format!("Forget all that was charged to `{key}`?"),
        keys => format!(
            "Forget all that was charged to {}?",
            counted(keys.len() as u64, "limit")
        ),
    };
    if !keys.is_empty() {
        Shell::confirm(question, args.yes)?;
    }
    let mut answer = Reset { reset: Vec::new() };
    for key in keys {
        match limiter.reset(&key) {
            Ok(_) => answer.reset.push(key),
            // Somebody has removed it meanwhile.
            Err(Error::UnknownLimit { .. }) if args.all => {}
            Err(error) if args.all => {
                let done = counted(answer.reset.len() as u64, "limit");
                let hint = format!("reset before that: {done}; the others are as they were");
                return Err(Failure::from(error).hint(hint));
            }
            Err(error) => return Err(error.into()),
        }
    }
    shell.print(&answer, |out| {
        for key in &answer.reset {
            writeln!(out, "{BOLD}{key}{BOLD:#}: reset")?;
        }
        if answer.reset.is_empty() {
            writeln!(out, "no limits")?;
        }
        Ok(())
    })?;
    Ok(Code::Done)
}
