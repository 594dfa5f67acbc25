//! What is traced. This stands alone in its binary: what a thread's own subscriber sees depends on what
//! the threads of other tests trace at the same moment.
mod support;

use quotalite::{Limit, Limiter, ManualClock, Request, SECOND};
use support::scratch;

/// Collects the messages of events with their limit.
mod events {
    use std::fmt::{Debug, Write};
    use std::sync::{Arc, Mutex};

    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber};

    #[derive(Clone, Default)]
    pub struct Events(pub Arc<Mutex<Vec<String>>>);

    struct Line(String);

    impl Visit for Line {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            if matches!(field.name(), "message" | "limit") {
                write!(self.0, " {value:?}").unwrap();
            }
        }
    }

    impl Subscriber for Events {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.target().starts_with("quotalite")
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, event: &Event<'_>) {
            let mut line = Line(event.metadata().level().to_string());
            event.record(&mut line);
            self.0.lock().unwrap().push(line.0);
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }
}

/// Settles, forgets to settle, and waits for a slot that comes back by itself.
fn of_slots(limiter: &Limiter, clock: &ManualClock) {
    let slot = Limit::slots("slot", 1).timeout(SECOND);
    limiter.define(slot).unwrap();
    limiter.define(Limit::new("tokens").per_hour(100)).unwrap();
    let ask = Request::new().take("tokens", 10).take("slot", 1);
    let get = |ask: &Request| limiter.try_acquire(ask).unwrap().granted().unwrap();
    get(&ask).settle([("tokens", 3)]).unwrap();
    drop(get(&ask));
    let _held = get(&Request::new().take("slot", 1));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while limiter.usage("slot").unwrap().waiting() == 0 {
                std::thread::yield_now();
            }
            clock.advance(SECOND);
        });
        let permit = limiter.acquire("slot").unwrap();
        std::mem::forget(permit);
    });
}

#[test]
fn what_happens_is_traced_with_the_limit() {
    let events = events::Events::default();
    tracing::subscriber::with_default(events.clone(), || {
        let scratch = scratch();
        let clock = ManualClock::new();
        let open = || {
            Limiter::builder(scratch.file())
                .clock(clock.clone())
                .open()
                .unwrap()
        };
        let limiter = open();
        limiter.define(Limit::new("k").per_second(1)).unwrap();
        assert!(limiter.try_acquire("k").unwrap().is_granted());
        assert!(!limiter.try_acquire("k").unwrap().is_granted());
        let booking = limiter.book("k").unwrap();
        clock.advance(SECOND);
        drop(booking.wait().unwrap());
        let accepted = limiter.book("k").unwrap().accept();
        drop((accepted, limiter));
        let survivor = open();
        assert!(!survivor.try_acquire("k").unwrap().is_granted());
        of_slots(&survivor, &clock);
    });
    assert_eq!(
        *events.0.lock().unwrap(),
        [
            "DEBUG defined \"k\"",
            "TRACE granted \"k\"",
            "DEBUG denied \"k\"",
            "DEBUG booked \"k\"",
            "DEBUG waited \"k\"",
            "DEBUG booked \"k\"",
            "INFO reclaimed the bookings of a dead process \"k\"",
            "DEBUG denied \"k\"",
            "DEBUG defined \"slot\"",
            "DEBUG defined \"tokens\"",
            "TRACE granted \"tokens\"",
            "DEBUG settled \"tokens\"",
            "TRACE granted \"tokens\"",
            "WARN a permit was dropped and not settled: its estimate stays charged \"tokens\"",
            "TRACE granted \"slot\"",
            "DEBUG waits in line \"slot\"",
            "TRACE granted \"slot\"",
            "DEBUG waited \"slot\"",
        ]
    );
}
