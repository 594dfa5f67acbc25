//! Child processes: the test binary runs itself again in a role, and what the child acknowledged stands
//! in a file, so that it outlives the child whatever ended it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

const ROLE: &str = "QUOTALITE_ROLE";

/// Whether the tests run in their long form.
pub fn long() -> bool {
    std::env::var_os("QUOTALITE_LONG").is_some_and(|value| value == "1")
}

/// The size of a test in its short and its long form.
pub fn size<T>(short: T, in_long_form: T) -> T {
    if long() { in_long_form } else { short }
}

/// Runs what follows in a pid namespace of its own; nothing if this user may not do that.
pub fn in_a_pid_namespace() -> Option<[&'static str; 6]> {
    let unshare = ["unshare", "-p", "-f", "--kill-child", "--mount-proc", "--"];
    let tried = Command::new(unshare[0])
        .args(&unshare[1..])
        .arg("true")
        .status();
    if tried.is_ok_and(|status| status.success()) {
        return Some(unshare);
    }
    println!("skipped: this user may not make a pid namespace");
    None
}

/// What a child does.
pub type Role = fn();

/// Plays the role that the parent asked for; nothing if the test was started by hand.
pub fn play(roles: &[(&str, Role)]) {
    let Ok(wanted) = std::env::var(ROLE) else {
        return;
    };
    let (_, role) = roles
        .iter()
        .find(|(name, _)| *name == wanted)
        .unwrap_or_else(|| panic!("no role `{wanted}`"));
    role();
}

/// In a child: what the parent gave it under this name.
pub fn argument(name: &str) -> String {
    std::env::var(format!("QUOTALITE_{name}")).unwrap_or_else(|_| panic!("no argument `{name}`"))
}

/// In a child: a number that the parent gave it.
pub fn number(name: &str) -> u64 {
    argument(name).parse().unwrap()
}

/// In a child: a path that the parent gave it.
pub fn path(name: &str) -> PathBuf {
    argument(name).into()
}

/// The command that runs this binary in a role.
pub fn command(role: &str, arguments: &[(&str, &str)]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    configure(&mut command, role, arguments);
    command
}

/// The command that runs this binary in a role, under another program such as `strace`.
pub fn command_under(program: &[&str], role: &str, arguments: &[(&str, &str)]) -> Command {
    let mut command = Command::new(program[0]);
    command
        .args(&program[1..])
        .arg(std::env::current_exe().unwrap());
    configure(&mut command, role, arguments);
    command
}

fn configure(command: &mut Command, role: &str, arguments: &[(&str, &str)]) {
    command
        .args(["--exact", "child", "--ignored", "--nocapture", "--quiet"])
        .env(ROLE, role)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    for (name, value) in arguments {
        command.env(format!("QUOTALITE_{name}"), value);
    }
}

/// A child process. Dropping it kills it, so that a test that fails leaves nobody behind.
#[derive(Debug)]
pub struct Process(Child);

pub fn spawn(role: &str, arguments: &[(&str, &str)]) -> Process {
    start(command(role, arguments))
}

pub fn start(mut command: Command) -> Process {
    Process(command.spawn().unwrap())
}

impl Process {
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    pub fn send(&self, signal: Signal) {
        let id = Pid::from_raw(self.0.id().try_into().unwrap());
        nix::sys::signal::kill(id, signal).unwrap();
    }

    /// Kills it outright, and waits until it is gone.
    pub fn kill(mut self) {
        self.send(Signal::SIGKILL);
        let status = self.0.wait().unwrap();
        assert_eq!(status.signal(), Some(9), "it had ended before: {status}");
    }

    /// Nothing if it has ended, which it has to have done well.
    #[track_caller]
    pub fn still_running(mut self) -> Option<Self> {
        match self.0.try_wait().unwrap() {
            None => Some(self),
            Some(status) => {
                assert!(status.success(), "{status}");
                None
            }
        }
    }

    pub fn wait(mut self) -> ExitStatus {
        self.0.wait().unwrap()
    }

    /// Waits until it ends, which it has to do well.
    #[track_caller]
    pub fn wait_well(self) {
        let id = self.0.id();
        let status = self.wait();
        assert!(status.success(), "process {id}: {status}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until something is so. Real time: other processes bring it about.
#[track_caller]
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !is_so() {
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Says something by a file that stands there from now on.
pub fn signal_by(path: &Path) {
    File::create_new(path).unwrap();
}

#[track_caller]
pub fn await_signal(path: &Path) {
    eventually(&format!("{} stands there", path.display()), || {
        path.exists()
    });
}

/// One charge that a process was told it has.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Acknowledged {
    pub key: String,
    pub at_ns: i64,
    pub amount: i64,
}

/// Where a process writes what it was told, one line per charge. Each permit is one `write`.
#[derive(Debug)]
pub struct Diary(File);

impl Diary {
    pub fn open(path: &Path) -> Self {
        let file = OpenOptions::new().append(true).create(true).open(path);
        Self(file.unwrap())
    }

    pub fn note(&mut self, at: quotalite::Timestamp, ask: &quotalite::Request) {
        let at_ns = at.as_nanos();
        let mut lines = Vec::new();
        for (key, amount) in ask.takes() {
            writeln!(lines, "{at_ns} {key} {amount}").unwrap();
        }
        self.0.write_all(&lines).unwrap();
    }
}

/// What a process wrote line by line, which may be writing yet, or may have been killed before it wrote anything. Its
/// last line counts when it has its end: a `write` that goes over a page's end is seen by halves.
pub fn whole_lines(path: &Path) -> String {
    let mut text = std::fs::read_to_string(path).unwrap_or_default();
    text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
    text
}

/// What the processes of a test wrote into their diaries.
pub fn read_diaries<'p>(paths: impl IntoIterator<Item = &'p PathBuf>) -> Vec<Acknowledged> {
    let mut acknowledged = Vec::new();
    for path in paths {
        for line in whole_lines(path).lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            acknowledged.push(Acknowledged {
                at_ns: fields[0].parse().unwrap(),
                key: fields[1].to_owned(),
                amount: fields[2].parse().unwrap(),
            });
        }
    }
    acknowledged
}

/// Runs a child under `strace`, which kills it at one of its calls that have to do with the file. Returns whether it
/// was killed, and did not end well before; or nothing if there is no `strace`.
pub fn run_and_kill(
    file: &Path,
    diary: &Path,
    role: &str,
    calls: &str,
    when: usize,
) -> Option<bool> {
    let trace = file.with_extension("trace");
    let inject = format!("inject={calls}:signal=KILL:when={when}");
    let mut strace = vec!["strace", "-f", "-o", trace.to_str().unwrap(), "-e", &inject];
    let of_the_file = ["", "-wal", "-shm", "-lock"].map(|end| format!("{}{end}", file.display()));
    // A futex belongs to no file.
    if calls != "futex" {
        strace.extend(of_the_file.iter().flat_map(|path| ["-P", path]));
    }
    let arguments = [
        ("FILE", file.to_str().unwrap()),
        ("DIARY", diary.to_str().unwrap()),
    ];
    let status = match command_under(&strace, role, &arguments).status() {
        Err(error) => {
            println!("skipped: strace cannot be run: {error}");
            return None;
        }
        Ok(status) => status,
    };
    // `strace` ends as the child has ended.
    let killed = status.signal() == Some(9);
    assert!(
        status.success() || killed,
        "{role}, {calls} {when}: {status}"
    );
    Some(killed)
}

/// Kills at one call after the other, each time another child, and says how often one was killed.
#[track_caller]
pub fn kill_at_each(
    plan: &[(&str, usize, usize)],
    is_killed_at: impl Fn(&str, usize) -> Option<bool>,
) {
    for (calls, last, step) in plan {
        let mut killed = 0;
        let mut runs = 0;
        for when in (1..=*last).step_by(*step) {
            match is_killed_at(calls, when) {
                None => return,
                Some(it_was) => killed += usize::from(it_was),
            }
            runs += 1;
        }
        println!("{calls}: killed {killed} times of {runs}");
        assert!(killed > 0, "{calls}");
    }
}
