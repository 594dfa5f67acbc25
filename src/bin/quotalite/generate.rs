//! What the program writes about itself: completions for shells, and man pages.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell as CompletedShell;

use crate::Cli;
use crate::shell::{Code, Failure};

/// Print completions for a shell
#[derive(Args, Debug)]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: CompletedShell,
}

/// Write man pages into a directory: one for the program, and one for each command
#[derive(Args, Debug)]
pub(crate) struct ManArgs {
    /// The directory, which is made if it is not there
    directory: PathBuf,
}

pub(crate) fn completions(args: &CompletionsArgs) -> Result<Code, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "quotalite", &mut text);
    io::stdout().lock().write_all(&text)?;
    Ok(Code::Done)
}

pub(crate) fn man(args: &ManArgs) -> Result<Code, Failure> {
    let failed = |error| Failure::failed(format_args!("{}: {error}", args.directory.display()));
    std::fs::create_dir_all(&args.directory).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), &args.directory).map_err(failed)?;
    Ok(Code::Done)
}
