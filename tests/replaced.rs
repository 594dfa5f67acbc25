//! Files that go away under a running process, and processes that double: nobody goes on with a file
//! that others no longer share.
#![cfg(target_os = "linux")]
mod support;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::ForkResult;
use quotalite::{Booking, Error, Limit, Limiter, Request, SECOND};
use support::audit::audit;
use support::processes::{Diary, await_signal, number, path, play, read_diaries, signal_by, spawn};
use support::{Scratch, open_raw, scratch};

#[test]
#[ignore = "the entry of child processes"]
fn child() {
    play(&[
        ("fork", fork_and_go_on),
        ("fork and leave it alone", fork_and_leave_it_alone),
        ("fork with a booking", fork_with_a_booking),
        ("come and go", come_and_go),
        ("stay idle, then leave", stay_idle_then_leave),
    ]);
}

fn mail() -> quotalite::LimitBuilder {
    Limit::new("mail").per_hour(1_000_000)
}

fn open_with_mail(file: &Path) -> Limiter {
    let limiter = Limiter::open(file).unwrap();
    limiter.define(mail()).unwrap();
    limiter
}

/// Copies and removals are left to other programs: this process holds locks on the files, and would
/// lose them all by closing a descriptor of its own.
fn run(program: &str, arguments: &[&Path]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

impl Files {
    fn of(scratch: &Scratch) -> Self {
        let beside = |suffix: &str| scratch.path().join(format!("limits.db{suffix}"));
        Self {
            database: beside(""),
            wal: beside("-wal"),
            shm: beside("-shm"),
            lock: beside("-lock"),
        }
    }
}

struct Files {
    database: PathBuf,
    wal: PathBuf,
    shm: PathBuf,
    lock: PathBuf,
}

fn acquire_times(limiter: &Limiter, count: usize) {
    for _ in 0..count {
        assert!(limiter.try_acquire("mail").unwrap().is_granted());
    }
}

/// Real time: the stamps of files are the kernel's, and a process that has lost its WAL tells by them
/// whether somebody else can have written since.
fn settle() {
    std::thread::sleep(std::time::Duration::from_millis(100));
}

fn charges(scratch: &Scratch) -> i64 {
    scratch.sqlite("SELECT count(*) FROM charge")
}

#[test]
fn a_file_that_was_removed_is_not_granted_from_and_not_made_again() {
    let scratch = scratch();
    let files = Files::of(&scratch);
    let limiter = open_with_mail(&files.database);
    acquire_times(&limiter, 3);
    run(
        "rm",
        &[&files.database, &files.wal, &files.shm, &files.lock],
    );
    for _ in 0..3 {
        assert!(matches!(
            limiter.try_acquire("mail"),
            Err(Error::Moved { .. })
        ));
        assert!(matches!(limiter.usage("mail"), Err(Error::Moved { .. })));
        assert!(matches!(limiter.book("mail"), Err(Error::Moved { .. })));
        assert!(matches!(limiter.define(mail()), Err(Error::Moved { .. })));
    }
    assert_eq!(scratch.path().read_dir().unwrap().count(), 0);
    // Somebody opens it on purpose, and then everybody goes on there.
    let other = open_with_mail(&files.database);
    acquire_times(&other, 1);
    acquire_times(&limiter, 1);
    assert_eq!(charges(&scratch), 2);
}

#[test]
fn whoever_only_looks_is_told_at_once_that_the_file_was_removed() {
    let scratch = scratch();
    let files = Files::of(&scratch);
    let limiter = open_with_mail(&files.database);
    acquire_times(&limiter, 3);
    run(
        "rm",
        &[&files.database, &files.wal, &files.shm, &files.lock],
    );
    let asked = std::time::Instant::now();
    let looked = limiter.usage("mail");
    assert!(matches!(looked, Err(Error::Moved { .. })), "{looked:?}");
    assert!(asked.elapsed() < SECOND, "after {:?}", asked.elapsed());
}

#[test]
fn a_process_whose_sidecars_were_removed_keeps_what_it_had_charged() {
    let scratch = scratch();
    let files = Files::of(&scratch);
    let limiter = open_with_mail(&files.database);
    settle();
    acquire_times(&limiter, 3);
    run("rm", &[&files.wal, &files.shm]);
    assert!(matches!(
        limiter.try_acquire("mail"),
        Err(Error::Moved { .. })
    ));
    acquire_times(&limiter, 2);
    audit(&files.database, &[]).assert_clean();
    assert_eq!(charges(&scratch), 5);
}

/// Whoever holds a booking sleeps until its instant and then goes ahead, whatever became of the
/// sidecars meanwhile: nobody else may have that instant.
#[test]
fn bookings_in_hand_stand_while_their_process_opens_the_file_anew() {
    for removed in ["sidecars", "lock file"] {
        let scratch = scratch();
        let files = Files::of(&scratch);
        let limiter = open_with_mail(&files.database);
        limiter.define(Limit::new("slow").per_second(1)).unwrap();
        settle();
        let in_hand: Vec<Booking> = (0..10).map(|_| limiter.book("slow").unwrap()).collect();
        match removed {
            "sidecars" => run("rm", &[&files.wal, &files.shm]),
            _ => run("rm", &[&files.lock]),
        }
        assert!(matches!(
            limiter.try_acquire("mail"),
            Err(Error::Moved { .. })
        ));
        acquire_times(&limiter, 1);
        assert!(files.lock.exists());
        let other = Limiter::open(&files.database).unwrap();
        let behind = other.book("slow").unwrap();
        assert!(
            behind.at() > in_hand[9].at(),
            "{removed}: another one got a place {:?} away, in front of 9 that were given out before",
            behind.wait_time(),
        );
    }
}

#[test]
fn a_database_renamed_over_the_file_takes_its_place_whole() {
    let scratch = scratch();
    let files = Files::of(&scratch);
    let limiter = open_with_mail(&files.database);
    acquire_times(&limiter, 50);
    let other = scratch.path().join("other.db");
    acquire_times(&open_with_mail(&other), 7);
    run("mv", &[&other, &files.database]);
    assert!(matches!(
        limiter.try_acquire("mail"),
        Err(Error::Moved { .. })
    ));
    // The old WAL still stands beside the new file, and belongs to the old one.
    acquire_times(&limiter, 2);
    audit(&files.database, &[]).assert_clean();
    assert_eq!(
        charges(&scratch),
        9,
        "those of the other file and the new ones"
    );
}

#[test]
fn a_database_with_its_sidecars_removed_and_another_renamed_over_it_works() {
    let scratch = scratch();
    let files = Files::of(&scratch);
    let limiter = open_with_mail(&files.database);
    acquire_times(&limiter, 50);
    let other = scratch.path().join("other.db");
    acquire_times(&open_with_mail(&other), 7);
    run("rm", &[&files.wal, &files.shm]);
    run("mv", &[&other, &files.database]);
    assert!(matches!(
        limiter.try_acquire("mail"),
        Err(Error::Moved { .. })
    ));
    acquire_times(&limiter, 2);
    audit(&files.database, &[]).assert_clean();
    assert_eq!(charges(&scratch), 9);
}

#[test]
fn a_copy_renamed_over_the_file_takes_its_place_whole() {
    let scratch = scratch();
    let files = Files::of(&scratch);
    let limiter = open_with_mail(&files.database);
    acquire_times(&limiter, 50);
    // A copy of the database alone has what was copied into it from the WAL.
    open_raw(&files.database)
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();
    let copy = scratch.path().join("copy.db");
    run("cp", &[&files.database, &copy]);
    acquire_times(&limiter, 50);
    run("mv", &[&copy, &files.database]);
    assert!(matches!(
        limiter.try_acquire("mail"),
        Err(Error::Moved { .. })
    ));
    acquire_times(&limiter, 2);
    audit(&files.database, &[]).assert_clean();
}

fn stay_idle_then_leave() {
    let limiter = open_with_mail(&path("FILE"));
    acquire_times(&limiter, 20);
    signal_by(&path("READY"));
    await_signal(&path("LEAVE"));
    drop(limiter);
}

#[test]
fn a_process_that_leaves_after_the_sidecars_were_removed_overwrites_nothing() {
    let scratch = scratch();
    let files = Files::of(&scratch);
    let (ready, leave) = (scratch.path().join("ready"), scratch.path().join("leave"));
    let arguments = [
        ("FILE", files.database.to_str().unwrap()),
        ("READY", ready.to_str().unwrap()),
        ("LEAVE", leave.to_str().unwrap()),
    ];
    let idle = spawn("stay idle, then leave", &arguments);
    await_signal(&ready);
    run("rm", &[&files.wal, &files.shm]);
    // Two others come and go, and what they have charged is in the database itself.
    let diary_path = scratch.path().join("diary");
    for _ in 0..2 {
        let limiter = open_with_mail(&files.database);
        let mut diary = Diary::open(&diary_path);
        let ask = Request::new().take("mail", 1);
        for _ in 0..300 {
            let permit = limiter.try_acquire(&ask).unwrap().granted().unwrap();
            diary.note(permit.at(), &ask);
        }
    }
    signal_by(&leave);
    idle.wait_well();
    audit(&files.database, &read_diaries([&diary_path])).assert_clean();
}

/// How many permits the parent and the child of a fork acquire each.
const AFTER_FORK: u64 = 300;

/// # Panics
/// If the system cannot fork.
#[expect(
    unsafe_code,
    reason = "fork is what is tested; the child goes on with threads that it has not, but no lock is held"
)]
fn fork() -> ForkResult {
    // SAFETY: the other threads of this process (the test harness, the pool's) sleep and hold no lock.
    unsafe { nix::unistd::fork() }.unwrap()
}

/// Acquires so often, and says how often it failed. `Moved` is no failure but the truth, and is followed
/// by a call that goes on.
fn note_many(limiter: &Limiter, diary: &mut Diary, count: u64) -> u64 {
    let ask = Request::new().take("mail", 1);
    let mut failures = 0;
    for _ in 0..count {
        match limiter.try_acquire(&ask) {
            Ok(decision) => diary.note(decision.granted().unwrap().at(), &ask),
            Err(Error::Moved { .. }) => {}
            Err(_) => failures += 1,
        }
    }
    failures
}

/// Whether this process holds a lock on a file, as the kernel sees it.
fn holds_a_lock_on(file: &Path) -> bool {
    let inode = format!(":{}", std::fs::metadata(file).unwrap().ino());
    let me = std::process::id().to_string();
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    locks.lines().any(|line| {
        let mut fields = line.split_whitespace();
        fields.any(|field| field == me) && fields.any(|field| field.ends_with(&inode))
    })
}

/// The parent leaves first; the child goes on until the test says so.
fn fork_and_go_on() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let mut diary = Diary::open(&path("DIARY"));
    assert_eq!(note_many(&limiter, &mut diary, AFTER_FORK), 0);
    match fork() {
        ForkResult::Parent { .. } => {
            assert_eq!(note_many(&limiter, &mut diary, AFTER_FORK), 0);
            drop(limiter);
        }
        ForkResult::Child => {
            let mut diary = Diary::open(&path("CHILD_DIARY"));
            let mut failures = note_many(&limiter, &mut diary, AFTER_FORK);
            // Without, the next process to leave takes itself for the last one, and removes the WAL.
            failures += u64::from(!holds_a_lock_on(&path("FILE")));
            signal_by(&path("READY"));
            while !path("LEAVE").exists() {
                failures += note_many(&limiter, &mut diary, 20);
            }
            drop(limiter);
            std::fs::write(path("FAILURES"), failures.to_string()).unwrap();
            signal_by(&path("DONE"));
            std::process::exit(0);
        }
    }
}

/// Opens, acquires and leaves, over and over: each time it may be the last one to close the file.
fn come_and_go() {
    let mut diary = Diary::open(&path("DIARY"));
    for _ in 0..number("COUNT") {
        let limiter = Limiter::open(path("FILE")).unwrap();
        assert_eq!(note_many(&limiter, &mut diary, 3), 0);
    }
}

#[test]
fn a_forked_child_goes_on_after_its_parent_has_left() {
    let scratch = scratch();
    let files = Files::of(&scratch);
    drop(open_with_mail(&files.database));
    let beside = |name: &str| scratch.path().join(name);
    let diaries = [beside("parent"), beside("child"), beside("visitor")];
    let (ready, leave, done) = (beside("ready"), beside("leave"), beside("done"));
    let failures = beside("failures");
    let arguments = [
        ("FILE", files.database.to_str().unwrap()),
        ("DIARY", diaries[0].to_str().unwrap()),
        ("CHILD_DIARY", diaries[1].to_str().unwrap()),
        ("READY", ready.to_str().unwrap()),
        ("LEAVE", leave.to_str().unwrap()),
        ("DONE", done.to_str().unwrap()),
        ("FAILURES", failures.to_str().unwrap()),
    ];
    spawn("fork", &arguments).wait_well();
    await_signal(&ready);
    // The parent has closed the file while the child had it open. So do others, who come now.
    let visitor = [
        ("FILE", files.database.to_str().unwrap()),
        ("DIARY", diaries[2].to_str().unwrap()),
        ("COUNT", "100"),
    ];
    spawn("come and go", &visitor).wait_well();
    signal_by(&leave);
    await_signal(&done);
    let acknowledged = read_diaries(&diaries);
    println!("{} acknowledged", acknowledged.len());
    let report = audit(&files.database, &acknowledged);
    report.assert_clean();
    assert_eq!(std::fs::read_to_string(failures).unwrap(), "0");
}

/// The child does nothing with the limiter but drop it, while the parent goes on.
fn fork_and_leave_it_alone() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let mut diary = Diary::open(&path("DIARY"));
    assert_eq!(note_many(&limiter, &mut diary, AFTER_FORK), 0);
    match fork() {
        ForkResult::Child => {
            drop(limiter);
            std::process::exit(0);
        }
        ForkResult::Parent { child } => {
            assert_eq!(note_many(&limiter, &mut diary, AFTER_FORK), 0);
            nix::sys::wait::waitpid(child, None).unwrap();
            assert_eq!(note_many(&limiter, &mut diary, AFTER_FORK), 0);
        }
    }
}

#[test]
fn a_forked_child_that_drops_the_limiter_harms_nobody() {
    let scratch = scratch();
    let files = Files::of(&scratch);
    let limiter = open_with_mail(&files.database);
    let (diary_path, my_diary_path) = (scratch.path().join("diary"), scratch.path().join("mine"));
    let arguments = [
        ("FILE", files.database.to_str().unwrap()),
        ("DIARY", diary_path.to_str().unwrap()),
    ];
    let forker = spawn("fork and leave it alone", &arguments);
    let mut diary = Diary::open(&my_diary_path);
    assert_eq!(note_many(&limiter, &mut diary, AFTER_FORK), 0);
    forker.wait_well();
    assert_eq!(note_many(&limiter, &mut diary, AFTER_FORK), 0);
    let acknowledged = read_diaries([&diary_path, &my_diary_path]);
    assert_eq!(acknowledged.len(), 5 * usize::try_from(AFTER_FORK).unwrap());
    audit(&files.database, &acknowledged).assert_clean();
}

/// Both have the bookings after the fork, but they are the parent's.
fn fork_with_a_booking() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let mut bookings: Vec<Booking> = (0..20).map(|_| limiter.book("slow").unwrap()).collect();
    match fork() {
        ForkResult::Child => {
            drop(bookings);
            // The child works, and has a place of its own in line.
            let own = limiter.book("slow").unwrap();
            assert!(own.wait_time() >= 15 * SECOND, "{:?}", own.wait_time());
            own.cancel().unwrap();
            signal_by(&path("DROPPED"));
            await_signal(&path("LEAVE"));
            std::process::exit(0);
        }
        ForkResult::Parent { .. } => {
            await_signal(&path("DROPPED"));
            bookings.pop().unwrap().cancel().unwrap();
            signal_by(&path("READY"));
            std::thread::sleep(quotalite::HOUR);
        }
    }
}

#[test]
fn a_booking_stays_the_parents_through_a_fork_and_dies_with_the_parent() {
    let scratch = scratch();
    let files = Files::of(&scratch);
    let limiter = open_with_mail(&files.database);
    limiter.define(Limit::new("slow").per_second(1)).unwrap();
    let beside = |name: &str| scratch.path().join(name);
    let (dropped, ready, leave) = (beside("dropped"), beside("ready"), beside("leave"));
    let arguments = [
        ("FILE", files.database.to_str().unwrap()),
        ("DROPPED", dropped.to_str().unwrap()),
        ("READY", ready.to_str().unwrap()),
        ("LEAVE", leave.to_str().unwrap()),
    ];
    let parent = spawn("fork with a booking", &arguments);
    await_signal(&ready);
    assert_eq!(
        charges(&scratch),
        19,
        "all but the one that the parent has cancelled"
    );
    let refused = limiter.book_within("slow", 2 * SECOND);
    assert!(matches!(refused, Err(Error::TooLate { .. })), "{refused:?}");
    parent.kill();
    assert!(limiter.acquire_within("slow", SECOND).is_ok());
    signal_by(&leave);
    // The forked child is nobody's to wait for; it has to see the signal before the directory goes.
    settle();
}
