//! What jobs that are tried again tell: events, errors, and what they take answers for.
#![cfg(feature = "retry")]
mod support;

use std::cell::RefCell;
use std::sync::mpsc::channel;
use std::time::Duration;

use quotalite::{
    Answer, Error, Last, Limit, MAX_RETRIES, RequestError, RetryBudget, RetryErrorKind, RetryEvent,
    RetryPolicy, RetryPolicyError, SECOND, Try, retry,
};
use support::answering::{Said, TRANSIENT, answers, define, limited, plain, secs, used};
use support::jumping::in_both_jumping;
use support::on_file;

#[test]
fn a_job_is_given_up_when_no_retries_are_left() {
    in_both_jumping(|limiter, _other, clock| {
        define(limiter, "api");
        let before = limiter.now().unwrap();
        let error = retry(plain())
            .run(limiter, "api", answers([TRANSIENT; 9]))
            .unwrap_err();
        assert_eq!(error.kind(), RetryErrorKind::Exhausted);
        assert_eq!(used(limiter, "api"), 6);
        assert_eq!(clock.passed(), 31 * SECOND);
        let offsets: Vec<Duration> = error
            .tries()
            .iter()
            .map(|one| one.at().saturating_duration_since(before))
            .collect();
        assert_eq!(offsets, secs(&[0, 1, 3, 7, 15, 31]));
        let delays: Vec<Option<Duration>> = error.tries().iter().map(Try::delay).collect();
        let expected = [1, 2, 4, 8, 16].map(|seconds| Some(Duration::from_secs(seconds)));
        assert_eq!(delays[..5], expected);
        assert_eq!(delays[5], None);
        assert!(error.tries().iter().all(|one| one.answer() == TRANSIENT));
        assert!(error.tries().iter().all(|one| one.waited().is_zero()));
        assert_eq!(
            error.to_string(),
            "gave up after 6 tries: no retries are left"
        );
        let source = std::error::Error::source(&error).unwrap();
        assert_eq!(source.to_string(), "provider: failed, perhaps not for long");
        assert_eq!(error.last(), Some(&Said(TRANSIENT)));
        assert_eq!(error.into_last(), Some(Said(TRANSIENT)));
    });
}

/// The caller pauses what the response tells of, and the job waits for that.
#[cfg(feature = "http")]
#[test]
fn who_heeds_responses_pauses_by_itself() {
    use std::cell::Cell;
    use std::collections::VecDeque;

    use http::Response;
    use quotalite::LimitSet;

    in_both_jumping(|limiter, other, clock| {
        define(limiter, "api");
        let set = LimitSet::new().requests("api");
        let mut statuses = VecDeque::from([429, 503, 200]);
        let call = || {
            let response = Response::builder().status(statuses.pop_front().unwrap());
            let response = response.header("retry-after", "20").body(()).unwrap();
            let (status, headers) = (response.status(), response.headers());
            limiter.feedback(&set, status, headers)?;
            Ok::<_, Error>(response)
        };
        let paused = Cell::new(0);
        let now = quotalite::Clock::wall(clock);
        let response = retry(plain())
            .without_pausing()
            .classify(|result: &Result<Response<()>, Error>| match result {
                Ok(response) => Answer::of_response(response.status(), response.headers(), now),
                Err(_) => Answer::Fatal,
            })
            .on_event(|_| {
                let is_paused = other.usage("api").unwrap().pause().is_some();
                paused.set(paused.get() + u32::from(is_paused));
            })
            .run(limiter, "api", call);
        assert_eq!(response.unwrap().status(), 200);
        assert_eq!(clock.jumps(), secs(&[20, 20]));
        assert_eq!(paused.get(), 4);
    });
}

#[test]
fn nothing_is_tried_again_that_would_fail_each_time() {
    in_both_jumping(|limiter, _other, clock| {
        define(limiter, "api");
        // An error that says that it is none has nothing to return.
        for answer in [Answer::Fatal, Answer::Success] {
            let error = retry(plain())
                .run(limiter, "api", answers([answer]))
                .unwrap_err();
            assert_eq!(error.kind(), RetryErrorKind::Fatal);
            assert_eq!(error.tries().len(), 1);
            assert_eq!(error.tries()[0].answer(), Answer::Fatal);
            assert_eq!(error.into_last(), Some(Said(answer)));
        }
        assert!(clock.jumps().is_empty());
    });
}

#[test]
fn events_tell_what_happens_in_its_order() {
    in_both_jumping(|limiter, _other, clock| {
        define(limiter, "api");
        let start = quotalite::Clock::wall(clock);
        let (sender, receiver) = channel();
        let (deaf, nobody) = channel();
        drop(nobody);
        let told = RefCell::new(Vec::new());
        let mut job = retry(plain().retries(2))
            .id("job 7")
            .events(deaf)
            .events(sender)
            .on_event(|event| told.borrow_mut().push(event.clone()));
        let done = job.run(limiter, "api", answers([limited(20), TRANSIENT]));
        assert_eq!(done.unwrap(), "done");
        let error = job
            .run(limiter, "api", answers([TRANSIENT; 9]))
            .unwrap_err();
        assert_eq!(error.id(), "job 7");
        let _ = job.run(limiter, "api", answers([])).unwrap();
        drop(job);
        let events: Vec<RetryEvent> = receiver.iter().collect();
        assert_eq!(events, told.into_inner());
        assert!(events.iter().all(|event| event.id() == "job 7"));
        let lines: Vec<(u64, String)> = events
            .iter()
            .map(|event| {
                let offset = event.at().duration_since(start).unwrap();
                (offset.as_secs(), event.to_string())
            })
            .collect();
        let expected = [
            (0, "rate limited for 20.0 s"),
            (0, "retry 1/2 in 20.0 s"),
            (20, "retry 1/2"),
            (20, "retry 2/2 in 2.0 s"),
            (22, "retry 2/2"),
            (22, "succeeded, in 3 tries"),
            (22, "retry 1/2 in 1.0 s"),
            (23, "retry 1/2"),
            (23, "retry 2/2 in 2.0 s"),
            (25, "retry 2/2"),
            (25, "gave up after 3 tries: no retries are left"),
            (25, "succeeded, in 1 try"),
        ];
        assert_eq!(lines, expected.map(|(at, line)| (at, line.to_owned())));
    });
}

#[test]
fn jobs_without_a_name_have_ulids() {
    let (_scratch, limiter, _clock) = on_file();
    define(&limiter, "api");
    let ids = RefCell::new(Vec::new());
    let mut job = retry(plain()).on_event(|event| ids.borrow_mut().push(event.id().to_owned()));
    for _ in 0..2 {
        job.run(&limiter, "api", answers([])).unwrap();
    }
    drop(job);
    let ids = ids.into_inner();
    assert_ne!(ids[0], ids[1]);
    assert!(ids.iter().all(|id| id.len() == 26), "{ids:?}");
}

#[test]
fn values_can_be_failures() {
    in_both_jumping(|limiter, _other, clock| {
        define(limiter, "api");
        let classify = |result: &Result<u16, Said>| match result {
            Ok(429) => limited(20),
            Ok(500..) => TRANSIENT,
            Ok(400..) => Answer::Fatal,
            Ok(_) => Answer::Success,
            Err(Said(answer)) => *answer,
        };
        let run = |statuses: &[Result<u16, Said>]| {
            let mut statuses = statuses.iter();
            retry(plain())
                .classify(classify)
                .run(limiter, "api", || *statuses.next().unwrap())
        };
        let broken = Err(Said(TRANSIENT));
        assert_eq!(run(&[Ok(429), Ok(502), broken, Ok(201)]).unwrap(), 201);
        assert_eq!(clock.jumps(), secs(&[1, 19, 2, 4]));
        let error = run(&[Ok(404)]).unwrap_err();
        assert_eq!(error.kind(), RetryErrorKind::Fatal);
        let source = std::error::Error::source(&error).unwrap();
        assert_eq!(source.to_string(), "what was returned is no success");
        assert_eq!(error.into_last(), Some(Last::Returned(404)));
        let error = run(&[Err(Said(Answer::Success))]).unwrap_err();
        let last = error.into_last().unwrap();
        assert_eq!(Result::from(last), Err(Said(Answer::Success)));
    });
}

#[test]
fn what_is_wrong_is_told_before_anything_is_called() {
    in_both_jumping(|limiter, _other, _clock| {
        define(limiter, "api");
        let never = || -> Result<(), Said> { unreachable!() };
        let policies = [
            (
                plain().retries(MAX_RETRIES + 1),
                RetryPolicyError::Retries {
                    count: MAX_RETRIES + 1,
                },
            ),
            (
                RetryPolicy::exponential(SECOND, 0),
                RetryPolicyError::Factor,
            ),
        ];
        for (policy, expected) in policies {
            let error = retry(policy).run(limiter, "api", never).unwrap_err();
            assert_eq!(error.kind(), RetryErrorKind::Policy(expected));
            assert!(std::error::Error::source(&error).is_none());
        }
        let long = RetryBudget::default().window(Duration::MAX);
        for (name, budget) in [("a", long), ("", RetryBudget::default())] {
            let error = retry(plain())
                .budget(name, budget)
                .run(limiter, "api", never)
                .unwrap_err();
            assert_eq!(error.kind(), RetryErrorKind::Limiter);
            let Some(Error::Request(error)) = error.limiter_error() else {
                panic!("{error:?}");
            };
            assert!(matches!(
                error,
                RequestError::BudgetWindow { .. } | RequestError::BudgetName { .. }
            ));
        }
        let error = retry(plain())
            .run(limiter, ("api", 101), never)
            .unwrap_err();
        assert!(matches!(
            error.limiter_error(),
            Some(Error::NeverFits { .. })
        ));
        let source = std::error::Error::source(&error).unwrap();
        assert!(source.to_string().contains("never admits 101"), "{source}");
        assert_eq!(used(limiter, "api"), 0);
    });
}

#[test]
fn what_cannot_be_paused_ends_the_job_with_its_error() {
    in_both_jumping(|limiter, _other, _clock| {
        limiter.define(Limit::slots("slots", 1)).unwrap();
        let error = retry(plain())
            .pauses("nobody knows it")
            .run(limiter, "slots", answers([limited(1)]))
            .unwrap_err();
        assert_eq!(error.kind(), RetryErrorKind::Limiter);
        assert!(matches!(
            error.limiter_error(),
            Some(Error::UnknownLimit { .. })
        ));
        assert_eq!(error.last(), Some(&Said(limited(1))));
        assert!(limiter.try_acquire("slots").unwrap().is_granted());
    });
}
