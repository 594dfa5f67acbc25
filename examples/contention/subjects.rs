//! What is measured.

use std::fmt;
use std::str::FromStr;

use crate::Failure;
use crate::report::grouped;

/// What a caller calls again and again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Calls {
    /// A transaction of plain SQLite that inserts one row.
    Raw,
    /// An acquisition that is granted.
    Granted,
    /// The same, where on average one old charge is swept for each new one.
    GrantedAndSwept,
    /// One that is refused, the same each time.
    Refused,
    /// One that is refused, of another amount each time.
    RefusedAnew,
    /// One that is handed out from a block.
    FromBlock,
    /// A refused one and a granted one in turns.
    Mixed,
    /// The settlement of an old charge.
    Settle,
    /// A booking behind a long line.
    Book,
    /// A refusal because of a long line.
    RefusedByLine,
}

const NAMES: [(Calls, &str); 10] = [
    (Calls::Raw, "raw"),
    (Calls::Granted, "granted"),
    (Calls::GrantedAndSwept, "granted_and_swept"),
    (Calls::Refused, "refused"),
    (Calls::RefusedAnew, "refused_anew"),
    (Calls::FromBlock, "from_block"),
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
    pub group: String,
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
const CROWDS: [usize; 5] = [1, 2, 4, 8, 32];
const IN_LINE: u64 = 10_000;
pub const RAW: &str = "raw";

/// All subjects. `most` is the size of the largest ledger.
pub fn subjects(most: u64) -> Vec<Subject> {
    let raw = "raw transaction, one row";
    let mut all = vec![alone("baseline", RAW, raw, Calls::Raw, 0)];
    for calls in [Calls::Granted, Calls::Refused, Calls::Mixed] {
        all.extend(CROWDS.map(|count| crowd("threads", calls, (1, count))));
        all.extend(CROWDS.map(|count| crowd("processes", calls, (count, 1))));
    }

    for (id, label, calls) in [
        ("refused_read", "a new amount each time", Calls::RefusedAnew),
        ("refused_memory", "the same again", Calls::Refused),
    ] {
        all.push(alone("refused, one process", id, label, calls, 0));
    }

    let group = "granted, one process";
    let (id, label) = ("block_100", "from blocks of 100");
    all.push(alone(group, id, label, Calls::FromBlock, 0));
    let (id, label) = ("granted_and_swept", "as many swept");
    all.push(alone(group, id, label, Calls::GrantedAndSwept, 0));
    for size in [100, 10_000, 1_000_000, 10_000_000] {
        if size <= most {
            let label = format!("{} live charges", grouped(size));
            all.push(alone(group, &charges(size), &label, Calls::Granted, size));
        }
    }

    let later = format!("settle, {} later charges", grouped(most));
    let booked = format!("book, {} in line", grouped(IN_LINE));
    let refused = format!("refused, {} in line", grouped(IN_LINE));
    for (id, label, calls, size) in [
        ("settle", later, Calls::Settle, most),
        ("book", booked, Calls::Book, IN_LINE),
        ("refused_by_line", refused, Calls::RefusedByLine, IN_LINE),
    ] {
        all.push(alone("old charges and long lines", id, &label, calls, size));
    }
    all
}

/// The name of a ledger with so many charges.
pub fn charges(size: u64) -> String {
    format!("charges_{size}")
}

fn crowd(kind: &str, calls: Calls, (processes, threads): (usize, usize)) -> Subject {
    let count = processes * threads;
    Subject {
        id: format!("{kind}_{count}_{calls}"),
        label: count.to_string(),
        group: format!("{calls}, {kind}"),
        calls,
        processes,
        threads,
        size: 0,
    }
}

fn alone(group: &str, id: &str, label: &str, calls: Calls, size: u64) -> Subject {
    Subject {
        id: id.to_owned(),
        label: label.to_owned(),
        group: group.to_owned(),
        calls,
        processes: 1,
        threads: 1,
        size,
    }
}
