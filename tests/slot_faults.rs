//! Holders of slots and those who wait for them, when they are stopped, killed at any call of the system, or live
//! in another pid namespace.
//!
//! Real time: it is the kernel that does it to them.
#![cfg(target_os = "linux")]
mod support;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use quotalite::{Error, Limit, Limiter, Permit, Request, SECOND, Settled};
use support::audit::audit;
use support::processes::{
    Diary, Process, argument, await_signal, command, command_under, eventually, in_a_pid_namespace,
    kill_at_each, path, play, read_diaries, run_and_kill, signal_by, size, start,
};
use support::{Scratch, open_raw, scratch};

#[test]
#[ignore = "the entry of child processes"]
fn child() {
    play(&[
        ("stay", stay_until_told),
        ("use in spite of kills", use_in_spite_of_kills),
        ("leave all behind", leave_all_behind),
        ("take what comes back", take_what_comes_back),
    ]);
}

const MILLISECOND: Duration = Duration::from_millis(1);

fn open_with_slots(scratch: &Scratch, slots: u64) -> Limiter {
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(Limit::slots("slots", slots)).unwrap();
    limiter
}

/// Waits for one of each limit, says so when it has them, and ends when it is told to.
fn stay_until_told() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let mut ask = Request::new();
    for key in argument("LIMITS").split(' ') {
        ask = ask.take(key, 1);
    }
    let permit = limiter.acquire(&ask).unwrap();
    signal_by(&path("INSIDE"));
    await_signal(&path("GO"));
    let settled = permit.settle::<&str>([]).unwrap();
    assert!(matches!(settled, Settled::Now(_)), "{settled:?}");
}

/// A process that waits for something, and stays inside until it is told to go.
#[derive(Debug)]
struct Guest {
    process: Process,
    inside: PathBuf,
    go: PathBuf,
}

impl Guest {
    fn start(scratch: &Scratch, name: &str, limits: &str, under: &[&str]) -> Self {
        let file = scratch.file();
        let inside = scratch.path().join(format!("{name}-inside"));
        let go = scratch.path().join(format!("{name}-go"));
        let arguments = [
            ("FILE", file.to_str().unwrap()),
            ("LIMITS", limits),
            ("INSIDE", inside.to_str().unwrap()),
            ("GO", go.to_str().unwrap()),
        ];
        let command = if under.is_empty() {
            command("stay", &arguments)
        } else {
            command_under(under, "stay", &arguments)
        };
        Self {
            process: start(command),
            inside,
            go,
        }
    }

    /// One that is inside.
    fn inside(scratch: &Scratch, name: &str) -> Self {
        let guest = Self::start(scratch, name, "slots", &[]);
        await_signal(&guest.inside);
        guest
    }

    /// One that waits in line.
    fn in_line(scratch: &Scratch, limiter: &Limiter, name: &str, limits: &str) -> Self {
        let before = limiter.usage("slots").unwrap().waiting();
        let guest = Self::start(scratch, name, limits, &[]);
        eventually("it waits in line", || {
            limiter.usage("slots").unwrap().waiting() == before + 1
        });
        guest
    }

    /// Stops it, but not while it holds the lock of the file, which everybody would have to wait for.
    fn stop(&self, scratch: &Scratch) {
        let stat = format!("/proc/{}/stat", self.process.id());
        let raw = open_raw(&scratch.file());
        raw.busy_timeout(200 * MILLISECOND).unwrap();
        eventually("it is stopped without the lock", || {
            self.process.send(Signal::SIGSTOP);
            eventually("it is stopped", || {
                let stat = std::fs::read_to_string(&stat).unwrap();
                stat.rsplit(") ").next().unwrap().starts_with('T')
            });
            let is_free = raw.execute_batch("BEGIN IMMEDIATE; ROLLBACK").is_ok();
            if !is_free {
                self.go_on();
            }
            is_free
        });
    }

    fn go_on(&self) {
        self.process.send(Signal::SIGCONT);
    }

    fn is_inside(&self) -> bool {
        self.inside.exists()
    }

    /// How long it takes until it is inside.
    #[track_caller]
    fn await_inside(&self) -> Duration {
        let asked = Instant::now();
        await_signal(&self.inside);
        asked.elapsed()
    }

    fn leave(self) {
        signal_by(&self.go);
        self.process.wait_well();
    }
}

/// That nothing is held, and nobody waits.
fn assert_nothing_left(scratch: &Scratch) {
    for table in ["slot", "ticket", "ticket_take"] {
        let left: i64 = scratch.sqlite(&format!("SELECT count(*) FROM {table}"));
        assert_eq!(left, 0, "{table}");
    }
    let open: i64 = scratch.sqlite("SELECT count(*) FROM permit WHERE ended_ns IS NULL");
    assert_eq!(open, 0);
    audit(&scratch.file(), &[]).assert_clean();
}

#[test]
fn a_stopped_holder_keeps_its_slot_and_goes_on() {
    let scratch = scratch();
    let limiter = open_with_slots(&scratch, 1);
    let holder = Guest::inside(&scratch, "holder");
    holder.stop(&scratch);
    for _ in 0..3 {
        let refused = limiter.acquire_within("slots", 500 * MILLISECOND);
        assert!(matches!(refused, Err(Error::TooLate { .. })), "{refused:?}");
        assert!(!limiter.try_acquire("slots").unwrap().is_granted());
    }
    holder.go_on();
    assert!(!limiter.try_acquire("slots").unwrap().is_granted());
    // It finds its permit as it left it.
    holder.leave();
    drop(limiter.try_acquire("slots").unwrap().granted().unwrap());
    assert_nothing_left(&scratch);
}

#[test]
fn a_stopped_waiter_is_passed_over_after_a_second_and_served_once_it_goes_on() {
    let scratch = scratch();
    let limiter = open_with_slots(&scratch, 1);
    let held = limiter.acquire("slots").unwrap();
    let first = Guest::in_line(&scratch, &limiter, "first", "slots");
    let second = Guest::in_line(&scratch, &limiter, "second", "slots");
    first.stop(&scratch);
    drop(held);
    let waited = second.await_inside();
    println!("passed over after {waited:?}");
    assert!(
        waited > 500 * MILLISECOND,
        "it was not waited for: {waited:?}"
    );
    assert!(waited < 3 * SECOND, "{waited:?}");
    // From now on nobody waits for it at all.
    second.leave();
    drop(limiter.try_acquire("slots").unwrap().granted().unwrap());
    let third = Guest::inside(&scratch, "third");
    first.go_on();
    let fourth = Guest::in_line(&scratch, &limiter, "fourth", "slots");
    assert!(!first.is_inside());
    third.leave();
    let waited = first.await_inside();
    println!("served after {waited:?}");
    assert!(!fourth.is_inside(), "its place was still the first one");
    first.leave();
    fourth.await_inside();
    fourth.leave();
    assert_nothing_left(&scratch);
}

/// It can go because time has passed, and not because somebody has freed something.
#[test]
fn a_stopped_waiter_whose_turn_came_with_time_is_passed_over_too() {
    // Whether or not somebody else holds a slot, too.
    for held in [0, 1] {
        let scratch = scratch();
        let limiter = open_with_slots(&scratch, held + 1);
        limiter.define(Limit::new("mail").per_second(1)).unwrap();
        let held: Vec<Permit> = (0..held)
            .map(|_| limiter.acquire("slots").unwrap())
            .collect();
        drop(limiter.try_acquire("mail").unwrap().granted().unwrap());
        let first = Guest::in_line(&scratch, &limiter, "first", "slots mail");
        first.stop(&scratch);
        eventually("the rate admits it", || {
            limiter.usage("mail").unwrap().available() == 1
        });
        let asked = Instant::now();
        let permit = limiter.acquire_within("slots", 10 * SECOND).unwrap();
        let waited = asked.elapsed();
        println!("passed over after {waited:?}");
        assert!(waited < 3 * SECOND, "{waited:?}");
        drop(permit);
        drop(limiter.try_acquire("slots").unwrap().granted().unwrap());
        first.go_on();
        first.await_inside();
        first.leave();
        drop(held);
        assert_nothing_left(&scratch);
    }
}

#[test]
fn a_waiter_that_is_killed_while_it_is_next_is_skipped() {
    let scratch = scratch();
    let limiter = open_with_slots(&scratch, 1);
    let held = limiter.acquire("slots").unwrap();
    let first = Guest::in_line(&scratch, &limiter, "first", "slots");
    let second = Guest::in_line(&scratch, &limiter, "second", "slots");
    let third = Guest::in_line(&scratch, &limiter, "third", "slots");
    first.process.kill();
    drop(held);
    let waited = second.await_inside();
    println!("skipped after {waited:?}");
    assert!(waited < SECOND, "no sooner than one that is stopped");
    assert!(!third.is_inside());
    second.leave();
    third.await_inside();
    third.leave();
    assert_nothing_left(&scratch);
}

#[test]
fn a_holder_in_another_pid_namespace_keeps_its_slot_until_it_dies() {
    let Some(unshare) = in_a_pid_namespace() else {
        return;
    };
    let scratch = scratch();
    let limiter = open_with_slots(&scratch, 1);
    let holder = Guest::start(&scratch, "holder", "slots", &unshare);
    await_signal(&holder.inside);
    let pid: i64 = scratch.sqlite("SELECT pid FROM owner");
    assert_eq!(pid, 1, "it counts from one there");
    for _ in 0..3 {
        let refused = limiter.acquire_within("slots", 100 * MILLISECOND);
        assert!(matches!(refused, Err(Error::TooLate { .. })), "{refused:?}");
        assert!(!limiter.try_acquire("slots").unwrap().is_granted());
    }
    holder.process.kill();
    // The kernel ends the namespace a moment after.
    eventually("the slot comes back", || {
        limiter.try_acquire("slots").unwrap().is_granted()
    });
    assert_nothing_left(&scratch);
}

/// Everything that one can do with slots: holds them, waits in vain, is woken, settles.
fn use_in_spite_of_kills() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let mut diary = Diary::open(&path("DIARY"));
    let ask = |tokens| Request::new().take("mail", 1).take("tokens", tokens);
    for _ in 0..4 {
        let permit = limiter.acquire(&ask(10).take("slots", 1)).unwrap();
        let refused = limiter.acquire_within(("slots", 2), 2 * MILLISECOND);
        assert!(matches!(refused, Err(Error::TooLate { .. })), "{refused:?}");
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| limiter.acquire(("slots", 2)).unwrap());
            eventually("it waits in line", || {
                limiter.usage("slots").unwrap().waiting() == 1
            });
            permit.settle([("tokens", 3)]).unwrap();
            diary.note(permit.at(), &ask(3));
            drop(waiter.join().unwrap());
        });
    }
}

/// Where a child that is killed writes what it was told.
fn diary(scratch: &Scratch) -> PathBuf {
    scratch.path().join("diary")
}

/// Kills a process that uses slots, and uses what it leaves.
fn user_is_killed_at(calls: &str, when: usize) -> Option<bool> {
    let scratch = scratch();
    {
        let limiter = open_with_slots(&scratch, 2);
        limiter.define(Limit::new("mail").per_hour(1_000)).unwrap();
        limiter.define(Limit::new("tokens").per_hour(500)).unwrap();
    }
    let killed = run_and_kill(
        &scratch.file(),
        &diary(&scratch),
        "use in spite of kills",
        calls,
        when,
    )?;
    let (file, fault) = (scratch.file(), format!("{calls} {when}"));
    let diary = diary(&scratch);
    let acknowledged = read_diaries([&diary]);
    audit(&file, &acknowledged).assert_clean();
    let last: Option<i64> = scratch.sqlite("SELECT max(permit_id) FROM permit");
    let limiter = Limiter::open(&file).unwrap();
    let all = Request::new().take("slots", 2).take("mail", 1);
    let permit = limiter.try_acquire(&all).unwrap().granted();
    let permit = permit.unwrap_or_else(|| panic!("{fault}: a slot is lost"));
    assert!(
        permit.fence() > last.map(i64::unsigned_abs),
        "{fault}: the fence does not grow"
    );
    drop(permit);
    assert_nothing_left(&scratch);
    audit(&file, &acknowledged).assert_clean();
    let charged: i64 = scratch.sqlite("SELECT count(*) FROM charge WHERE limit_id = 2");
    let told = acknowledged.len() / 2 + 1;
    assert!(usize::try_from(charged).unwrap() <= told + 1, "{fault}");
    Some(killed)
}

#[test]
fn who_is_killed_at_any_call_of_the_system_leaves_no_slot_and_no_place_in_line_behind() {
    let plan = [
        ("fcntl", 120, size(23, 1)),
        ("pwrite64", 60, size(13, 1)),
        ("pread64", 20, size(7, 1)),
        ("futex", 24, size(5, 1)),
        ("close", 10, size(3, 1)),
    ];
    kill_at_each(&plan, user_is_killed_at);
}

/// Holds a slot of its own and one under an id, has booked ahead, waits for more, and stays so.
fn leave_all_behind() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let named = Request::new().take("slots", 1).take("tokens", 10).id("job");
    let _named = limiter.try_acquire(&named).unwrap().granted().unwrap();
    let _slot = limiter.try_acquire("slots").unwrap().granted().unwrap();
    let _mail = limiter.try_acquire(("mail", 3)).unwrap().granted().unwrap();
    let _booking = limiter.book(("mail", 3)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| limiter.acquire(("slots", 2)).unwrap());
        scope.spawn(|| {
            eventually("it waits in line", || {
                limiter.usage("slots").unwrap().waiting() == 1
            });
            signal_by(&path("READY"));
        });
    });
}

/// Takes what a dead process has held.
fn take_what_comes_back() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let mut diary = Diary::open(&path("DIARY"));
    let all = Request::new().take("slots", 2).take("tokens", 1);
    let permit = limiter.try_acquire(&all).unwrap().granted().unwrap();
    diary.note(permit.at(), &Request::new().take("tokens", 1));
}

/// What the file still has of the owner that died first.
const LEFT_OF_THE_DEAD: [&str; 5] = [
    "SELECT count(*) FROM owner WHERE owner_id = 1",
    "SELECT count(*) - 1 FROM charge WHERE limit_id = 2",
    "SELECT count(*) FROM booking WHERE owner_id = 1",
    "SELECT count(*) FROM ticket WHERE owner_id = 1",
    "SELECT count(*) FROM slot JOIN permit USING (permit_id) WHERE owner_id = 1",
];

/// Kills a process that gives back what a dead one held, and gives back what both of them have left.
fn reclaimer_is_killed_at(calls: &str, when: usize) -> Option<bool> {
    let scratch = scratch();
    let (file, ready) = (scratch.file(), scratch.path().join("ready"));
    {
        let limiter = open_with_slots(&scratch, 2);
        limiter.define(Limit::new("mail").per_hour(5)).unwrap();
        limiter.define(Limit::new("tokens").per_hour(500)).unwrap();
    }
    let arguments = [
        ("FILE", file.to_str().unwrap()),
        ("READY", ready.to_str().unwrap()),
    ];
    let dead = start(command("leave all behind", &arguments));
    await_signal(&ready);
    dead.kill();
    let left = || LEFT_OF_THE_DEAD.map(|query| scratch.sqlite::<i64>(query));
    assert_eq!(left(), [1, 1, 1, 1, 2]);

    let killed = run_and_kill(
        &scratch.file(),
        &diary(&scratch),
        "take what comes back",
        calls,
        when,
    )?;
    let fault = format!("{calls} {when}");
    assert!(
        [[1, 1, 1, 1, 2], [0; 5]].contains(&left()),
        "{fault}: half of it came back: {:?}",
        left()
    );
    let acknowledged = read_diaries([&diary(&scratch)]);
    audit(&file, &acknowledged).assert_clean();

    let limiter = Limiter::open(&file).unwrap();
    let all = limiter.try_acquire(("slots", 2)).unwrap().granted();
    drop(all.unwrap_or_else(|| panic!("{fault}: a slot is lost")));
    assert_eq!(left(), [0; 5], "{fault}");
    let mail: i64 = scratch.sqlite("SELECT sum(amount) FROM charge WHERE limit_id = 2");
    assert_eq!(mail, 3, "{fault}: only what was booked came back");
    // Whoever knows the id can still say what was used, once.
    let settled = limiter.settle("job", [("tokens", 4)]).unwrap();
    assert!(matches!(settled, Settled::Now(_)), "{fault}: {settled:?}");
    let settled = limiter.settle("job", [("tokens", 4)]).unwrap();
    assert!(!matches!(settled, Settled::Now(_)), "{fault}: {settled:?}");
    let tokens: i64 = scratch.sqlite("SELECT sum(amount) FROM charge WHERE limit_id = 3");
    let told = 4 + i64::try_from(acknowledged.len()).unwrap();
    // Who is killed after the commit has charged what it was not told of.
    let allowed = if killed { told..=told + 1 } else { told..=told };
    assert!(allowed.contains(&tokens), "{fault}: {tokens}, {allowed:?}");
    assert_nothing_left(&scratch);
    audit(&file, &acknowledged).assert_clean();
    Some(killed)
}

#[test]
fn who_is_killed_while_it_gives_back_what_a_dead_process_held_gives_back_all_of_it_or_nothing() {
    let plan = [
        ("fcntl", 64, size(9, 1)),
        ("pwrite64", 60, size(7, 1)),
        ("pread64", 16, size(5, 1)),
        ("close", 8, size(3, 1)),
    ];
    kill_at_each(&plan, reclaimer_is_killed_at);
}

/// Behind one whose process is stopped and who could go, and behind more than are looked at.
#[test]
fn who_is_refused_behind_others_does_not_come_again_and_again() {
    let behind_one = "
        INSERT INTO ticket (ticket_id, owner_id, since_ns)
            SELECT n, owner_id, since_ns FROM owner, (SELECT 1 AS n UNION SELECT 2);
        INSERT INTO ticket_take
            SELECT 1, limit_id, iif(key = 'slots', 2, 1) FROM limit_definition;
        INSERT INTO ticket_take
            SELECT 2, limit_id, 1 FROM limit_definition WHERE key = 'slots';";
    let behind_many = "
        WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 300)
            INSERT INTO ticket (ticket_id, owner_id, since_ns)
            SELECT n, owner_id, since_ns FROM number, owner;
        INSERT INTO ticket_take
            SELECT ticket_id, limit_id, 1 FROM ticket, limit_definition WHERE key = 'full';
        INSERT INTO ticket_take
            SELECT 1, limit_id, 1 FROM limit_definition WHERE key = 'slots';";
    for line in [behind_one, behind_many] {
        let scratch = scratch();
        let limiter = open_with_slots(&scratch, 2);
        limiter.define(Limit::slots("full", 1)).unwrap();
        let _full = limiter.acquire("full").unwrap();
        let raw = open_raw(&scratch.file());
        raw.execute_batch(line).unwrap();
        let waiter = Limiter::open(scratch.file()).unwrap();
        let mut versions = BTreeSet::new();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| waiter.acquire_within("slots", 800 * MILLISECOND));
            while !waits.is_finished() {
                let version = raw.query_row("PRAGMA data_version", [], |row| row.get::<_, i64>(0));
                versions.insert(version.unwrap());
            }
        });
        let commits = versions.len();
        assert!((2..20).contains(&commits), "{commits}");
    }
}
