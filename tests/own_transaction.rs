//! Requests that are part of the caller's own transaction on the same file: both, or neither.

mod support;

use std::time::{Duration, Instant};

#[cfg(target_os = "linux")]
use support::processes::{await_signal, eventually, number, path, play, signal_by, size, spawn};

use quotalite::rusqlite::{Connection, TransactionBehavior};
use quotalite::{
    Decision, Error, Limit, Limiter, ManualClock, Provisional, Request, RequestError, SECOND,
    Settled, TableConnection,
};
use support::{Scratch, on_file, scratch};

/// A limiter with a limit of each kind and a table of jobs beside it.
fn with_jobs() -> (Scratch, Limiter, TableConnection, ManualClock) {
    let (scratch, limiter, clock) = on_file();
    let limits = [
        Limit::new("rate").rate(3, SECOND),
        Limit::new("bucket").burst(3).refill(3, SECOND),
        Limit::slots("slots", 3),
        Limit::pattern("tenant:*").rate(3, SECOND),
    ];
    limiter
        .define_all(limits, quotalite::OnConflict::Fail)
        .unwrap();
    let connection = limiter.connect().unwrap();
    connection
        .execute_batch("CREATE TABLE app_job (prompt TEXT)")
        .unwrap();
    (scratch, limiter, connection, clock)
}

fn begin(connection: &mut Connection) -> quotalite::rusqlite::Transaction<'_> {
    connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .unwrap()
}

fn all_kinds(amount: u64) -> Request {
    ["rate", "bucket", "slots", "tenant:1"]
        .into_iter()
        .fold(Request::new(), |ask, key| ask.take(key, amount))
}

fn granted(decision: Decision<Provisional>) -> Provisional {
    decision.granted().expect("it was granted")
}

fn available(limiter: &Limiter) -> [u64; 4] {
    ["rate", "bucket", "slots", "tenant:1"].map(|key| limiter.usage(key).unwrap().available())
}

fn jobs(scratch: &Scratch) -> i64 {
    scratch.sqlite("SELECT count(*) FROM app_job")
}

#[test]
fn what_is_committed_is_charged_and_can_be_settled() {
    let (scratch, limiter, mut connection, _clock) = with_jobs();
    let transaction = begin(&mut connection);
    let provisional = granted(limiter.try_acquire_in(&transaction, &all_kinds(2)).unwrap());
    transaction
        .execute("INSERT INTO app_job VALUES ('Hello')", [])
        .unwrap();
    assert_eq!(available(&limiter), [3; 4], "nobody sees it yet");
    transaction.commit().unwrap();
    let permit = provisional.committed().unwrap();
    assert_eq!(jobs(&scratch), 1);
    assert_eq!(available(&limiter), [1; 4]);
    assert!(permit.fence().is_some());
    let settled = permit.settle([("rate", 1), ("bucket", 1), ("tenant:1", 1)]);
    assert!(matches!(settled.unwrap(), Settled::Now(_)));
    assert_eq!(available(&limiter), [2, 2, 3, 2]);
}

#[test]
fn what_is_rolled_back_was_never_charged() {
    let (scratch, limiter, mut connection, _clock) = with_jobs();
    let dump = || -> String {
        scratch.sqlite(
            "SELECT json_array(
                (SELECT json_group_array(json_array(limit_id, at_ns, seq, amount, total)) FROM charge),
                (SELECT json_group_array(json_array(limit_id, full_ns, full_part)) FROM bucket),
                (SELECT json_group_array(json_array(limit_id, permit_id)) FROM slot),
                (SELECT json_group_array(permit_id) FROM permit),
                (SELECT json_group_array(key) FROM pattern_key),
                (SELECT json_group_array(prompt) FROM app_job)
            )",
        )
    };
    let before = dump();
    let transaction = begin(&mut connection);
    let provisional = granted(limiter.try_acquire_in(&transaction, &all_kinds(2)).unwrap());
    transaction
        .execute("INSERT INTO app_job VALUES ('Hello')", [])
        .unwrap();
    transaction.rollback().unwrap();
    let told = provisional.committed();
    assert!(
        matches!(told, Err(Error::Request(RequestError::NotCommitted))),
        "{told:?}"
    );
    assert_eq!(dump(), before);
    assert_eq!(available(&limiter), [3; 4]);
    // Nothing that was remembered of it is believed.
    let decision = limiter.try_acquire(&all_kinds(3)).unwrap();
    assert!(decision.is_granted());
}

#[test]
fn several_requests_are_part_of_one_transaction_and_of_its_savepoints() {
    let (_scratch, limiter, mut connection, _clock) = with_jobs();
    let mut transaction = begin(&mut connection);
    let first = granted(limiter.try_acquire_in(&transaction, &all_kinds(1)).unwrap());
    let mut savepoint = transaction.savepoint().unwrap();
    let undone = granted(limiter.try_acquire_in(&savepoint, &all_kinds(2)).unwrap());
    savepoint.rollback().unwrap();
    drop((undone, savepoint));
    let second = granted(limiter.try_acquire_in(&transaction, &all_kinds(1)).unwrap());
    let denied = limiter.try_acquire_in(&transaction, &all_kinds(2)).unwrap();
    assert!(!denied.is_granted());
    transaction
        .execute("INSERT INTO app_job VALUES ('Hello')", [])
        .unwrap();
    transaction.commit().unwrap();
    let permits = [first, second].map(|provisional| provisional.committed().unwrap());
    assert_eq!(available(&limiter), [1; 4]);
    for permit in &permits {
        permit.cancel().unwrap();
    }
    assert_eq!(available(&limiter), [3; 4]);
}

#[test]
fn a_denial_and_an_error_leave_the_transaction_as_it_was() {
    let (scratch, limiter, mut connection, clock) = with_jobs();
    let transaction = begin(&mut connection);
    transaction
        .execute("INSERT INTO app_job VALUES ('Hello')", [])
        .unwrap();
    let unknown = limiter.try_acquire_in(&transaction, ("nobody", 1));
    assert!(matches!(unknown, Err(Error::UnknownLimit { .. })));
    let too_much = limiter.try_acquire_in(&transaction, ("rate", 4));
    assert!(matches!(too_much, Err(Error::NeverFits { .. })));
    let first = granted(limiter.try_acquire_in(&transaction, ("rate", 3)).unwrap());
    let denial = limiter
        .try_acquire_in(&transaction, ("rate", 1))
        .unwrap()
        .denied()
        .unwrap();
    assert_eq!(denial.retry_after(), Some(SECOND));
    transaction.commit().unwrap();
    drop(first.committed().unwrap());
    assert_eq!(jobs(&scratch), 1);
    clock.advance(SECOND);
    assert!(limiter.try_acquire(("rate", 3)).unwrap().is_granted());
}

#[test]
fn a_transaction_without_the_write_lock_or_of_another_file_is_refused() {
    let (_scratch, limiter, mut connection, _clock) = with_jobs();
    let refused = |limiter: &Limiter, transaction: &Connection| match limiter
        .try_acquire_in(transaction, "rate")
    {
        Err(Error::Request(error)) => error,
        other => panic!("{other:?}"),
    };
    let transaction = connection.transaction().unwrap();
    assert_eq!(refused(&limiter, &transaction), RequestError::NoWriteLock);
    transaction
        .query_row("SELECT count(*) FROM app_job", [], |_| Ok(()))
        .unwrap();
    assert_eq!(refused(&limiter, &transaction), RequestError::NoWriteLock);
    drop(transaction);

    let elsewhere = scratch();
    let other = Limiter::open(elsewhere.file()).unwrap();
    let mut others = other.connect().unwrap();
    let transaction = begin(&mut others);
    let path = elsewhere.file().canonicalize().unwrap();
    assert_eq!(
        refused(&limiter, &transaction),
        RequestError::OtherFile { path }
    );
    drop(transaction);
    let mut nowhere = Connection::open_in_memory().unwrap();
    let transaction = begin(&mut nowhere);
    let message = refused(&limiter, &transaction).to_string();
    assert_eq!(
        message,
        "the transaction is on :memory:, which is not the file of the limiter"
    );
    drop(transaction);

    let in_memory = Limiter::in_memory().unwrap();
    let transaction = begin(&mut connection);
    assert_eq!(refused(&in_memory, &transaction), RequestError::NoFile);
    assert!(matches!(
        in_memory.connect(),
        Err(Error::Request(RequestError::NoFile))
    ));
}

#[test]
fn who_uses_the_limiter_within_its_own_transaction_is_told_so_at_once() {
    let (_scratch, limiter, mut connection, _clock) = with_jobs();
    let transaction = begin(&mut connection);
    let provisional = granted(limiter.try_acquire_in(&transaction, "rate").unwrap());
    let begun = Instant::now();
    let told = limiter.try_acquire("rate");
    assert!(
        matches!(told, Err(Error::Request(RequestError::WithinTransaction))),
        "{told:?}"
    );
    let told = limiter.define(Limit::new("more").per_second(1));
    assert!(matches!(
        told,
        Err(Error::Request(RequestError::WithinTransaction))
    ));
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "it waited for itself"
    );
    // Who only looks sees what was there before.
    assert_eq!(limiter.usage("rate").unwrap().available(), 3);
    transaction.commit().unwrap();
    drop(provisional.committed().unwrap());
    assert!(limiter.try_acquire("rate").unwrap().is_granted());
}

#[test]
fn slots_and_ids_need_a_process_that_the_file_knows() {
    let (scratch, limiter, _) = on_file();
    limiter.define(Limit::slots("slots", 1)).unwrap();
    limiter.define(Limit::new("rate").per_second(5)).unwrap();
    let mut connection = Connection::open(scratch.file()).unwrap();
    let transaction = begin(&mut connection);
    let with_id = Request::new().take("rate", 1).id("job-1");
    for ask in [&Request::new().take("slots", 1), &with_id] {
        let told = limiter.try_acquire_in(&transaction, ask);
        assert!(
            matches!(told, Err(Error::Request(RequestError::NotConnected))),
            "{told:?}"
        );
    }
    let provisional = granted(limiter.try_acquire_in(&transaction, "rate").unwrap());
    transaction.commit().unwrap();
    drop(provisional.committed().unwrap());
    let _connected = limiter.connect().unwrap();
    let transaction = begin(&mut connection);
    let provisional = granted(limiter.try_acquire_in(&transaction, &with_id).unwrap());
    transaction.commit().unwrap();
    assert!(!provisional.committed().unwrap().is_resumed());
    let transaction = begin(&mut connection);
    let again = granted(limiter.try_acquire_in(&transaction, &with_id).unwrap());
    transaction.commit().unwrap();
    assert!(again.committed().unwrap().is_resumed());
}

#[test]
fn slots_that_were_committed_and_dropped_come_back_with_the_next_change() {
    let (_scratch, limiter, mut connection, _clock) = with_jobs();
    let transaction = begin(&mut connection);
    let dropped = granted(limiter.try_acquire_in(&transaction, ("slots", 2)).unwrap());
    transaction.commit().unwrap();
    drop(dropped);
    assert!(limiter.try_acquire("rate").unwrap().is_granted());
    assert_eq!(limiter.usage("slots").unwrap().available(), 3);
}

#[test]
fn who_only_acquires_within_transactions_leaves_no_more_behind_than_others() {
    let (scratch, limiter, mut connection, clock) = with_jobs();
    for _ in 0..2_000 {
        let transaction = begin(&mut connection);
        let provisional = granted(limiter.try_acquire_in(&transaction, "rate").unwrap());
        transaction.commit().unwrap();
        drop(provisional.committed().unwrap());
        clock.advance(SECOND);
    }
    let charges: i64 = scratch.sqlite("SELECT count(*) FROM charge");
    assert!(charges < 1_000, "{charges}");
}

#[test]
fn another_limiter_of_the_same_file_does_not_wait_for_its_own_thread() {
    let (scratch, limiter, mut connection, clock) = with_jobs();
    let other = support::open(&scratch, &clock);
    let transaction = begin(&mut connection);
    let provisional = granted(limiter.try_acquire_in(&transaction, "rate").unwrap());
    let told = other.try_acquire("rate");
    assert!(
        matches!(told, Err(Error::Request(RequestError::WithinTransaction))),
        "{told:?}"
    );
    transaction.commit().unwrap();
    drop(provisional.committed().unwrap());
    assert!(other.try_acquire("rate").unwrap().is_granted());
}

/// What stands at the path then is not opened beside a connection to what stood there before.
#[cfg(target_os = "linux")]
#[test]
fn lost_files_are_not_opened_anew_beside_a_connection_of_the_callers() {
    let scratch = scratch();
    let open = || {
        let builder = Limiter::builder(scratch.file());
        builder.busy_deadline(SECOND / 5).open().unwrap()
    };
    let limiter = open();
    limiter
        .define(Limit::new("rate").rate(1_000, quotalite::HOUR))
        .unwrap();
    drop(limiter);
    let limiter = open();
    let connection = limiter.connect().unwrap();
    connection
        .execute_batch("CREATE TABLE app_job (x)")
        .unwrap();
    let status = std::process::Command::new("rm")
        .args(["limits.db-wal", "limits.db-shm"])
        .current_dir(scratch.path())
        .status();
    assert!(status.unwrap().success());
    std::thread::sleep(Duration::from_millis(60));
    let lost = limiter.try_acquire("rate");
    assert!(matches!(lost, Err(Error::Moved { .. })), "{lost:?}");
    let refused = limiter.try_acquire("rate");
    assert!(matches!(refused, Err(Error::Busy { .. })), "{refused:?}");
    drop(connection);
    assert!(limiter.try_acquire("rate").unwrap().is_granted());
    let integrity: String = scratch.sqlite("PRAGMA integrity_check");
    assert_eq!(integrity, "ok");
}

#[test]
fn others_who_wait_get_what_a_transaction_has_left_and_not_what_it_has_taken() {
    let (_scratch, limiter, mut connection, clock) = with_jobs();
    let booked = limiter.book(("rate", 3)).unwrap();
    assert_eq!(booked.wait_time(), Duration::ZERO);
    let behind = limiter.book(("rate", 2)).unwrap();
    let transaction = begin(&mut connection);
    // One is left in the window of the booking, and none now.
    let denied = limiter.try_acquire_in(&transaction, "rate").unwrap();
    assert_eq!(
        denied.denied().unwrap().retry_after(),
        Some(behind.wait_time())
    );
    drop(transaction);
    clock.advance(SECOND);
    let transaction = begin(&mut connection);
    let provisional = granted(limiter.try_acquire_in(&transaction, "rate").unwrap());
    transaction.commit().unwrap();
    assert_eq!(limiter.usage("rate").unwrap().available(), 0);
    drop((provisional.committed().unwrap(), booked, behind));
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "the entry of child processes"]
fn child() {
    play(&[
        ("enqueue", enqueue_or_roll_back),
        ("stay within", stay_within),
    ]);
}

/// Reserves a budget of 1 to 3 and writes the job that it is for, and takes both back now and then.
#[cfg(target_os = "linux")]
fn enqueue_or_roll_back() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let mut connection = limiter.connect().unwrap();
    for round in 0..number("ROUNDS") {
        let amount = round % 3 + 1;
        let transaction = begin(&mut connection);
        let decision = limiter.try_acquire_in(&transaction, ("budget", amount));
        let Decision::Granted(provisional) = decision.unwrap() else {
            continue;
        };
        transaction
            .execute(
                "INSERT INTO app_job (amount) VALUES (?1)",
                [amount.cast_signed()],
            )
            .unwrap();
        if round % 5 == 0 {
            transaction.rollback().unwrap();
        } else {
            transaction.commit().unwrap();
            drop(provisional.committed().unwrap());
        }
    }
}

/// Is within a transaction until it is killed.
#[cfg(target_os = "linux")]
fn stay_within() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let mut connection = limiter.connect().unwrap();
    let transaction = begin(&mut connection);
    let _provisional = granted(limiter.try_acquire_in(&transaction, ("apart", 2)).unwrap());
    transaction
        .execute("INSERT INTO app_job (amount) VALUES (2)", [])
        .unwrap();
    signal_by(&path("INSIDE"));
    await_signal(&path("NEVER"));
}

/// Real processes, and so real time. The window is longer than the test.
#[cfg(target_os = "linux")]
#[test]
fn jobs_and_budgets_of_many_processes_agree_whoever_is_killed() {
    let scratch = scratch();
    let file = scratch.file();
    let limiter = Limiter::open(&file).unwrap();
    let capacity = size(2_000, 40_000);
    limiter
        .define(Limit::new("budget").rate(capacity, quotalite::DAY))
        .unwrap();
    limiter
        .define(Limit::new("apart").rate(2, quotalite::DAY))
        .unwrap();
    limiter
        .connect()
        .unwrap()
        .execute_batch("CREATE TABLE app_job (amount INTEGER)")
        .unwrap();
    let name = file.to_str().unwrap();
    let rounds = size(10_000, 100_000).to_string();
    let workers: Vec<_> = (0..4)
        .map(|_| spawn("enqueue", &[("FILE", name), ("ROUNDS", &rounds)]))
        .collect();
    let inside = scratch.path().join("inside");
    let never = scratch.path().join("never");
    let within = spawn(
        "stay within",
        &[
            ("FILE", name),
            ("INSIDE", inside.to_str().unwrap()),
            ("NEVER", never.to_str().unwrap()),
        ],
    );
    eventually("somebody is within", || inside.exists());
    // All others wait for its transaction meanwhile, and one of them is killed at that.
    let mut workers = workers.into_iter();
    workers.next().unwrap().kill();
    within.kill();
    workers.for_each(support::processes::Process::wait_well);
    let sum = |table: &str| -> i64 {
        scratch.sqlite(&format!("SELECT coalesce(sum(amount), 0) FROM {table}"))
    };
    let jobs = sum("app_job").unsigned_abs();
    assert_eq!(jobs, sum("charge").unsigned_abs());
    assert!(jobs > 0 && jobs <= capacity, "{jobs} of {capacity}");
    assert_eq!(
        limiter.usage("budget").unwrap().available(),
        capacity - jobs
    );
}
