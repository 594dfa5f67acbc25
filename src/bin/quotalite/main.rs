//! Exact rate limits, seen, steered and used from a shell.

#[cfg(not(unix))]
compile_error!("the program `quotalite` starts, signals and waits for processes as Unix does");

mod ask;
mod limits;
mod shell;
mod show;
mod status;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::shell::{SharedArgs, Shell};

/// Exact rate limits that unrelated processes share through one SQLite file: see them, steer them, use them.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, arg_required_else_help = true, after_help = shell::EXIT_CODES)]
struct Cli {
    #[command(flatten)]
    shared: SharedArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Status(status::StatusArgs),
    Usage(status::UsageArgs),
    #[command(subcommand)]
    Limits(limits::LimitsCommand),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return shell::misused(&error),
    };
    let shell = Shell::new(cli.shared);
    let result = match cli.command {
        Command::Status(args) => status::status(&shell, &args),
        Command::Usage(args) => status::usage(&shell, &args),
        Command::Limits(command) => limits::limits(&shell, &command),
    };
    match result {
        Ok(code) => code.into(),
        Err(failure) => failure.tell(),
    }
}
