//! A copy of the file: `backup`.

use std::path::{Path, PathBuf};

use clap::Args;
use quotalite::Error;
use serde::Serialize;

use crate::shell::{Code, Failure, Shell};
use crate::show::number;

/// Copy the file as it is at one moment, while others use it
///
/// Nobody has to wait for that. The copy comes to stand at its path whole or not at all, and only its owner may read it.
/// In the copy nobody holds anything: what was booked or held comes back to whoever needs it.
#[derive(Args, Debug)]
pub(crate) struct BackupArgs {
    /// Where to; nothing may stand there
    to: PathBuf,
}

#[derive(Debug, Serialize)]
struct Backup<'a> {
    from: &'a Path,
    to: &'a Path,
    bytes: u64,
}

pub(crate) fn backup(shell: &Shell, args: &BackupArgs) -> Result<Code, Failure> {
    let inspector = shell.inspector()?;
    inspector.backup(&args.to).map_err(|error| match &error {
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists => {
            Failure::misused(&error).hint("nothing is overwritten: choose another name")
        }
        // It is the copy that there is no place for: the file was found.
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Failure::failed(&error).hint("make the directory first")
        }
        _ => error.into(),
    })?;
    let answer = Backup {
        from: inspector.file(),
        to: &args.to,
        bytes: args.to.metadata().map_or(0, |metadata| metadata.len()),
    };
    shell.print(&answer, |out| {
        writeln!(
            out,
            "{}: {} bytes",
            answer.to.display(),
            number(answer.bytes)
        )
    })?;
    Ok(Code::Done)
}
