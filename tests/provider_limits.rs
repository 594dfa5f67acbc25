//! Limits against a provider that counts for itself: several limiters of one file, each with threads, and real connections.
//! The long form is the example `llm_client`.
#![cfg(all(feature = "http", feature = "retry", target_os = "linux"))]
mod support;

#[path = "../examples/provider/provider.rs"]
mod provider;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use provider::Provider;
use provider::limits::{Limits, Quota};
use provider::settings::{Mode, Settings};
use quotalite::{
    Answer, BreakerPolicy, BreakerState, Feedback, Limit, LimitSet, Limiter, PausePolicy, Permit,
    Report, Request, RetryPolicy, SECOND, retry,
};
use support::{Scratch, scratch};

const LIMITERS: usize = 3;
const THREADS: usize = 4;

fn provider(requests: u64) -> Provider {
    Provider::start(Settings {
        limits: Limits {
            requests: Some(Quota::new(requests, SECOND)),
            ..Limits::default()
        },
        latency: Duration::from_millis(5),
        ..Settings::default()
    })
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().proxy(None);
    config.http_status_as_error(false).build().into()
}

/// Sends one request, and takes what the answer says of limits.
fn send(agent: &ureq::Agent, url: &str, limiter: &Limiter, set: &LimitSet) -> Answer {
    let body =
        r#"{"model": "sim-1", "messages": [{"content": "Which day is it?"}], "max_tokens": 4}"#;
    let Ok(response) = agent.post(url).content_type("application/json").send(body) else {
        return Answer::Transient;
    };
    let now = SystemTime::now();
    let feedback = Feedback::of_response(response.status(), response.headers(), now);
    let answer = Answer::of(&feedback);
    limiter.heed(set, feedback).unwrap();
    answer
}

/// Does so many jobs by several limiters of one file. Returns how many calls that took.
fn work(scratch: &Scratch, provider: &Provider, jobs: usize, set: &LimitSet) -> usize {
    let (next, calls) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..LIMITERS {
            let limiter = Limiter::open(scratch.file()).unwrap();
            for _ in 0..THREADS {
                let (limiter, next, calls) = (limiter.clone(), &next, &calls);
                scope.spawn(move || {
                    let agent = agent();
                    let request = Request::new().take("requests", 1).take("breaker", 1);
                    while next.fetch_add(1, Ordering::Relaxed) < jobs {
                        let call = |permit: &Permit| {
                            calls.fetch_add(1, Ordering::Relaxed);
                            let set = set.clone().asked_at(permit.at());
                            match send(&agent, &provider.url(), &limiter, &set) {
                                Answer::Success => {
                                    permit.report(Report::success()).map_err(|_| Answer::Fatal)
                                }
                                answer => {
                                    if answer == Answer::Transient {
                                        permit.report(Report::failure()).unwrap();
                                    }
                                    Err(answer)
                                }
                            }
                        };
                        let policy = RetryPolicy::fixed(Duration::from_millis(50)).retries(20);
                        let done = retry(policy)
                            .without_pausing()
                            .classify_errors(|answer: &Answer| *answer)
                            .run_with(&limiter, &request, call);
                        done.unwrap();
                    }
                });
            }
        }
    });
    calls.load(Ordering::Relaxed)
}

fn define(scratch: &Scratch, requests: u64) -> Limiter {
    let limiter = Limiter::open(scratch.file()).unwrap();
    let pauses = PausePolicy::default().first(SECOND);
    let limit = Limit::new("requests")
        .per_second(requests)
        .pad(Duration::from_millis(50));
    limiter.define(limit.pauses(pauses)).unwrap();
    let policy = BreakerPolicy::default().window(SECOND / 2).minimum_calls(5);
    let policy = policy.open_for(SECOND / 2).probes(2);
    limiter.define(Limit::breaker("breaker", policy)).unwrap();
    limiter
}

#[test]
fn nobody_is_refused_where_the_limits_are_known() {
    let (scratch, provider) = (scratch(), provider(100));
    let _limiter = define(&scratch, 100);
    let calls = work(
        &scratch,
        &provider,
        300,
        &LimitSet::new().requests("requests"),
    );
    let report = provider.report();
    assert_eq!(provider.audit(), []);
    assert_eq!(report.accepted, 300);
    // Somebody who is stopped on the way for longer than the pad may be refused once, on a machine that does other things.
    assert!(report.refused.requests <= 3, "{:?}", report.refused);
    assert!(calls <= 303, "{calls}");
    let used = report.requests.used.unwrap();
    assert!(used > 0.7, "{used}");
}

#[test]
fn limits_are_learned_from_what_the_provider_says() {
    let (scratch, provider) = (scratch(), provider(100));
    let limiter = define(&scratch, 10_000);
    let set = LimitSet::new().requests("requests").learning();
    work(&scratch, &provider, 200, &set);
    assert_eq!(provider.audit(), []);
    // The headers of this dialect tell no window: the limit has one rate, and that is meant.
    let learned = limiter.limit("requests").unwrap();
    assert_eq!(learned.rates()[0].capacity(), 70, "{learned}");
    let report = provider.report();
    // What was sent before the first answer came back.
    assert!(report.refused.requests <= 3 * 12, "{:?}", report.refused);
    let later = report.per_second.iter().skip(2);
    let refused: u64 = later.map(|second| second.arrivals - second.accepted).sum();
    assert!(refused <= 2, "{:?}", report.per_second);
}

#[test]
fn an_outage_sees_a_few_probes_and_is_followed_by_no_stampede() {
    let (scratch, provider) = (scratch(), provider(100));
    let limiter = define(&scratch, 100);
    let set = LimitSet::new().requests("requests");
    let calls = thread::scope(|scope| {
        let working = scope.spawn(|| work(&scratch, &provider, 300, &set));
        thread::sleep(Duration::from_millis(1_500));
        provider.outage(Mode::Down);
        thread::sleep(3 * SECOND);
        let usage = limiter.usage("breaker").unwrap();
        assert_ne!(usage.breaker().unwrap().state(), BreakerState::Closed);
        provider.outage(Mode::Up);
        working.join().unwrap()
    });
    let report = provider.report();
    assert_eq!(provider.audit(), []);
    assert_eq!(report.accepted, 300);
    // Half of what half a second holds opens it, no more are in flight than there are threads, and two probes come each half second.
    let most = 25 + 12 + 2 * 8;
    assert!(report.in_outage.down <= most, "{:?}", report.in_outage);
    assert!(calls <= 300 * 3 / 2, "{calls} calls for 300 jobs");
    let busiest = report.per_second.iter().map(|second| second.arrivals).max();
    assert!(busiest <= Some(200), "{:?}", report.per_second);
}
