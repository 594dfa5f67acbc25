//! Exact rate limits, seen, steered and used from a shell.

#[cfg(not(unix))]
compile_error!("the program `quotalite` starts, signals and waits for processes as Unix does");

mod admission;
mod ask;
mod backup;
mod bench;
mod compact;
mod disposition;
mod doctor;
mod explain;
mod generate;
mod ledger;
mod limits;
mod pauses;
mod replay;
mod reset;
mod run;
mod shell;
mod show;
mod signals;
mod status;
mod top;
mod watch;

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
    Run(run::RunArgs),
    Wait(admission::WaitArgs),
    Peek(admission::PeekArgs),
    Explain(explain::ExplainArgs),
    Status(status::StatusArgs),
    Usage(status::UsageArgs),
    Top(top::TopArgs),
    Watch(watch::WatchArgs),
    #[command(subcommand)]
    Limits(limits::LimitsCommand),
    Charges(ledger::ChargesArgs),
    Permits(ledger::PermitsArgs),
    Settle(ledger::SettleArgs),
    Cancel(ledger::CancelArgs),
    Pause(pauses::PauseArgs),
    Resume(pauses::ResumeArgs),
    Reset(reset::ResetArgs),
    Replay(replay::ReplayArgs),
    Doctor(doctor::DoctorArgs),
    Backup(backup::BackupArgs),
    Compact(compact::CompactArgs),
    Bench(bench::BenchArgs),
    Completions(generate::CompletionsArgs),
    Man(generate::ManArgs),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return shell::misused(&error),
    };
    let shell = Shell::new(cli.shared);
    let result = match cli.command {
        Command::Run(args) => run::run(&shell, &args),
        Command::Wait(args) => admission::wait(&shell, &args),
        Command::Peek(args) => admission::peek(&shell, &args),
        Command::Explain(args) => explain::explain(&shell, &args),
        Command::Status(args) => status::status(&shell, &args),
        Command::Usage(args) => status::usage(&shell, &args),
        Command::Top(args) => top::top(&shell, &args),
        Command::Watch(args) => watch::watch(&shell, &args),
        Command::Limits(command) => limits::limits(&shell, &command),
        Command::Charges(args) => ledger::charges(&shell, &args),
        Command::Permits(args) => ledger::permits(&shell, &args),
        Command::Settle(args) => ledger::settle(&shell, &args),
        Command::Cancel(args) => ledger::cancel(&shell, &args),
        Command::Pause(args) => pauses::pause(&shell, &args),
        Command::Resume(args) => pauses::resume(&shell, &args),
        Command::Reset(args) => reset::reset(&shell, &args),
        Command::Replay(args) => replay::replay(&shell, &args),
        Command::Doctor(args) => doctor::doctor(&shell, &args),
        Command::Backup(args) => backup::backup(&shell, &args),
        Command::Compact(args) => compact::compact(&shell, &args),
        Command::Bench(args) => bench::bench(&shell, &args),
        Command::Completions(args) => generate::completions(&args),
        Command::Man(args) => generate::man(&args),
    };
    match result {
        Ok(code) => code.end(),
        Err(failure) => failure.tell(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }
}
