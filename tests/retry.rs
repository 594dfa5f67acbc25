//! Calls that are tried again, on both stores and a clock that jumps to where somebody sleeps until.
#![cfg(feature = "retry")]
mod support;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use quotalite::{
    Answer, Backoff, Error, Jitter, Limit, Limiter, MINUTE, Permit, Request, Retry, RetryBudget,
    RetryErrorKind, RetryEvent, RetryPolicy, SECOND, Try, retry,
};
use support::answering::{STRIKE, Said, TRANSIENT, answers, define, limited, plain, secs, used};
use support::jumping::{JumpingClock, in_both_jumping, open_jumping};
use support::{on_file, open, scratch};

#[test]
fn each_try_pays_and_waits_for_its_delay() {
    in_both_jumping(|limiter, other, clock| {
        define(limiter, "api");
        define(limiter, "tokens");
        let request = Request::new().take("api", 1).take("tokens", 50);
        let calls = answers([TRANSIENT; 3]);
        let done = retry(plain()).run(limiter, &request, calls);
        assert_eq!(done.unwrap(), "done");
        assert_eq!((used(other, "api"), used(other, "tokens")), (4, 200));
        assert_eq!(clock.jumps(), secs(&[1, 2, 4]));
        assert!(limiter.usage("api").unwrap().pause().is_none());
    });
}

#[test]
fn a_try_waits_in_line_like_any_request() {
    in_both_jumping(|limiter, _other, clock| {
        limiter
            .define(Limit::new("api").rate(1, 10 * SECOND))
            .unwrap();
        let error = retry(plain().retries(2))
            .run(limiter, "api", answers([TRANSIENT; 9]))
            .unwrap_err();
        let waited: Vec<Duration> = error.tries().iter().map(Try::waited).collect();
        assert_eq!(waited, secs(&[0, 9, 8]));
        assert_eq!(clock.passed(), 20 * SECOND);
    });
}

#[test]
fn a_refusal_pauses_the_limit_for_everybody_and_is_waited_for_once() {
    // What is answered, the delay of the policy, and when the next call is made.
    let cases = [
        (limited(20), 5, 20),
        (limited(2), 5, 5),
        (limited(0), 5, 5),
        // By the policy of the limit.
        (STRIKE, 5, 60),
        // Cut by the cap of the limit.
        (limited(3_600), 5, 900),
    ];
    for (answer, delay, expected) in cases {
        in_both_jumping(|limiter, other, clock| {
            define(limiter, "api");
            define(limiter, "tokens");
            let request = Request::new().take("api", 1).take("tokens", 5);
            let seen = RefCell::new(Vec::new());
            let policy = RetryPolicy::fixed(delay * SECOND).jitter(Jitter::None);
            let done = retry(policy)
                .on_event(|event| {
                    if let RetryEvent::Retrying { delay, .. } = event {
                        let denial = other.try_acquire("api").unwrap().denied();
                        let left = denial.and_then(|denial| denial.retry_after());
                        let free = other.try_acquire("tokens").unwrap().is_granted();
                        seen.borrow_mut().push((*delay, left, free));
                    }
                })
                .run(limiter, &request, answers([answer]));
            assert_eq!(done.unwrap(), "done", "{answer}");
            assert_eq!(clock.passed(), Duration::from_secs(expected), "{answer}");
            let pause = match answer {
                Answer::RateLimited {
                    retry_after: Some(Duration::ZERO),
                } => None,
                Answer::RateLimited {
                    retry_after: Some(after),
                } => Some(after.min(15 * MINUTE)),
                _ => Some(MINUTE),
            };
            let expected = Duration::from_secs(expected);
            assert_eq!(*seen.borrow(), [(expected, pause, true)], "{answer}");
        });
    }
}

#[test]
fn who_is_refused_again_makes_the_pauses_longer() {
    in_both_jumping(|limiter, _other, _clock| {
        define(limiter, "api");
        let error = retry(plain())
            .run(limiter, "api", answers([STRIKE; 9]))
            .unwrap_err();
        let delays: Vec<u64> = error
            .tries()
            .iter()
            .filter_map(Try::delay)
            .map(|delay| delay.as_secs())
            .collect();
        assert_eq!(delays, [60, 60, 120, 240, 480]);
        // The last one teaches the others, too.
        assert!(limiter.usage("api").unwrap().pause().is_some());
    });
}

#[test]
fn a_late_answer_to_what_was_sent_before_a_pause_is_no_strike() {
    in_both_jumping(|limiter, other, clock| {
        define(limiter, "api");
        let mut is_first = true;
        let done = retry(plain()).run(limiter, "api", || {
            if !std::mem::take(&mut is_first) {
                return Ok(());
            }
            other.pause("api", Backoff::strike()).unwrap();
            clock.advance(61 * SECOND);
            Err(Said(STRIKE))
        });
        done.unwrap();
        assert_eq!(clock.jumps(), secs(&[1]));
    });
}

#[test]
fn callers_say_what_is_paused() {
    let is_paused = |limiter: &Limiter, key: &str| limiter.usage(key).unwrap().pause().is_some();
    let cases: [(&[&str], [bool; 3]); 4] = [
        (&["b"], [false, true, false]),
        (&["a", "b"], [true, true, false]),
        (&["elsewhere"], [false, false, true]),
        (&[], [false, false, false]),
    ];
    for (keys, expected) in cases {
        in_both_jumping(|limiter, other, clock| {
            for key in ["a", "b", "elsewhere"] {
                define(limiter, key);
            }
            let seen = Cell::new(None);
            let mut retry = retry(plain()).on_event(|event| {
                if matches!(event, RetryEvent::Retrying { .. }) {
                    seen.set(Some(
                        ["a", "b", "elsewhere"].map(|key| is_paused(other, key)),
                    ));
                }
            });
            retry = match keys {
                [] => retry.without_pausing(),
                keys => keys.iter().copied().fold(retry, Retry::pauses),
            };
            let request = Request::new().take("a", 1).take("b", 1);
            retry
                .run(limiter, &request, answers([limited(20)]))
                .unwrap();
            drop(retry);
            assert_eq!(seen.get(), Some(expected), "{keys:?}");
            assert_eq!(clock.passed(), 20 * SECOND, "{keys:?}");
        });
    }
}

#[test]
fn a_deadline_is_told_at_once_and_never_exceeded() {
    // What is answered, within how many seconds, and when it is given up after how many calls.
    let cases = [
        (TRANSIENT, 0, 0, 1),
        (TRANSIENT, 2, 1, 2),
        (TRANSIENT, 3, 3, 3),
        (TRANSIENT, 30, 15, 5),
        (limited(20), 19, 0, 1),
        (limited(20), 20, 20, 2),
        (STRIKE, 59, 0, 1),
    ];
    for (answer, within, ended, calls) in cases {
        in_both_jumping(|limiter, _other, clock| {
            define(limiter, "api");
            let policy = plain().within(within * SECOND);
            let error = retry(policy)
                .run(limiter, "api", answers([answer; 9]))
                .unwrap_err();
            assert_eq!(error.kind(), RetryErrorKind::Deadline);
            let told = (clock.passed(), error.tries().len());
            assert_eq!(told, (ended * SECOND, calls), "{answer} within {within} s");
            assert_eq!(error.into_last(), Some(Said(answer)));
        });
    }
}

#[test]
fn a_deadline_is_told_at_once_where_the_line_is_too_long() {
    in_both_jumping(|limiter, _other, clock| {
        limiter.define(Limit::new("api").per_minute(1)).unwrap();
        let policy = plain().within(30 * SECOND);
        // The first try is admitted, and the limit is known to admit no other in time.
        let error = retry(policy)
            .run(limiter, "api", answers([TRANSIENT; 9]))
            .unwrap_err();
        assert_eq!(error.kind(), RetryErrorKind::Deadline);
        assert_eq!((error.tries().len(), clock.passed()), (1, Duration::ZERO));
        // Not even the first one is.
        let error = retry(policy).run(limiter, "api", answers([])).unwrap_err();
        assert_eq!(error.kind(), RetryErrorKind::Deadline);
        assert!(matches!(error.limiter_error(), Some(Error::TooLate { .. })));
        assert!(error.tries().is_empty() && error.last().is_none());
        assert_eq!(
            error.to_string(),
            "gave up after 0 tries: the next try would come too late"
        );
        assert_eq!(clock.passed(), Duration::ZERO);
        assert_eq!(used(limiter, "api"), 1);
    });
}

#[test]
fn a_call_that_takes_until_after_the_deadline_is_the_last_one() {
    in_both_jumping(|limiter, _other, clock| {
        define(limiter, "api");
        let policy = RetryPolicy::fixed(Duration::ZERO).within(10 * SECOND);
        let call = || {
            clock.advance(11 * SECOND);
            Err::<(), Said>(Said(TRANSIENT))
        };
        let error = retry(policy).run(limiter, "api", call).unwrap_err();
        assert_eq!(error.kind(), RetryErrorKind::Deadline);
        assert_eq!(error.tries().len(), 1);
    });
}

#[test]
fn who_comes_back_too_late_tries_no_more() {
    in_both_jumping(|limiter, _other, clock| {
        define(limiter, "api");
        let error = retry(plain().within(10 * SECOND))
            .on_event(|event| {
                if matches!(event, RetryEvent::Retrying { .. }) {
                    clock.advance(11 * SECOND);
                }
            })
            .run(limiter, "api", answers([TRANSIENT; 9]))
            .unwrap_err();
        assert_eq!(error.kind(), RetryErrorKind::Deadline);
        assert_eq!((error.tries().len(), used(limiter, "api")), (1, 1));
    });
}

#[test]
fn delays_count_from_the_answer() {
    in_both_jumping(|limiter, _other, clock| {
        define(limiter, "api");
        let call = || {
            clock.advance(7 * SECOND);
            Err::<(), Said>(Said(TRANSIENT))
        };
        let policy = plain().retries(2);
        let error = retry(policy).run(limiter, "api", call).unwrap_err();
        assert_eq!(error.tries().len(), 3);
        assert_eq!(clock.jumps(), secs(&[1, 2]));
    });
}

#[test]
fn all_jobs_share_a_budget() {
    in_both_jumping(|limiter, other, _clock| {
        define(limiter, "api");
        let budget = RetryBudget::default().percent(50).at_least(1);
        let calls = Cell::new(0);
        let job = |limiter: &Limiter| {
            let policy = RetryPolicy::fixed(Duration::ZERO);
            let error = retry(policy)
                .budget("provider", budget)
                .run(limiter, "api", || {
                    calls.set(calls.get() + 1);
                    Err::<(), Said>(Said(TRANSIENT))
                })
                .unwrap_err();
            assert_eq!(error.kind(), RetryErrorKind::Budget);
            error.tries().len()
        };
        // One at least, and then one for every two calls.
        let tries: Vec<usize> = [limiter, other, limiter, other, limiter, other]
            .map(job)
            .to_vec();
        assert_eq!(tries, [2, 1, 1, 2, 1, 2]);
        assert_eq!(calls.get(), 9);
    });
}

#[test]
fn slots_are_free_while_a_job_waits() {
    in_both_jumping(|limiter, other, _clock| {
        limiter.define(Limit::slots("slots", 1)).unwrap();
        define(limiter, "api");
        let request = Request::new().take("api", 1).take("slots", 1);
        let held = || other.usage("slots").unwrap().available() == 0;
        let free = Cell::new(0);
        let mut outcomes = VecDeque::from([limited(1), TRANSIENT]);
        let done = retry(plain())
            .on_event(|event| {
                let is_resumed = matches!(event, RetryEvent::Resumed { .. });
                assert_eq!(held(), is_resumed, "{event}");
                free.set(free.get() + u32::from(!is_resumed));
            })
            .run(limiter, &request, || {
                assert!(held());
                outcomes
                    .pop_front()
                    .map_or(Ok(()), |answer| Err(Said(answer)))
            });
        assert_eq!((), done.unwrap());
        // Refused, waits, waits, succeeded.
        assert_eq!(free.get(), 4);
        assert!(!held());
    });
}

#[test]
fn a_panic_gives_slots_back() {
    in_both_jumping(|limiter, other, _clock| {
        limiter.define(Limit::slots("slots", 1)).unwrap();
        let call = || -> Result<(), Said> { panic!("the call") };
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            retry(plain()).run(limiter, "slots", call)
        }));
        assert!(panicked.is_err());
        assert!(other.try_acquire("slots").unwrap().is_granted());
    });
}

#[test]
fn calls_can_settle_and_cancel_their_permits() {
    in_both_jumping(|limiter, _other, _clock| {
        define(limiter, "tokens");
        let mut tries = 0;
        let call = |permit: &Permit| {
            tries += 1;
            if tries < 3 {
                permit.cancel().unwrap();
                return Err(Said(TRANSIENT));
            }
            permit.settle([("tokens", 7)]).unwrap();
            Ok(permit.at())
        };
        let at = retry(plain())
            .run_with(limiter, ("tokens", 50), call)
            .unwrap();
        assert_eq!(used(limiter, "tokens"), 7);
        assert_eq!(at, limiter.now().unwrap());
    });
}

#[test]
fn only_the_first_try_is_acquired_under_the_id_of_the_request() {
    in_both_jumping(|limiter, other, _clock| {
        define(limiter, "api");
        let request = Request::new().take("api", 1).id("job 7");
        drop(other.acquire(&request).unwrap());
        let mut resumed = Vec::new();
        let done = retry(plain()).run_with(limiter, &request, |permit| {
            resumed.push(permit.is_resumed());
            match resumed.len() {
                3 => Ok(()),
                _ => Err(Said(TRANSIENT)),
            }
        });
        assert_eq!((), done.unwrap());
        assert_eq!(resumed, [true, false, false]);
        assert_eq!(used(limiter, "api"), 3);
    });
}

/// On a clock that others advance, as in production.
#[test]
fn two_jobs_wait_out_one_pause() {
    let (scratch, limiter, clock) = on_file();
    define(&limiter, "api");
    let other = open(&scratch, &clock);
    let (sender, receiver) = channel();
    let start = limiter.now().unwrap();
    let both_call = Barrier::new(2);
    thread::scope(|scope| {
        for limiter in [&limiter, &other] {
            let sender = sender.clone();
            let both_call = &both_call;
            scope.spawn(move || {
                let mut outcomes = VecDeque::from([limited(20)]);
                let call = || match outcomes.pop_front() {
                    Some(answer) => {
                        both_call.wait();
                        Err(Said(answer))
                    }
                    None => Ok(limiter.now().unwrap()),
                };
                let policy = RetryPolicy::fixed(SECOND).jitter(Jitter::None);
                sender
                    .send(retry(policy).run(limiter, "api", call))
                    .unwrap();
            });
        }
        drop(sender);
        let mut done = Vec::new();
        while done.len() < 2 {
            // Not while one of them is awake, and has not come to look at the clock.
            if clock.sleepers() + done.len() == 2 {
                clock.advance(Duration::from_millis(500));
            }
            done.extend(receiver.recv_timeout(Duration::from_millis(2)));
        }
        for at in done {
            let waited = at.unwrap().saturating_duration_since(start);
            assert!((20 * SECOND..=21 * SECOND).contains(&waited), "{waited:?}");
        }
    });
}

fn any_answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        4 => Just(TRANSIENT),
        2 => (0_u64..40).prop_map(limited),
        1 => Just(STRIKE),
        1 => Just(Answer::Fatal),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 50 } else { 1_000 }))]

    /// Whatever is answered: no more calls than the policy allows, each paid, none after the deadline nor during a pause, and
    /// none sooner than the delays of the policy.
    #[test]
    fn jobs_keep_to_their_policies(
        all in prop::collection::vec(any_answer(), 0..8),
        retries in 0_u32..6,
        seed in any::<u64>(),
        within in prop::option::of(0_u64..120),
        call_ms in 0_u64..3_000,
    ) {
        let (scratch, clock) = (scratch(), JumpingClock::default());
        let limiter = open_jumping(&scratch, &clock);
        define(&limiter, "api");
        let mut policy = RetryPolicy::default().retries(retries).seed(seed);
        if let Some(within) = within {
            policy = policy.within(Duration::from_secs(within));
        }
        let mut outcomes = answers(all.clone());
        let (mut calls, mut answered, mut free_at) = (Vec::new(), Vec::new(), Duration::ZERO);
        let done = retry(policy).run(&limiter, "api", || {
            calls.push(clock.passed());
            assert!(clock.passed() >= free_at, "during a pause");
            clock.advance(Duration::from_millis(call_ms));
            let outcome = outcomes();
            answered.push(clock.passed());
            if let Err(Said(Answer::RateLimited { retry_after: Some(after) })) = outcome {
                free_at = clock.passed() + after;
            }
            outcome
        });
        prop_assert!(calls.len() <= 1 + retries as usize);
        prop_assert_eq!(used(&limiter, "api"), calls.len() as u64);
        for ((next, answered), delay) in calls[1..].iter().zip(&answered).zip(policy.delays()) {
            prop_assert!(*next >= *answered + delay);
        }
        if let Some(within) = within {
            let within = Duration::from_secs(within);
            prop_assert!(calls.iter().all(|at| *at <= within));
            prop_assert!(clock.passed() <= within.max(*answered.last().unwrap()));
        }
        match done {
            Ok(_) => prop_assert_eq!(calls.len(), all.len() + 1),
            Err(error) => {
                prop_assert_eq!(error.tries().len(), calls.len());
                let failed = &all[..calls.len()];
                let kept: Vec<Answer> = error.tries().iter().map(Try::answer).collect();
                prop_assert_eq!(kept, failed);
                match error.kind() {
                    RetryErrorKind::Exhausted => prop_assert_eq!(calls.len(), 1 + retries as usize),
                    RetryErrorKind::Fatal => prop_assert_eq!(failed.last(), Some(&Answer::Fatal)),
                    kind => prop_assert_eq!(kind, RetryErrorKind::Deadline),
                }
            }
        }
    }
}
