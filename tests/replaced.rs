//! Files that go away under a running process, and processes that double: nobody goes on with a file
//! that others no longer share.
#![cfg(target_os = "linux")]
mod support;

use std::fmt::Debug;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::ForkResult;
use quotalite::{Booking, Error, Limit, Limiter, Request, SECOND};
use support::audit::audit;
use support::processes::{
    Diary, Process, await_signal, path, play, read_diaries, signal_by, spawn,
};
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

/// A database in a directory of its own, and what stands beside it.
struct Files {
    scratch: Scratch,
    database: PathBuf,
    wal: PathBuf,
    shm: PathBuf,
    lock: PathBuf,
}

impl Files {
    fn new() -> Self {
        let scratch = scratch();
        let beside = |suffix: &str| scratch.path().join(format!("limits.db{suffix}"));
        Self {
            database: beside(""),
            wal: beside("-wal"),
            shm: beside("-shm"),
            lock: beside("-lock"),
            scratch,
        }
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn remove_all(&self) {
        run("rm", &[&self.database, &self.wal, &self.shm, &self.lock]);
    }

    fn remove_sidecars(&self) {
        run("rm", &[&self.wal, &self.shm]);
    }

    /// Another database, from which seven were granted.
    fn another(&self) -> PathBuf {
        let other = self.beside("other.db");
        acquire_times(&open_with_mail(&other), 7);
        other
    }

    fn replace_by(&self, other: &Path) {
        run("mv", &[other, &self.database]);
    }

    fn charges(&self) -> i64 {
        self.scratch.sqlite("SELECT count(*) FROM charge")
    }

    /// A child that is given the database as `FILE` and, under each of these names, the path beside it
    /// that is called so.
    fn spawn(&self, role: &str, names: &[&str]) -> Process {
        let paths: Vec<PathBuf> = names.iter().map(|name| self.beside(name)).collect();
        let mut arguments = vec![("FILE", self.database.to_str().unwrap())];
        for (name, path) in names.iter().zip(&paths) {
            arguments.push((name, path.to_str().unwrap()));
        }
        spawn(role, &arguments)
    }
}

/// A new file with a limit in it, and a limiter on it.
fn with_mail() -> (Files, Limiter) {
    let files = Files::new();
    let limiter = open_with_mail(&files.database);
    (files, limiter)
}

#[track_caller]
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

#[track_caller]
fn assert_moved<T: Debug>(answer: Result<T, Error>) {
    match answer {
        Err(Error::Moved { .. }) => {}
        answer => panic!("{answer:?}"),
    }
}

/// Whoever has lost its files is told so once, and then goes on with those that stand there.
#[track_caller]
fn assert_told_and_goes_on(limiter: &Limiter, files: &Files) {
    assert_moved(limiter.try_acquire("mail"));
    acquire_times(limiter, 2);
    audit(&files.database, &[]).assert_clean();
}

#[test]
fn a_file_that_was_removed_is_not_granted_from_and_not_made_again() {
    let (files, limiter) = with_mail();
    acquire_times(&limiter, 3);
    files.remove_all();
    for _ in 0..3 {
        assert_moved(limiter.try_acquire("mail"));
        assert_moved(limiter.usage("mail"));
        assert_moved(limiter.book("mail"));
        assert_moved(limiter.define(mail()));
    }
    assert_eq!(files.scratch.path().read_dir().unwrap().count(), 0);
    // Somebody opens it on purpose, and then everybody goes on there.
    let other = open_with_mail(&files.database);
    acquire_times(&other, 1);
    acquire_times(&limiter, 1);
    assert_eq!(files.charges(), 2);
}

#[test]
fn a_permit_of_a_file_that_was_removed_harms_no_permit_of_the_file_that_stands_there_now() {
    let (files, limiter) = with_mail();
    let [old, older] = [(); 2].map(|()| limiter.acquire("mail").unwrap());
    settle();
    files.remove_all();
    let other = open_with_mail(&files.database);
    other.define(Limit::slots("slots", 1)).unwrap();
    assert_moved(limiter.try_acquire("mail"));
    let ask = Request::new().take("mail", 5).take("slots", 1);
    let new = limiter.acquire(&ask).unwrap();
    assert_moved(old.settle([("mail", 0)]));
    let settled = limiter
        .settle_all([(&older, [("mail", 0)]), (&new, [("mail", 2)])])
        .unwrap();
    assert!(
        matches!(settled[0], Err(Error::Moved { .. })) && settled[1].is_ok(),
        "{settled:?}"
    );
    drop(limiter.acquire(&ask).unwrap());
    assert!(other.try_acquire("slots").unwrap().is_granted());
}

#[test]
fn whoever_only_looks_is_told_at_once_that_the_file_was_removed() {
    let (files, limiter) = with_mail();
    acquire_times(&limiter, 3);
    files.remove_all();
    let asked = std::time::Instant::now();
    assert_moved(limiter.usage("mail"));
    assert!(asked.elapsed() < SECOND, "after {:?}", asked.elapsed());
}

#[test]
fn a_process_whose_sidecars_were_removed_keeps_what_it_had_charged() {
    let (files, limiter) = with_mail();
    settle();
    acquire_times(&limiter, 3);
    files.remove_sidecars();
    assert_told_and_goes_on(&limiter, &files);
    assert_eq!(files.charges(), 5);
}

/// Whoever holds a booking sleeps until its instant and then goes ahead, whatever became of the
/// sidecars meanwhile: nobody else may have that instant.
#[test]
fn bookings_in_hand_stand_while_their_process_opens_the_file_anew() {
    for removed in ["sidecars", "lock file"] {
        let (files, limiter) = with_mail();
        limiter.define(Limit::new("slow").per_second(1)).unwrap();
        settle();
        let in_hand: Vec<Booking> = (0..10).map(|_| limiter.book("slow").unwrap()).collect();
        match removed {
            "sidecars" => files.remove_sidecars(),
            _ => run("rm", &[&files.lock]),
        }
        assert_moved(limiter.try_acquire("mail"));
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

/// With the row of an owner its id is lost, and given out again, while the owner lives.
#[test]
fn whoever_books_after_an_owner_was_lost_with_the_wal_becomes_another_owner() {
    let (files, limiter) = with_mail();
    limiter.define(Limit::new("slow").per_second(1)).unwrap();
    drop(limiter);
    let lost: Vec<Limiter> = (0..3)
        .map(|_| Limiter::open(&files.database).unwrap())
        .collect();
    let in_hand: Vec<Booking> = lost
        .iter()
        .flat_map(|limiter| [limiter.book("slow").unwrap(), limiter.book("slow").unwrap()])
        .collect();
    files.remove_sidecars();
    let newcomers: Vec<Limiter> = (0..2)
        .map(|_| Limiter::open(&files.database).unwrap())
        .collect();
    for limiter in newcomers.iter().chain(&lost[..1]) {
        if let Err(error) = limiter.usage("slow") {
            assert_moved::<()>(Err(error));
        }
        let _used = limiter.book("slow").unwrap().accept();
        let _used = limiter.book("slow").unwrap().accept();
    }
    drop(in_hand);
    audit(&files.database, &[]).assert_clean();
}

#[test]
fn a_database_renamed_over_the_file_takes_its_place_whole() {
    let (files, limiter) = with_mail();
    acquire_times(&limiter, 50);
    // The old WAL will still stand beside the new file, and belong to the old one.
    files.replace_by(&files.another());
    assert_told_and_goes_on(&limiter, &files);
    assert_eq!(
        files.charges(),
        9,
        "those of the other file and the new ones"
    );
}

#[test]
fn a_database_with_its_sidecars_removed_and_another_renamed_over_it_works() {
    let (files, limiter) = with_mail();
    acquire_times(&limiter, 50);
    let other = files.another();
    files.remove_sidecars();
    files.replace_by(&other);
    assert_told_and_goes_on(&limiter, &files);
    assert_eq!(files.charges(), 9);
}

#[test]
fn a_copy_renamed_over_the_file_takes_its_place_whole() {
    let (files, limiter) = with_mail();
    acquire_times(&limiter, 50);
    // A copy of the database alone has what was copied into it from the WAL.
    open_raw(&files.database)
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();
    let copy = files.beside("copy.db");
    run("cp", &[&files.database, &copy]);
    acquire_times(&limiter, 50);
    files.replace_by(&copy);
    assert_told_and_goes_on(&limiter, &files);
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
    let files = Files::new();
    let idle = files.spawn("stay idle, then leave", &["READY", "LEAVE"]);
    await_signal(&files.beside("READY"));
    files.remove_sidecars();
    // Two others come and go, and what they have charged is in the database itself.
    let diary_path = files.beside("diary");
    for _ in 0..2 {
        let limiter = open_with_mail(&files.database);
        let mut diary = Diary::open(&diary_path);
        let ask = Request::new().take("mail", 1);
        for _ in 0..300 {
            let permit = limiter.try_acquire(&ask).unwrap().granted().unwrap();
            diary.note(permit.at(), &ask);
        }
    }
    signal_by(&files.beside("LEAVE"));
    idle.wait_well();
    audit(&files.database, &read_diaries([&diary_path])).assert_clean();
}

/// How many permits the parent and the child of a fork acquire each.
const AFTER_FORK: u64 = 300;

/// How often somebody else comes to the file of a fork, and goes.
const VISITS: u64 = 100;

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

#[track_caller]
fn note_well(limiter: &Limiter, diary: &mut Diary, count: u64) {
    assert_eq!(note_many(limiter, diary, count), 0);
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
    note_well(&limiter, &mut diary, AFTER_FORK);
    match fork() {
        ForkResult::Parent { .. } => {
            note_well(&limiter, &mut diary, AFTER_FORK);
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
    let mut diary = Diary::open(&path("VISITOR_DIARY"));
    for _ in 0..VISITS {
        let limiter = Limiter::open(path("FILE")).unwrap();
        note_well(&limiter, &mut diary, 3);
    }
}

#[test]
fn a_forked_child_goes_on_after_its_parent_has_left() {
    let files = Files::new();
    drop(open_with_mail(&files.database));
    let names = ["DIARY", "CHILD_DIARY", "READY", "LEAVE", "DONE", "FAILURES"];
    files.spawn("fork", &names).wait_well();
    await_signal(&files.beside("READY"));
    // The parent has closed the file while the child had it open. So do others, who come now.
    files.spawn("come and go", &["VISITOR_DIARY"]).wait_well();
    signal_by(&files.beside("LEAVE"));
    await_signal(&files.beside("DONE"));
    let diaries = ["DIARY", "CHILD_DIARY", "VISITOR_DIARY"];
    let acknowledged = read_diaries(&diaries.map(|name| files.beside(name)));
    println!("{} acknowledged", acknowledged.len());
    audit(&files.database, &acknowledged).assert_clean();
    let failures = std::fs::read_to_string(files.beside("FAILURES"));
    assert_eq!(failures.unwrap(), "0");
}

/// The child does nothing with the limiter but drop it, while the parent goes on.
fn fork_and_leave_it_alone() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let mut diary = Diary::open(&path("DIARY"));
    note_well(&limiter, &mut diary, AFTER_FORK);
    match fork() {
        ForkResult::Child => {
            drop(limiter);
            std::process::exit(0);
        }
        ForkResult::Parent { child } => {
            note_well(&limiter, &mut diary, AFTER_FORK);
            nix::sys::wait::waitpid(child, None).unwrap();
            note_well(&limiter, &mut diary, AFTER_FORK);
        }
    }
}

#[test]
fn a_forked_child_that_drops_the_limiter_harms_nobody() {
    let (files, limiter) = with_mail();
    let mine = files.beside("MINE");
    let forker = files.spawn("fork and leave it alone", &["DIARY"]);
    let mut diary = Diary::open(&mine);
    note_well(&limiter, &mut diary, AFTER_FORK);
    forker.wait_well();
    note_well(&limiter, &mut diary, AFTER_FORK);
    let acknowledged = read_diaries([&files.beside("DIARY"), &mine]);
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
    let (files, limiter) = with_mail();
    limiter.define(Limit::new("slow").per_second(1)).unwrap();
    let parent = files.spawn("fork with a booking", &["DROPPED", "READY", "LEAVE"]);
    await_signal(&files.beside("READY"));
    assert_eq!(
        files.charges(),
        19,
        "all but the one that the parent has cancelled"
    );
    let refused = limiter.book_within("slow", 2 * SECOND);
    assert!(matches!(refused, Err(Error::TooLate { .. })), "{refused:?}");
    parent.kill();
    assert!(limiter.acquire_within("slow", SECOND).is_ok());
    signal_by(&files.beside("LEAVE"));
    // The forked child is nobody's to wait for; it has to see the signal before the directory goes.
    settle();
}
