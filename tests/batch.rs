//! Many requests and many permits in one transaction, on both stores.
mod support;

use quotalite::{
    Decision, Error, Limit, Limiter, MAX_BATCH, MINUTE, Permit, Request, RequestError, SECOND,
    Settled,
};
use support::{in_both_stores, on_file};

fn define(limiter: &Limiter) {
    limiter.define(Limit::slots("slots", 3)).unwrap();
    limiter
        .define(Limit::new("tokens").rate(100, MINUTE))
        .unwrap();
}

fn ask(slots: u64, tokens: u64) -> Request {
    Request::new().take("slots", slots).take("tokens", tokens)
}

fn free(limiter: &Limiter) -> (u64, u64) {
    let free = |key| limiter.usage(key).unwrap().available();
    (free("slots"), free("tokens"))
}

#[test]
fn each_request_is_admitted_by_itself_and_in_order() {
    in_both_stores(|limiter, _| {
        define(limiter);
        let asks = [
            ask(1, 50),
            ask(1, 60),
            Request::new().take("nobody", 1),
            Request::new(),
            ask(4, 1),
            ask(1, 50),
            ask(1, 1),
        ];
        let decisions = limiter.try_acquire_all(&asks).unwrap();
        let told: Vec<&str> = decisions
            .iter()
            .map(|decision| match decision {
                Ok(Decision::Granted(_)) => "granted",
                Ok(Decision::Denied(denial)) => denial.key(),
                Err(Error::UnknownLimit { .. }) => "unknown",
                Err(Error::Request(_)) => "wrong",
                Err(Error::NeverFits { .. }) => "never",
                Err(error) => panic!("{error}"),
            })
            .collect();
        assert_eq!(
            told,
            [
                "granted", "tokens", "unknown", "wrong", "never", "granted", "tokens"
            ]
        );
        assert_eq!(free(limiter), (1, 0));
        drop(decisions);
        assert_eq!(free(limiter), (3, 0));
    });
}

#[test]
fn permits_are_settled_and_cancelled_by_themselves_and_in_order() {
    in_both_stores(|limiter, _| {
        define(limiter);
        let asks = [ask(1, 10), ask(1, 20), ask(1, 30)];
        let permits: Vec<Permit> = limiter
            .try_acquire_all(&asks)
            .unwrap()
            .into_iter()
            .map(|decision| decision.unwrap().granted().unwrap())
            .collect();
        let id = permits[1].id().unwrap();
        assert_eq!(free(limiter), (0, 40));
        let settled = limiter
            .settle_all([
                ((&permits[0]).into(), [("tokens", 1)]),
                ((&permits[0]).into(), [("tokens", 2)]),
                ((&permits[2]).into(), [("mail", 2)]),
                (quotalite::Handle::from(&id), [("tokens", 5)]),
                ("nobody".into(), [("tokens", 5)]),
                ((&permits[1]).into(), [("tokens", 9)]),
            ])
            .unwrap();
        assert!(matches!(settled[0], Ok(Settled::Now(_))), "{settled:?}");
        assert!(matches!(settled[1], Ok(Settled::Before)), "{settled:?}");
        assert!(
            matches!(&settled[2], Err(Error::Request(RequestError::NotTaken { key })) if key == "mail"),
            "{settled:?}"
        );
        assert!(matches!(settled[3], Ok(Settled::Now(_))), "{settled:?}");
        assert!(matches!(settled[4], Ok(Settled::Unknown)), "{settled:?}");
        assert!(matches!(settled[5], Ok(Settled::Before)), "{settled:?}");
        assert_eq!(free(limiter), (2, 64));
        // What was refused in the middle has left its permit open.
        let cancelled = limiter.cancel_all(&permits).unwrap();
        let told: Vec<bool> = cancelled
            .iter()
            .map(|settled| settled.as_ref().unwrap().settlement().is_some())
            .collect();
        assert_eq!(told, [false, false, true]);
        assert_eq!(free(limiter), (3, 94));
    });
}

#[test]
fn a_permit_twice_in_a_batch_is_settled_once_whatever_was_wrong_with_the_first_time() {
    in_both_stores(|limiter, _| {
        define(limiter);
        let permit = limiter.acquire(&ask(1, 50)).unwrap();
        let settled = limiter
            .settle_all([
                (&permit, [("mail", 1)]),
                (&permit, [("tokens", 10)]),
                (&permit, [("tokens", 20)]),
            ])
            .unwrap();
        assert!(settled[0].is_err(), "{settled:?}");
        assert!(matches!(settled[1], Ok(Settled::Now(_))), "{settled:?}");
        assert!(matches!(settled[2], Ok(Settled::Before)), "{settled:?}");
        assert_eq!(free(limiter), (3, 90));
        assert!(permit.has_ended());
    });
}

#[test]
fn a_permit_of_another_limiter_is_refused_and_left_as_it_is() {
    in_both_stores(|limiter, clock| {
        define(limiter);
        let other = Limiter::in_memory_with(clock.clone());
        define(&other);
        let (of_this, of_other) = (
            limiter.acquire(&ask(1, 50)).unwrap(),
            other.acquire(&ask(1, 50)).unwrap(),
        );
        let cancelled = limiter.cancel_all([&of_other, &of_this]).unwrap();
        assert!(
            matches!(
                cancelled[0],
                Err(Error::Request(RequestError::OtherLimiter))
            ),
            "{cancelled:?}"
        );
        assert!(matches!(cancelled[1], Ok(Settled::Now(_))), "{cancelled:?}");
        assert_eq!((free(limiter), free(&other)), ((3, 100), (2, 50)));
        of_other.cancel().unwrap();
        assert_eq!(free(&other), (3, 100));
    });
}

#[test]
fn what_fails_in_a_batch_leaves_nothing_of_itself_behind() {
    let (scratch, limiter, clock) = on_file();
    limiter
        .define(Limit::slots("slots", 3).timeout(SECOND))
        .unwrap();
    limiter
        .define(Limit::new("tokens").rate(100, MINUTE))
        .unwrap();
    let _held = limiter.acquire(&ask(1, 50).id("job")).unwrap();
    clock.advance(SECOND);
    let open = "SELECT count(*) FROM permit WHERE id = 'job'";
    let asks = [ask(1, 20).id("job"), ask(1, 10)];
    let decisions = limiter.try_acquire_all(&asks).unwrap();
    // The first one has found that the permit under its id has timed out, and ended it, before it failed.
    assert!(
        matches!(decisions[0], Err(Error::IdTaken { .. })),
        "{decisions:?}"
    );
    assert!(decisions[1].as_ref().unwrap().is_granted());
    assert_eq!(scratch.sqlite::<i64>(open), 1);
    let settled = limiter.settle("job", [("tokens", 1)]).unwrap();
    assert_eq!(settled, Settled::Expired);
    assert_eq!(scratch.sqlite::<i64>(open), 0);
}

#[test]
fn a_batch_has_an_end() {
    in_both_stores(|limiter, _| {
        define(limiter);
        let asks = vec![ask(1, 1); MAX_BATCH + 1];
        match limiter.try_acquire_all(&asks) {
            Err(Error::Request(RequestError::BatchLength { count })) => {
                assert_eq!(count, MAX_BATCH + 1);
            }
            other => panic!("{other:?}"),
        }
        let wrong = std::iter::once(("x", [("a", 1), ("a", 1)]));
        let right = std::iter::repeat_n(("x", [("a", 1), ("b", 1)]), MAX_BATCH);
        match limiter.settle_all(wrong.chain(right)) {
            Err(Error::Request(RequestError::BatchLength { count })) => {
                assert_eq!(count, MAX_BATCH + 1);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(free(limiter), (3, 100));
        assert!(
            limiter
                .try_acquire_all(Vec::<&Request>::new())
                .unwrap()
                .is_empty()
        );
    });
}
