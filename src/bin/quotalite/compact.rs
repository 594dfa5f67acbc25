//! A smaller file: `compact`.

use clap::Args;
use serde::Serialize;

use crate::shell::{Code, Failure, Shell};
use crate::show::number;

/// Remove what counts for nothing any more, and give back the room that it took
///
/// Others go on using the file meanwhile. It is of use after a flood of keys; in the long run the same happens without it.
#[derive(Args, Debug)]
pub(crate) struct CompactArgs {}

#[derive(Debug, Serialize)]
struct Compact {
    before_bytes: u64,
    after_bytes: u64,
    deleted: u64,
    wal_is_cut: bool,
}

pub(crate) fn compact(shell: &Shell, _: &CompactArgs) -> Result<Code, Failure> {
    let compacted = shell.limiter()?.compact()?;
    let answer = Compact {
        before_bytes: compacted.before_bytes,
        after_bytes: compacted.after_bytes,
        deleted: compacted.deleted,
        wal_is_cut: compacted.wal_is_cut,
    };
    shell.print(&answer, |out| {
        let (before, after) = (number(answer.before_bytes), number(answer.after_bytes));
        writeln!(out, "from {before} to {after} bytes, WAL included")
    })?;
    if !answer.wal_is_cut {
        shell.remark("the WAL could not be cut, for others use it");
    }
    Ok(Code::Done)
}
