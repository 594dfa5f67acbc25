//! What is measured.

use std::fmt;
use std::str::FromStr;

use crate::Failure;

/// What a caller calls again and again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Calls {
    /// A transaction of plain SQLite that inserts one row.
    Raw,
    /// An acquisition that is granted.
    Granted,
    /// One that is refused, the same each time.
    Refused,
    /// One that is refused, of another amount each time.
    RefusedAnew,
    /// A refused one and a granted one in turns.
    Mixed,
    /// The settlement of an old charge.
    Settle,
    /// A booking behind a long line.
    Book,
    /// A refusal because of a long line.
    RefusedByLine,
}

const NAMES: [(Calls, &str); 8] = [
    (Calls::Raw, "raw"),
    (Calls::Granted, "granted"),
    (Calls::Refused, "refused"),
    (Calls::RefusedAnew, "refused_anew"),
    (Calls::Mixed, "mixed"),
    (Calls::Settle, "settle"),
    (Calls::Book, "book"),
    (Calls::RefusedByLine, "refused_by_line"),
];

impl fmt::Display for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(calls, _)| calls == self);
        f.write_str(name.map_or("", |(_, name)| name))
    }
}

impl FromStr for Calls {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let calls = NAMES.iter().find(|(_, name)| *name == text);
        Ok(calls.ok_or("no such calls")?.0)
    }
}

/// Who calls, and on which file.
pub struct Subject {
    /// Names it in the JSON, and names its file.
    pub id: String,
    /// What people read.
    pub label: String,
    pub group: &'static str,
    pub calls: Calls,
    pub processes: usize,
    pub threads: usize,
    /// How many charges, or callers in line, there are before the first call.
    pub size: u64,
}

impl Subject {
    pub fn callers(&self) -> usize {
        self.processes * self.threads
    }
}

/// How many processes, or threads, call at the same time.
pub const CROWDS: [usize; 5] = [1, 2, 4, 8, 32];
pub const IN_LINE: u64 = 10_000;
pub const RAW: &str = "raw";

/// All subjects. `most` is the size of the largest ledger.
pub fn subjects(most: u64) -> Vec<Subject> {
    let mut all = vec![alone(
        RAW,
        "raw transaction, one row",
        "baseline",
        Calls::Raw,
        0,
    )];
    for (calls, threads, processes) in [
        (Calls::Granted, "granted, threads", "granted, processes"),
        (Calls::Refused, "refused, threads", "refused, processes"),
        (Calls::Mixed, "mixed, threads", "mixed, processes"),
    ] {
        all.extend(CROWDS.map(|count| Subject {
            id: format!("threads_{count}_{calls}"),
            label: count.to_string(),
            group: threads,
            calls,
            processes: 1,
            threads: count,
            size: 0,
        }));
        all.extend(CROWDS.map(|count| Subject {
            id: format!("processes_{count}_{calls}"),
            label: count.to_string(),
            group: processes,
            calls,
            processes: count,
            threads: 1,
            size: 0,
        }));
    }
    let group = "refusals, one process";
    all.push(alone(
        "refused_read",
        "another amount each time",
        group,
        Calls::RefusedAnew,
        0,
    ));
    all.push(alone(
        "refused_memory",
        "the same again",
        group,
        Calls::Refused,
        0,
    ));
    let group = "granted, live charges in the ledger";
    for size in [100, 10_000, 1_000_000, 10_000_000] {
        if size <= most {
            let (id, label) = (charges(size), crate::report::grouped(size));
            all.push(alone(&id, &label, group, Calls::Granted, size));
        }
    }
    let group = "old charges and long lines";
    let later = format!("settle, {} later charges", crate::report::grouped(most));
    all.push(alone("settle", &later, group, Calls::Settle, most));
    all.push(alone(
        "book",
        "book, 10 000 in line",
        group,
        Calls::Book,
        IN_LINE,
    ));
    all.push(alone(
        "refused_by_line",
        "refused, 10 000 in line",
        group,
        Calls::RefusedByLine,
        IN_LINE,
    ));
    all
}

/// The name of a ledger with so many charges.
pub fn charges(size: u64) -> String {
    format!("charges_{size}")
}

fn alone(id: &str, label: &str, group: &'static str, calls: Calls, size: u64) -> Subject {
    Subject {
        id: id.to_owned(),
        label: label.to_owned(),
        group,
        calls,
        processes: 1,
        threads: 1,
        size,
    }
}
