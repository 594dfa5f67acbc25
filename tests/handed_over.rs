//! Permits that outlive the process that got them: killed, ended, or ended on purpose.
#![cfg(target_os = "linux")]
mod support;

use quotalite::{HOUR, Limit, Limiter, Request, Settled};
use support::audit::audit;
use support::processes::{argument, await_signal, path, play, signal_by, size, spawn};
use support::{Scratch, scratch};

#[test]
#[ignore = "the entry of child processes"]
fn child() {
    play(&[("hold under an id", hold), ("detach", detach)]);
}

fn open(scratch: &Scratch) -> Limiter {
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(Limit::slots("slots", 1)).unwrap();
    limiter
        .define(Limit::new("tokens").rate(1_000_000, HOUR))
        .unwrap();
    limiter
}

fn ask() -> Request {
    Request::new().take("slots", 1).take("tokens", 60)
}

fn hold() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let permit = limiter.acquire(&ask().id(argument("ID"))).unwrap();
    std::fs::write(path("AT"), permit.at().as_nanos().to_string()).unwrap();
    signal_by(&path("READY"));
    loop {
        std::thread::park();
    }
}

fn detach() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let id = limiter.acquire(&ask()).unwrap().detach(HOUR).unwrap();
    std::fs::write(path("AT"), id.to_string()).unwrap();
}

fn arguments<'a>(pairs: &'a [(&'a str, String)]) -> Vec<(&'a str, &'a str)> {
    pairs
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect()
}

#[test]
fn what_a_killed_process_was_granted_under_an_id_is_granted_once() {
    let scratch = scratch();
    let limiter = open(&scratch);
    let count = size(5, 50);
    for round in 0..count {
        let file = |name: &str| scratch.path().join(format!("{name}-{round}"));
        let pairs = [
            ("FILE", scratch.file().display().to_string()),
            ("ID", format!("job {round}")),
            ("AT", file("at").display().to_string()),
            ("READY", file("ready").display().to_string()),
        ];
        let holder = spawn("hold under an id", &arguments(&pairs));
        await_signal(&file("ready"));
        // Another one waits in vain for the slot, until its holder is dead.
        assert!(!limiter.try_acquire("slots").unwrap().is_granted());
        holder.kill();
        let named = ask().id(format!("job {round}"));
        let permit = limiter.acquire(&named).unwrap();
        let at = std::fs::read_to_string(file("at")).unwrap();
        assert_eq!(permit.at().as_nanos().to_string(), at);
        assert!(!limiter.try_acquire("slots").unwrap().is_granted());
        assert!(
            permit
                .settle([("tokens", 7)])
                .unwrap()
                .settlement()
                .is_some()
        );
        assert_eq!(
            limiter
                .settle(format!("job {round}"), [("tokens", 1)])
                .unwrap(),
            Settled::Before
        );
    }
    let used = limiter.usage("tokens").unwrap().rates()[0].used();
    assert_eq!(used, 7 * u64::try_from(count).unwrap());
    assert_eq!(limiter.usage("slots").unwrap().held(), 0);
    audit(&scratch.file(), &[]).assert_clean();
}

#[test]
fn what_a_killed_process_held_can_be_settled_by_its_id() {
    let scratch = scratch();
    let limiter = open(&scratch);
    let file = |name: &str| scratch.path().join(name);
    let pairs = [
        ("FILE", scratch.file().display().to_string()),
        ("ID", "job".to_owned()),
        ("AT", file("at").display().to_string()),
        ("READY", file("ready").display().to_string()),
    ];
    let holder = spawn("hold under an id", &arguments(&pairs));
    await_signal(&file("ready"));
    holder.kill();
    assert!(limiter.try_acquire("slots").unwrap().is_granted());
    assert!(
        limiter
            .settle("job", [("tokens", 5)])
            .unwrap()
            .settlement()
            .is_some()
    );
    assert_eq!(limiter.usage("tokens").unwrap().rates()[0].used(), 5);
}

#[test]
fn what_was_detached_stays_when_its_process_has_ended() {
    let scratch = scratch();
    let limiter = open(&scratch);
    let pairs = [
        ("FILE", scratch.file().display().to_string()),
        ("AT", scratch.path().join("id").display().to_string()),
    ];
    spawn("detach", &arguments(&pairs)).wait_well();
    let id = std::fs::read_to_string(scratch.path().join("id")).unwrap();
    assert!(!limiter.try_acquire("slots").unwrap().is_granted());
    assert_eq!(limiter.usage("tokens").unwrap().rates()[0].used(), 60);
    assert!(limiter.renew(&id, 2 * HOUR).unwrap().is_some());
    assert!(
        limiter
            .settle(&id, [("tokens", 61)])
            .unwrap()
            .settlement()
            .is_some()
    );
    assert!(limiter.try_acquire("slots").unwrap().is_granted());
    assert_eq!(limiter.usage("tokens").unwrap().rates()[0].used(), 61);
    assert_eq!(limiter.cancel(&id).unwrap(), Settled::Before);
}
