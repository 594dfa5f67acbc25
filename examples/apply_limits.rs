//! Applies a file of limits to a database, and prints what came of each limit:
//! `cargo run --example apply_limits --features file -- limits.db examples/limits.toml`.
//! With `--replace` as a third argument, the file's definitions are put in the place of others.

use std::process::ExitCode;

use quotalite::{Definition, Limiter, LimitsFile, LimitsFileError, OnConflict};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let applied = match arguments[..] {
        [database, limits] => apply(database, limits, OnConflict::Fail),
        [database, limits, "--replace"] => apply(database, limits, OnConflict::Replace),
        _ => {
            eprintln!("usage: apply_limits DATABASE LIMITS.toml [--replace]");
            return ExitCode::FAILURE;
        }
    };
    match applied {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn apply(database: &str, limits: &str, conflict: OnConflict) -> Result<(), LimitsFileError> {
    // The file is read first, so that no database is made for one that is wrong.
    let file = LimitsFile::read(limits)?;
    let limiter = Limiter::open(database)?;
    for (limit, definition) in limiter.apply(&file, conflict)? {
        match definition {
            Definition::Created => println!("created    {limit}"),
            Definition::Replaced(former) => println!("replaced   {limit}, was {former}"),
            _ => println!("unchanged  {limit}"),
        }
    }
    Ok(())
}
