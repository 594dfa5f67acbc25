//! Disks that fill up or fail, namespaces, and files that must not grow for ever.
#![cfg(target_os = "linux")]
mod support;

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use quotalite::{Booking, Decision, Error, HOUR, Limit, Limiter, Request, SECOND, Timestamp};
use support::audit::audit;
use support::mount::{Mount, fill};
use support::processes::{
    Diary, await_signal, command_under, in_a_pid_namespace, number, path, play, read_diaries,
    signal_by, size, spawn, start,
};
use support::{Scratch, scratch};

#[test]
#[ignore = "the entry of child processes"]
fn child() {
    play(&[
        ("acquire in spite of faults", acquire_in_spite_of_faults),
        ("say the time", say_the_time),
        ("book", book_and_sleep),
        ("use up", use_up),
        ("open in vain", open_in_vain),
        ("acquire when told", acquire_when_told),
    ]);
}

#[test]
fn a_full_disk_is_an_error_that_passes_with_its_cause() {
    let scratch = scratch();
    let Some(_mount) = Mount::tmpfs(scratch.path(), "512k") else {
        println!("skipped: this user may not mount a filesystem");
        return;
    };
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter
        .define(Limit::new("mail").per_hour(1_000_000))
        .unwrap();
    limiter.define(Limit::new("slow").per_second(1)).unwrap();
    let diary_directory = support::scratch();
    let diary_path = diary_directory.path().join("diary");
    let mut diary = Diary::open(&diary_path);
    let ask = Request::new().take("mail", 1);
    for round in 0..3 {
        for _ in 0..20 {
            diary.note(
                limiter.try_acquire(&ask).unwrap().granted().unwrap().at(),
                &ask,
            );
        }
        let ballast = scratch.path().join("ballast");
        fill(&ballast);
        let mut failures = 0;
        for _ in 0..500 {
            match limiter.try_acquire(&ask) {
                Ok(decision) => diary.note(decision.granted().unwrap().at(), &ask),
                Err(Error::Sqlite { .. }) => failures += 1,
                Err(error) => panic!("{error:?}"),
            }
            if let Err(error) = limiter.book("slow").and_then(Booking::cancel) {
                assert!(matches!(error, Error::Sqlite { .. }), "{error:?}");
            }
        }
        println!("round {round}: {failures} of 500 failed");
        assert!(failures > 0, "the disk was not full");
        // Looking needs no room.
        limiter.usage("mail").unwrap();
        std::fs::remove_file(&ballast).unwrap();
        diary.note(
            limiter.try_acquire(&ask).unwrap().granted().unwrap().at(),
            &ask,
        );
        let report = audit(&scratch.file(), &read_diaries([&diary_path]));
        report.assert_clean();
    }
}

#[test]
fn a_file_that_cannot_be_made_on_a_full_disk_is_made_later() {
    let scratch = scratch();
    let Some(full) = Mount::tmpfs(scratch.path(), "64k") else {
        println!("skipped: this user may not mount a filesystem");
        return;
    };
    let ballast = scratch.path().join("ballast");
    fill(&ballast);
    for _ in 0..3 {
        let opened = Limiter::open(scratch.file());
        assert!(
            matches!(opened, Err(Error::Sqlite { .. } | Error::Io { .. })),
            "{opened:?}"
        );
    }
    drop(full);
    let Some(_roomy) = Mount::tmpfs(scratch.path(), "1m") else {
        return;
    };
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(Limit::new("mail").per_second(1)).unwrap();
    assert!(limiter.try_acquire("mail").unwrap().is_granted());
}

fn acquire_in_spite_of_faults() {
    let mut diary = Diary::open(&path("DIARY"));
    let ask = Request::new().take("mail", 1).take("tokens", 5);
    let mut limiter = None;
    for _ in 0..number("COUNT") {
        let result = match &limiter {
            None => Limiter::builder(path("FILE"))
                .busy_deadline(SECOND / 10)
                .open()
                .map(|opened| {
                    limiter = Some(opened);
                    None
                }),
            Some(limiter) if fastrand::u8(0..4) == 0 => {
                // Books, and gives it back.
                limiter
                    .book("slow")
                    .and_then(|booking| booking.cancel().map(|()| None))
            }
            Some(limiter) => limiter.try_acquire(&ask).map(Decision::granted),
        };
        match result {
            Ok(Some(permit)) => diary.note(permit.at(), &ask),
            Ok(None)
            | Err(
                Error::Sqlite { .. } | Error::Io { .. } | Error::Moved { .. } | Error::Busy { .. },
            ) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// Runs a child with a fault put into its calls by `strace`, and audits what it leaves. Returns whether the
/// fault came to pass, or nothing if there is no `strace`.
fn fires(fault: &str) -> Option<bool> {
    let scratch = scratch();
    {
        let limiter = Limiter::open(scratch.file()).unwrap();
        limiter.define(Limit::new("mail").per_hour(1_000)).unwrap();
        limiter
            .define(Limit::new("tokens").per_hour(5_000))
            .unwrap();
        limiter.define(Limit::new("slow").per_second(1)).unwrap();
    }
    let (file, diary) = (scratch.file(), scratch.path().join("diary"));
    let trace = scratch.path().join("trace");
    let inject = format!("inject={fault}");
    let strace = [
        "strace",
        "-f",
        "-o",
        trace.to_str().unwrap(),
        "-P",
        file.to_str().unwrap(),
    ];
    let wal = format!("{}-wal", file.display());
    let shm = format!("{}-shm", file.display());
    let strace = [&strace[..], &["-P", &wal, "-P", &shm, "-e", &inject]].concat();
    let arguments = [
        ("FILE", file.to_str().unwrap()),
        ("DIARY", diary.to_str().unwrap()),
        ("COUNT", "60"),
    ];
    let status = match command_under(&strace, "acquire in spite of faults", &arguments).status() {
        Err(error) => {
            println!("skipped: strace cannot be run: {error}");
            return None;
        }
        Ok(status) => status,
    };
    // `strace` ends as the child has ended.
    let killed = fault.contains("signal=KILL") && status.signal() == Some(9);
    assert!(status.success() || killed, "{fault}: {status}");
    let acknowledged = read_diaries([&diary]);
    audit(&file, &acknowledged).assert_clean();
    let limiter = Limiter::open(&file).unwrap();
    assert!(limiter.try_acquire("mail").unwrap().is_granted(), "{fault}");
    assert!(
        limiter.book("slow").unwrap().wait_time() <= SECOND,
        "{fault}"
    );
    audit(&file, &acknowledged).assert_clean();
    if killed {
        // What was committed but not acknowledged counts as used: at most one permit.
        let total: i64 = scratch.sqlite("SELECT count(*) FROM charge WHERE limit_id = 1");
        assert!(
            usize::try_from(total).unwrap() <= acknowledged.len() / 2 + 2,
            "{fault}"
        );
    }
    let injected = || {
        let trace = std::fs::read_to_string(&trace).unwrap();
        trace.contains("(INJECTED)")
    };
    Some(killed || injected())
}

/// At one call in some, and at all from one on.
#[test]
fn calls_of_the_system_that_fail_are_errors_and_leave_the_file_whole() {
    let step = size(9, 1);
    // A call that is interrupted for ever would be repeated for ever, so that this comes once. Locks are left
    // alone: an unlock cannot fail in the kernel, and SQLite waits ten seconds for one that is made to.
    let faults = [
        ("pwrite64", "EIO", &["", "+"][..]),
        ("pwrite64", "ENOSPC", &["", "+"]),
        ("pread64", "EIO", &["", "+"]),
        ("fdatasync,fsync", "EIO", &["", "+"]),
        ("ftruncate", "EIO", &["", "+"]),
        ("openat", "EMFILE", &[""]),
        ("pwrite64,pread64,fdatasync,fsync", "EINTR", &[""]),
    ];
    for (calls, error, repeats) in faults {
        let mut fired = 0;
        for when in (1..40).step_by(step) {
            for again in repeats {
                match fires(&format!("{calls}:error={error}:when={when}{again}")) {
                    None => return,
                    Some(it_has) => fired += usize::from(it_has),
                }
            }
        }
        println!("{calls} {error}: {fired} times");
        assert!(fired > 0, "{calls}");
    }
}

#[test]
fn a_process_killed_at_any_call_of_the_system_leaves_the_file_whole() {
    let step = size(17, 1);
    for calls in [
        "pwrite64",
        "fcntl",
        "pread64",
        "fdatasync,fsync",
        "unlink",
        "close",
    ] {
        let mut fired = 0;
        for when in (1..80).step_by(step) {
            match fires(&format!("{calls}:signal=KILL:when={when}")) {
                None => return,
                Some(it_has) => fired += usize::from(it_has),
            }
        }
        println!("{calls}: killed {fired} times");
        assert!(fired > 0, "{calls}");
    }
}

fn say_the_time() {
    let now = Limiter::open(path("FILE")).unwrap().now().unwrap();
    std::fs::write(path("ANSWER"), now.as_nanos().to_string()).unwrap();
}

#[test]
fn processes_in_other_time_namespaces_read_the_same_time() {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(Limit::new("mail").per_second(1)).unwrap();
    let (file, answer) = (scratch.file(), scratch.path().join("answer"));
    let arguments = [
        ("FILE", file.to_str().unwrap()),
        ("ANSWER", answer.to_str().unwrap()),
    ];
    // The uptime bounds how far back a namespace can be.
    for shift in ["86400", "-10"] {
        let unshare = [
            "unshare",
            "-T",
            "--boottime",
            shift,
            "--monotonic",
            shift,
            "--",
        ];
        let before = limiter.now().unwrap();
        let status = command_under(&unshare, "say the time", &arguments).status();
        if !status.is_ok_and(|status| status.success()) {
            println!("skipped: this user may not make a time namespace");
            return;
        }
        let after = limiter.now().unwrap();
        let there: i64 = std::fs::read_to_string(&answer).unwrap().parse().unwrap();
        let there = Timestamp::from_nanos(there);
        assert!(
            before <= there && there <= after,
            "{shift}: {before:?} {there:?} {after:?}"
        );
    }
}

fn book_and_sleep() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let bookings: Vec<_> = (0..100).map(|_| limiter.book("slow").unwrap()).collect();
    signal_by(&path("READY"));
    std::thread::sleep(HOUR);
    drop(bookings);
}

#[test]
fn an_owner_in_another_pid_namespace_is_alive_until_it_dies() {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(Limit::new("slow").per_second(1)).unwrap();
    let (file, ready) = (scratch.file(), scratch.path().join("ready"));
    let arguments = [
        ("FILE", file.to_str().unwrap()),
        ("READY", ready.to_str().unwrap()),
    ];
    let Some(unshare) = in_a_pid_namespace() else {
        return;
    };
    let owner = start(command_under(&unshare, "book", &arguments));
    await_signal(&ready);
    let pid: i64 = scratch.sqlite("SELECT pid FROM owner");
    assert_eq!(pid, 1, "it counts from one there");
    for _ in 0..3 {
        let refused = limiter.book_within("slow", 5 * SECOND);
        assert!(matches!(refused, Err(Error::TooLate { .. })), "{refused:?}");
    }
    owner.kill();
    // The kernel ends the namespace a moment after.
    support::processes::eventually("the bookings come back", || {
        limiter.book_within("slow", SECOND).is_ok()
    });
}

fn use_up() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    for _ in 0..number("COUNT") {
        assert!(limiter.try_acquire("short").unwrap().is_granted());
    }
}

fn length(scratch: &Scratch, suffix: &str) -> u64 {
    let file = scratch.path().join(format!("limits.db{suffix}"));
    std::fs::metadata(file).map_or(0, |metadata| metadata.len())
}

/// Real time: what has expired is what is swept.
#[test]
fn under_load_neither_the_wal_nor_the_file_grows_with_what_has_expired() {
    const MOST_WAL_BYTES: u64 = 24 << 20;
    const MOST_FILE_BYTES: u64 = 8 << 20;
    let count: u64 = size(80_000, 300_000);
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter
        .define(Limit::new("short").rate(1_000_000, SECOND / 10))
        .unwrap();
    // Used once, and by nobody after that.
    let forsaken = Limit::new("forsaken").rate(10_000, SECOND / 10);
    limiter.define(forsaken).unwrap();
    for _ in 0..500 {
        assert!(limiter.try_acquire("forsaken").unwrap().is_granted());
    }
    let (file, count) = (scratch.file(), count.to_string());
    let arguments = [("FILE", file.to_str().unwrap()), ("COUNT", count.as_str())];
    let users = [(); 2].map(|()| spawn("use up", &arguments));
    let mut largest_wal = 0;
    let mut largest_file = 0;
    let mut most_rows = 0;
    let mut running = Vec::from(users);
    while !running.is_empty() {
        for _ in 0..100 {
            limiter.peek("short").unwrap();
            limiter.usage("short").unwrap();
        }
        largest_wal = largest_wal.max(length(&scratch, "-wal"));
        largest_file = largest_file.max(length(&scratch, ""));
        let rows: i64 = scratch.sqlite("SELECT count(*) FROM charge");
        most_rows = most_rows.max(rows);
        std::thread::sleep(Duration::from_millis(5));
        running = running
            .into_iter()
            .filter_map(support::processes::Process::still_running)
            .collect();
    }
    println!(
        "wal at most {largest_wal} bytes, file {largest_file} bytes, {most_rows} rows, of twice {count}"
    );
    assert!(largest_wal < MOST_WAL_BYTES, "{largest_wal}");
    assert!(largest_file < MOST_FILE_BYTES, "{largest_file}");
    let forsaken: i64 = scratch.sqlite("SELECT count(*) FROM charge WHERE limit_id = 2");
    assert!(
        forsaken <= 1,
        "{forsaken} charges of a limit that nobody uses"
    );
    audit(&scratch.file(), &[]).assert_clean();
}

fn open_in_vain() {
    for _ in 0..3 {
        let opened = Limiter::open(path("FILE"));
        assert!(matches!(opened, Err(Error::Io { .. })), "{opened:?}");
    }
}

/// It would write without telling those who answer from memory.
#[test]
fn whoever_cannot_share_what_it_writes_does_not_open_the_file() {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(Limit::new("mail").per_hour(1)).unwrap();
    let (file, trace) = (scratch.file(), scratch.path().join("trace"));
    for error in ["ENOSPC", "EIO"] {
        let inject = format!("inject=fallocate:error={error}");
        let strace = ["strace", "-f", "-o", trace.to_str().unwrap(), "-e", &inject];
        let arguments = [("FILE", file.to_str().unwrap())];
        match command_under(&strace, "open in vain", &arguments).status() {
            Err(error) => return println!("skipped: strace cannot be run: {error}"),
            Ok(status) => assert!(status.success(), "{error}: {status}"),
        }
        let trace = std::fs::read_to_string(&trace).unwrap();
        assert!(trace.contains("(INJECTED)"), "{error}");
    }
    assert!(limiter.try_acquire("mail").unwrap().is_granted());
}

fn acquire_when_told() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    assert!(limiter.try_acquire("mail").unwrap().is_granted());
    signal_by(&path("READY"));
    await_signal(&path("GO"));
    let _ = limiter.try_acquire("mail");
}

/// The kernel kills whoever touches a page that is no longer there. The next one finds the file whole.
#[test]
fn what_is_cut_short_kills_who_has_it_open_and_nobody_after_that() {
    for suffix in ["-shm", "-lock"] {
        let scratch = scratch();
        let limiter = Limiter::open(scratch.file()).unwrap();
        limiter.define(Limit::new("mail").per_hour(10)).unwrap();
        drop(limiter);
        let (file, ready, go) = (
            scratch.file(),
            scratch.path().join("ready"),
            scratch.path().join("go"),
        );
        let child = spawn(
            "acquire when told",
            &[
                ("FILE", file.to_str().unwrap()),
                ("READY", ready.to_str().unwrap()),
                ("GO", go.to_str().unwrap()),
            ],
        );
        await_signal(&ready);
        let cut = scratch.path().join(format!("limits.db{suffix}"));
        std::fs::File::options()
            .write(true)
            .open(&cut)
            .and_then(|cut| cut.set_len(0))
            .unwrap();
        signal_by(&go);
        let status = child.wait();
        assert_eq!(
            status.signal(),
            Some(nix::libc::SIGBUS),
            "{suffix}: {status}"
        );
        let limiter = Limiter::open(scratch.file()).unwrap();
        let used = 10 - limiter.usage("mail").unwrap().available();
        assert!((1..=2).contains(&used), "{suffix}: {used}");
        assert!(limiter.try_acquire("mail").unwrap().is_granted());
        audit(&scratch.file(), &[]).assert_clean();
    }
}
