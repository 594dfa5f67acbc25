//! The oracle of slots: who was inside from when to when, by one clock and by files of the processes' own. It
//! knows nothing of the library.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use nix::time::{ClockId, clock_gettime};

use super::processes::whole_lines;

/// What the clock shows that all processes read alike.
pub fn monotonic_ns() -> i64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    now.tv_sec() * 1_000_000_000 + now.tv_nsec()
}

/// Where a process writes when it is inside. The instants lie within what it holds: the first is read after it
/// was let in, the last before it lets go. So whatever is found to overlap did overlap.
#[derive(Debug)]
pub struct Book(File);

impl Book {
    pub fn open(path: &Path) -> Self {
        let file = OpenOptions::new().append(true).create(true).open(path);
        Self(file.unwrap())
    }

    pub fn goes_in(&mut self, slots: u64) {
        self.write(&format!("in {} {slots}\n", monotonic_ns()));
    }

    pub fn goes_out(&mut self) {
        self.write(&format!("out {}\n", monotonic_ns()));
    }

    fn write(&mut self, line: &str) {
        self.0.write_all(line.as_bytes()).unwrap();
    }
}

/// Some slots, held between two instants at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stay {
    pub from_ns: i64,
    pub to_ns: i64,
    pub slots: i64,
}

/// What a process wrote. Whoever was inside when it was killed stayed until the kill at least.
pub fn read_stays(path: &Path, killed_ns: Option<i64>) -> Vec<Stay> {
    let text = whole_lines(path);
    let mut stays: Vec<Stay> = Vec::new();
    let mut is_inside = false;
    for line in text.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let at_ns = fields[1].parse().unwrap();
        assert_eq!(is_inside, fields[0] == "out", "{}: {line}", path.display());
        if is_inside {
            stays.last_mut().unwrap().to_ns = at_ns;
        } else {
            stays.push(Stay {
                from_ns: at_ns,
                to_ns: at_ns,
                slots: fields[2].parse().unwrap(),
            });
        }
        is_inside = !is_inside;
    }
    if is_inside && let Some(last) = stays.last_mut() {
        let killed_ns = killed_ns.expect("it ended well, and inside");
        last.to_ns = killed_ns.max(last.from_ns);
    }
    stays
}

/// The most slots that were held at the same time.
pub fn most_at_once(stays: &[Stay]) -> i64 {
    let mut changes: Vec<(i64, i64)> = stays
        .iter()
        .flat_map(|stay| [(stay.from_ns, stay.slots), (stay.to_ns, -stay.slots)])
        .collect();
    // At one instant, those who go are gone first.
    changes.sort_unstable();
    let mut inside = 0;
    let mut most = 0;
    for (_, change) in changes {
        inside += change;
        most = most.max(inside);
    }
    most
}
