//! `quotalite top` in a terminal.
#![cfg(feature = "cli")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use quotalite::{Backoff, Limit, Limiter, Request};
use regex::Regex;

/// A program in a terminal of its own, and what that shows.
struct Terminal {
    program: Child,
    keyboard: File,
    screen: Arc<Mutex<vt100::Parser>>,
    /// All that was ever written to it.
    written: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
    has_hung_up: Arc<AtomicBool>,
}

impl Terminal {
    fn start(program: &mut Command, rows: u16, columns: u16) -> Self {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(&size, None).unwrap();
        // Or what is started would keep its own terminal up.
        rustix::io::fcntl_setfd(&pty.master, rustix::io::FdFlags::CLOEXEC).unwrap();
        let slave = || Stdio::from(pty.slave.try_clone().unwrap());
        let program = program
            .stdin(slave())
            .stdout(slave())
            .stderr(slave())
            .spawn()
            .unwrap();
        drop(pty.slave);
        let keyboard = File::from(pty.master);
        let mut out = keyboard.try_clone().unwrap();
        let screen = Arc::new(Mutex::new(vt100::Parser::new(rows, columns, 0)));
        let written = Arc::new(Mutex::new(Vec::new()));
        let (shown, all) = (Arc::clone(&screen), Arc::clone(&written));
        let has_hung_up = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&has_hung_up);
        let reader = thread::spawn(move || {
            let mut bytes = [0; 4_096];
            // A terminal that nobody has open any more is an error to read from.
            while let Ok(length @ 1..) = out.read(&mut bytes)
                && !is_over.load(Ordering::Relaxed)
            {
                shown.lock().unwrap().process(&bytes[..length]);
                all.lock().unwrap().extend_from_slice(&bytes[..length]);
            }
        });
        Self {
            program,
            keyboard,
            screen,
            written,
            reader,
            has_hung_up,
        }
    }

    /// The terminal goes away, as when a connection breaks: after so long, in which nobody looks any more and somebody types.
    fn hang_up_after(mut self, typing: Duration) -> Child {
        self.has_hung_up.store(true, Ordering::Relaxed);
        // It draws again and again, so that there is something to read.
        self.reader.join().unwrap();
        let until = Instant::now() + typing;
        while Instant::now() < until {
            self.keyboard.write_all(b"jk").unwrap();
        }
        self.program
    }

    fn text(&self) -> String {
        self.screen.lock().unwrap().screen().contents()
    }

    /// Waits until the screen is like this.
    #[track_caller]
    fn wait(&self, what: &str, is_so: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            let text = self.text();
            if is_so(&text) {
                return;
            }
            assert!(Instant::now() < deadline, "{what}:\n{text}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[track_caller]
    fn wait_for(&self, part: &str) {
        self.wait(part, |text| text.contains(part));
    }

    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    fn resize(&mut self, rows: u16, columns: u16) {
        let size = rustix::termios::Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        self.screen
            .lock()
            .unwrap()
            .screen_mut()
            .set_size(rows, columns);
        rustix::termios::tcsetwinsize(&self.keyboard, size).unwrap();
        // A terminal tells those in front of it; nobody is, here.
        self.signal(Signal::SIGWINCH);
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.program.id()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// Waits for the end. The terminal has to be as it was.
    #[track_caller]
    fn ends(mut self) -> std::process::ExitStatus {
        let status = self.program.wait().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let screen = self.screen.lock().unwrap();
            let is_restored = !screen.screen().alternate_screen() && !screen.screen().hide_cursor();
            drop(screen);
            if is_restored {
                return status;
            }
            assert!(Instant::now() < deadline, "the terminal was not put back");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn top(db: &Path) -> Command {
    let mut top = Command::new(env!("CARGO_BIN_EXE_quotalite"));
    top.args(["top", "--every", "50ms", "--db"]).arg(db);
    top.env("TERM", "xterm-256color").env_remove("NO_COLOR");
    top
}

#[test]
fn it_shows_what_workers_do_and_answers_keys() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    let limiter = Limiter::open(&db).unwrap();
    limiter.define(Limit::new("calls").per_hour(1_000)).unwrap();
    limiter.define(Limit::slots("gpu", 2)).unwrap();
    limiter
        .define(Limit::pattern("tenant:*").per_hour(10))
        .unwrap();
    let mut top = Terminal::start(&mut top(&db), 24, 100);
    top.wait_for("1000/h");
    top.wait("nothing is used", |text| {
        text.contains("1 000") && !text.contains("permit")
    });

    limiter.acquire(("calls", 250)).unwrap();
    top.wait_for("750");
    let permit = limiter.acquire("gpu").unwrap();
    top.wait_for("1 permit");
    limiter.acquire("tenant:7").unwrap();
    top.wait_for("tenant:7");

    top.press("/gp");
    top.wait("filtered", |text| {
        text.contains("gpu") && !text.contains("calls")
    });
    top.press("\r\r");
    top.wait_for("PERMITS");
    top.wait_for(&format!("process {}  held", std::process::id()));
    drop(permit);
    top.wait("given back", |text| {
        !text.contains("PERMITS") && text.contains("2 slots")
    });
    top.press("\x1b");
    top.wait_for("MORE IN");
    top.press("\x1b");
    top.wait_for("calls");
    top.press("s");
    top.wait_for("by used");
    top.press("?");
    top.wait_for("look into the limit");
    top.press("x");

    top.resize(12, 40);
    top.wait("narrow", |text| {
        text.contains("AVAILABLE") && !text.contains("LATELY")
    });
    for line in top.text().lines() {
        assert!(line.chars().count() <= 40, "{line}");
    }
    top.resize(1, 1);
    top.resize(24, 100);
    top.wait_for("MORE IN");

    // The file goes, and comes back: it says so, and goes on.
    let away = directory.path().join("away");
    fs::create_dir(&away).unwrap();
    let names = || {
        fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
    };
    let files: Vec<_> = names().filter(|name| name != "away").collect();
    drop(limiter);
    for name in &files {
        // The sidecars go with the last one who has them open.
        let _ = fs::rename(directory.path().join(name), away.join(name));
    }
    top.wait_for("No such file");
    for name in &files {
        let _ = fs::rename(away.join(name), directory.path().join(name));
    }
    top.wait("it goes on", |text| {
        !text.contains("No such file") && text.contains("calls")
    });

    top.press("q");
    assert_eq!(top.ends().code(), Some(0));
}

#[test]
fn what_is_looked_into_scrolls_on_the_smallest_screen() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    let limiter = Limiter::open(&db).unwrap();
    limiter.define(Limit::slots("gpu", 30)).unwrap();
    let named = |at: usize| Request::new().take("gpu", 1).id(format!("job-{at}"));
    let permits: Vec<_> = (0..30)
        .map(|at| limiter.acquire(&named(at)).unwrap())
        .collect();
    let mut top = Terminal::start(&mut top(&db), 8, 40);
    top.wait_for("gpu");
    top.press("\r");
    top.wait_for("PERMITS (30)");
    top.wait_for("Up Down scroll  Esc back");
    let lines = || Regex::new(r"lines (\d+)-(\d+) of (\d+)").unwrap();
    let shown = |text: &str| -> [usize; 3] {
        let found = lines();
        let found = found.captures(text).unwrap_or_else(|| panic!("{text}"));
        [1, 2, 3].map(|at| found[at].parse().unwrap())
    };
    let is_on = |first: usize| move |text: &str| text.contains(&format!("lines {first}-"));
    assert_eq!(shown(&top.text())[0], 1);
    top.press("jj");
    top.wait("two lines down", is_on(3));
    top.press("k");
    top.wait("one line up", is_on(2));
    // Each page begins where the last one ended, so that nothing is missed.
    top.press("g\x1b[H");
    top.wait("at the start", is_on(1));
    let mut told = BTreeSet::new();
    // Where it stands depends on how much else there is to say in its line.
    let jobs = Regex::new("job-[0-9]+").unwrap();
    loop {
        let text = top.text();
        for line in text.lines() {
            assert!(line.chars().count() <= 40, "{text}");
        }
        assert!(
            text.lines().nth(1).unwrap().starts_with("gpu  30 permits"),
            "{text}"
        );
        told.extend(jobs.find_iter(&text).map(|found| found.as_str().to_owned()));
        let [_, last, all] = shown(&text);
        if last == all {
            break;
        }
        top.press("\x1b[6~");
        top.wait("the next page", |text| shown(text)[1] > last);
    }
    assert_eq!(told.len(), 30, "{told:?}");
    top.wait_for("CHANGES (1)");
    // There is nothing beyond the end, and less of it when permits go.
    top.press("\x1b[F\x1b[6~jj\x1b[5~");
    top.wait("a page above the end", |text| {
        shown(text)[1] < shown(text)[2]
    });
    drop(permits);
    top.wait("what is left", |text| {
        let [first, last, all] = shown(text);
        !text.contains("PERMITS") && first > 1 && last == all
    });
    top.press("q");
    assert!(top.ends().success());
}

#[test]
fn what_is_looked_into_tells_of_this_limit_only_and_why_it_is_paused() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    let limiter = Limiter::open(&db).unwrap();
    limiter.define(Limit::new("calls").per_hour(10)).unwrap();
    limiter.define(Limit::slots("gpu", 1)).unwrap();
    for _ in 0..2 {
        limiter.pause("calls", Backoff::strike()).unwrap();
    }
    let _elsewhere = limiter.acquire("gpu").unwrap();
    let file = quotalite::rusqlite::Connection::open(&db).unwrap();
    let evil = "UPDATE limit_change SET program = char(27) || ']0;title' || char(7, 155) || '2J'";
    file.execute(evil, []).unwrap();
    drop(file);
    let mut top = Terminal::start(&mut top(&db), 24, 100);
    top.wait_for("paused ");
    top.press("\r");
    top.wait_for("CHANGES (1)");
    let text = top.text();
    let paused =
        r"paused since [0-9:]{8} until [0-9:]{8}, after [12] strikes?: `quotalite resume` lifts it";
    assert!(Regex::new(paused).unwrap().is_match(&text), "{text}");
    assert!(!text.contains("PROCESSES"), "{text}");
    assert!(text.contains("by ?]0;title??2J "), "{text}");
    let pid = std::process::id();
    let booked = limiter.book(("calls", 3)).unwrap();
    top.wait_for("PROCESSES (1)");
    top.wait_for(&format!("process {pid}  in "));
    drop(booked);
    top.wait("nobody", |text| !text.contains("PROCESSES"));
    top.press("\x1b");
    top.wait_for("MORE IN");
    top.press("j\r");
    top.wait_for(&format!("process {pid}  held for"));
    top.wait_for("PROCESSES (1)");
    let written = String::from_utf8_lossy(&top.written.lock().unwrap()).into_owned();
    assert!(!written.contains("]0;title\u{7}"), "{written:?}");
    top.press("q");
    assert!(top.ends().success());
}

#[test]
fn what_blocks_a_limit_is_seen_at_every_width() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    let limiter = Limiter::open(&db).unwrap();
    let key = "global:llm:a-provider:a-model-with-a-long-name:rpm";
    limiter
        .define(Limit::new(key).rates("10/s, 300/min"))
        .unwrap();
    limiter.acquire((key, 5)).unwrap();
    let pause = Backoff::planned(Duration::from_mins(10));
    limiter.pause(key, pause).unwrap();
    for columns in [40, 80, 120, 200] {
        let mut top = Terminal::start(&mut top(&db), 12, columns);
        top.wait_for("global:llm:");
        top.wait_for("paused ");
        let text = top.text();
        assert!(text.contains("USED") && text.contains('5'), "{text}");
        top.press("q");
        assert!(top.ends().success());
    }
}

#[test]
fn the_terminal_is_put_back_however_it_ends() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    let limiter = Limiter::open(&db).unwrap();
    limiter.define(Limit::new("calls").per_hour(1_000)).unwrap();
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
        let top = Terminal::start(&mut top(&db), 24, 80);
        top.wait_for("calls");
        top.signal(signal);
        assert_eq!(top.ends().signal(), Some(signal as i32));
    }
    // ^C is a key here.
    let mut top = Terminal::start(&mut top(&db), 24, 80);
    top.wait_for("calls");
    top.press("\x03");
    assert_eq!(top.ends().code(), Some(0));
}

#[test]
fn it_ends_when_its_terminal_hangs_up() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    let limiter = Limiter::open(&db).unwrap();
    limiter
        .define(Limit::new("calls").per_hour(1_000_000))
        .unwrap();
    let top = Terminal::start(&mut top(&db), 24, 80);
    top.wait_for("calls");
    let is_over = AtomicBool::new(false);
    let status = thread::scope(|scope| {
        // So that it has something to draw.
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                limiter.acquire("calls").unwrap();
                thread::sleep(Duration::from_millis(10));
            }
        });
        let status = top.hang_up_after(Duration::ZERO).wait().unwrap();
        is_over.store(true, Ordering::Relaxed);
        status
    });
    assert_eq!(status.code(), Some(125), "{status}");
}

#[test]
fn no_key_is_lost_when_the_size_changes() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    let limiter = Limiter::open(&db).unwrap();
    limiter.define(Limit::new("calls").per_hour(9)).unwrap();
    let mut top = Terminal::start(&mut top(&db), 24, 80);
    top.wait_for("calls");
    for round in 0..300 {
        top.press("?");
        top.resize(24, 100);
        top.wait("help", |text| text.contains("look into the limit"));
        top.press("x");
        top.resize(24, 60 + round % 20);
        top.wait("no help", |text| !text.contains("look into the limit"));
    }
    top.press("q");
    assert!(top.ends().success());
}

/// Whatever it does just then: somebody types, so that it mostly reads.
#[test]
fn no_moment_to_hang_up_is_a_bad_one() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    let limiter = Limiter::open(&db).unwrap();
    limiter.define(Limit::new("calls").per_hour(9)).unwrap();
    for round in 0..200 {
        let terminal = Terminal::start(&mut top(&db), 8, 40);
        terminal.wait_for("calls");
        let typing = Duration::from_micros(fastrand::u64(0..3_000));
        let mut program = terminal.hang_up_after(typing);
        let deadline = Instant::now() + Duration::from_secs(20);
        let status = loop {
            if let Some(status) = program.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                program.kill().unwrap();
                panic!("round {round}: it goes on without a terminal");
            }
            thread::sleep(Duration::from_millis(1));
        };
        let has_ended = status.code() == Some(125) || status.signal() == Some(1);
        assert!(has_ended, "round {round}: {status}");
    }
}

#[test]
fn without_colours_there_are_none() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    let limiter = Limiter::open(&db).unwrap();
    limiter.define(Limit::new("calls").per_hour(1_000)).unwrap();
    limiter.acquire(("calls", 1_000)).unwrap();
    let has_colours = |variables: &[(&str, &str)]| {
        let mut top = Terminal::start(top(&db).envs(variables.iter().copied()), 24, 80);
        top.wait_for("calls");
        top.press("q");
        let written = Arc::clone(&top.written);
        assert!(top.ends().success());
        let written = String::from_utf8_lossy(&written.lock().unwrap()).into_owned();
        regex::Regex::new("\x1b\\[[0-9;]*(3[0-7]|38;5;[0-9]+)[;m]")
            .unwrap()
            .is_match(&written)
    };
    assert!(has_colours(&[]));
    assert!(!has_colours(&[("NO_COLOR", "1")]));
}

#[test]
fn where_there_is_no_terminal_it_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    drop(Limiter::open(&db).unwrap());
    let piped = top(&db).stdin(Stdio::null()).output().unwrap();
    assert_eq!(piped.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&piped.stderr).contains("needs a terminal"));
    assert_eq!(piped.stdout, b"");
    let dumb = Terminal::start(top(&db).env("TERM", "dumb"), 24, 80);
    dumb.wait_for("needs a terminal");
    assert_eq!(dumb.ends().code(), Some(64));
}
