//! The line against its rule, said once more and apart from it, over random tickets, holders and charges.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use proptest::prelude::*;

use super::places::Places;
use super::*;
use crate::breaker::Broken;
use crate::calendar::{Charge, Ledgers, Level, OpenBlocks, Total};
use crate::limit::{Limit, SECOND, Window, nanos};
use crate::pause::Pause;

const NOW_MS: i64 = 1_000_000;

fn at_ms(ms: i64) -> Timestamp {
    Timestamp::from_nanos(ms * 1_000_000)
}

/// Limits by number; what is held of slots, and the charges of rates, by millisecond.
#[derive(Clone, Debug, Default)]
struct Tiny {
    limits: Vec<Arc<Known>>,
    held: BTreeMap<usize, i64>,
    charges: Vec<(usize, i64, i64)>,
}

impl Tiny {
    fn charges_of(&self, limit: LimitId) -> Vec<Charge> {
        let mut charges: Vec<(i64, i64)> = self
            .charges
            .iter()
            .filter(|(of, ..)| self.limits[*of].id == limit)
            .map(|(_, ms, amount)| (*ms, *amount))
            .collect();
        charges.sort_unstable();
        let mut total = 0;
        let numbered = (0..).zip(charges);
        let charge = |(seq, (ms, amount)): (i64, (i64, i64))| {
            total += amount;
            Charge {
                at: at_ms(ms),
                seq,
                amount,
                total: Total(total),
            }
        };
        numbered.map(charge).collect()
    }

    /// Takes so much now, as somebody who is let through does.
    fn take(&mut self, takes: &[(usize, i64)]) {
        for (limit, amount) in takes {
            match self.limits[*limit].limit.slot_count() {
                Some(_) => *self.held.entry(*limit).or_default() += amount,
                None => self.charges.push((*limit, NOW_MS, *amount)),
            }
        }
    }

    /// Whether so much of a limit can be had now, by itself.
    fn fits(&self, limit: usize, amount: i64) -> bool {
        let known = &self.limits[limit].limit;
        if let Some(count) = known.slot_count() {
            let held = self.held.get(&limit).copied().unwrap_or(0);
            return held + amount <= count.cast_signed();
        }
        let of_it = self.charges.iter().filter(|(of, ..)| *of == limit);
        let of_it: Vec<(i64, i64)> = of_it.map(|(_, ms, amount)| (*ms, *amount)).collect();
        known.rates().iter().all(|rate| {
            let Window::Rolling(window) = rate.window() else {
                unreachable!("there are no others here");
            };
            let window_ms = nanos(window) / 1_000_000;
            let ends = NOW_MS..NOW_MS + window_ms;
            ends.into_iter().all(|end| {
                let inside = of_it
                    .iter()
                    .filter(|(ms, _)| end - window_ms < *ms && *ms <= end);
                let used: i64 = inside.map(|(_, amount)| *amount).sum();
                used + amount <= rate.capacity_units()
            })
        })
    }
}

impl Ledgers for Tiny {
    type Error = Infallible;

    fn last_at(&mut self, limit: LimitId, at: Timestamp) -> Result<Option<Charge>, Infallible> {
        let mut charges = self.charges_of(limit);
        charges.retain(|charge| charge.at <= at);
        Ok(charges.pop())
    }

    fn first_after(&mut self, limit: LimitId, at: Timestamp) -> Result<Option<Charge>, Infallible> {
        let mut charges = self.charges_of(limit).into_iter();
        Ok(charges.find(|charge| charge.at > at))
    }

    fn open_blocks(&mut self, _limit: LimitId) -> Result<OpenBlocks, Infallible> {
        Ok(OpenBlocks::default())
    }

    fn level(&mut self, _limit: LimitId) -> Result<Option<Level>, Infallible> {
        Ok(None)
    }

    fn pause(&mut self, _: LimitId) -> Result<Option<Pause>, Infallible> {
        Ok(None)
    }

    fn wall_shift_ns(&self) -> i64 {
        0
    }
}

impl Books for Tiny {
    fn held(&mut self, limit: LimitId) -> Result<i64, Infallible> {
        let position = self.limits.iter().position(|known| known.id == limit);
        let held = position.and_then(|position| self.held.get(&position));
        Ok(held.copied().unwrap_or(0))
    }

    fn held_since(&mut self, limit: LimitId, _: Timestamp) -> Result<i64, Infallible> {
        self.held(limit)
    }

    fn broken(&mut self, _: LimitId) -> Result<Option<Broken>, Infallible> {
        Ok(None)
    }
}

#[derive(Clone, Debug)]
struct Ticket {
    takes: Vec<(usize, i64)>,
    is_late: bool,
}

#[derive(Clone, Debug)]
struct Scene {
    books: Tiny,
    tickets: Vec<Ticket>,
    ask: Vec<(usize, i64)>,
}

impl Scene {
    fn waiters(&self) -> Vec<Waiter> {
        let waiter = |ticket: &Ticket| Waiter {
            owner: 0,
            takes: self.known(&ticket.takes),
            is_late: ticket.is_late,
        };
        self.tickets.iter().map(waiter).collect()
    }

    fn known(&self, takes: &[(usize, i64)]) -> Few<(Arc<Known>, i64)> {
        let known =
            |(limit, amount): &(usize, i64)| (Arc::clone(&self.books.limits[*limit]), *amount);
        takes.iter().map(known).collect()
    }

    fn can_go(&self) -> Vec<usize> {
        let Ok(turns) = who_can_go(&mut self.books.clone(), &self.waiters(), at_ms(NOW_MS));
        turns.to_vec()
    }

    /// Books the rates that are asked for. Returns when, if any are.
    fn book(&mut self) -> Option<Timestamp> {
        let ask = of_rates(self, &self.ask);
        let lines: Vec<Line<'_>> = ask.lines().collect();
        let (now, forever) = (at_ms(NOW_MS), Timestamp::from_nanos(i64::MAX));
        let waiters = self.waiters();
        let Ok(verdict) = book_behind(&mut self.books, &waiters, &lines, now, forever);
        let Verdict::Admit(at) = verdict else {
            panic!("a booking that nobody limits was refused: {verdict:?}");
        };
        for line in &lines {
            let limit = usize::try_from(line.id.0).expect("its number");
            let charge = (limit, at.as_nanos() / 1_000_000, line.amount);
            self.books.charges.push(charge);
        }
        (!lines.is_empty()).then_some(at)
    }

    /// What is decided for the request, behind these.
    fn verdict(&self, ahead: &[Waiter]) -> Verdict {
        let asks = Waiter {
            owner: 0,
            takes: self.known(&self.ask),
            is_late: false,
        };
        let lines: Vec<Line<'_>> = asks.lines().collect();
        let now = at_ms(NOW_MS);
        let Ok(verdict) = decide_behind(&mut self.books.clone(), ahead, &lines, now, now);
        verdict
    }
}

/// The rule: those in line are gone through in order. Who is short of a limit keeps it; who is short of nothing
/// takes what it asks for. For who is late, nothing is kept.
#[derive(Debug, Default)]
struct Rule {
    kept: BTreeSet<usize>,
    taken: BTreeMap<usize, i64>,
    can_go: Vec<usize>,
}

impl Rule {
    /// What comes of it if these are taken before.
    fn of(scene: &Scene, taken: &[(usize, i64)]) -> Self {
        let mut rule = Self {
            taken: taken.iter().copied().collect(),
            ..Self::default()
        };
        for (position, ticket) in scene.tickets.iter().enumerate() {
            let short = rule.short_of(&scene.books, &ticket.takes);
            if short.is_empty() {
                rule.can_go.push(position);
            }
            if ticket.is_late {
                continue;
            }
            if short.is_empty() {
                for (limit, amount) in &ticket.takes {
                    *rule.taken.entry(*limit).or_default() += amount;
                }
            }
            rule.kept.extend(short);
        }
        rule
    }

    fn short_of(&self, books: &Tiny, takes: &[(usize, i64)]) -> Vec<usize> {
        let is_short = |(limit, amount): &&(usize, i64)| {
            let promised = self.taken.get(limit).copied().unwrap_or(0);
            self.kept.contains(limit) || !books.fits(*limit, promised + amount)
        };
        takes.iter().filter(is_short).map(|take| take.0).collect()
    }
}

fn limit() -> impl Strategy<Value = (bool, u64, u64)> {
    (prop::bool::weighted(0.6), 1_u64..=5, 2_u64..=9)
}

fn takes(most: i64) -> impl Strategy<Value = Vec<(usize, i64)>> {
    prop::collection::btree_map(0_usize..8, 1..=most, 1..=3)
        .prop_map(|takes| takes.into_iter().collect())
}

fn scene() -> impl Strategy<Value = Scene> {
    let limits = prop::collection::vec(limit(), 1..=4);
    let held = prop::collection::vec(0_i64..=5, 4);
    let charges = prop::collection::vec((0_usize..8, -9_i64..=9, 1_i64..=3), 0..=6);
    let ticket = (takes(4), prop::bool::weighted(0.15));
    let tickets = prop::collection::vec(ticket, 0..=6);
    (limits, held, charges, tickets, takes(4)).prop_map(|(limits, held, charges, tickets, ask)| {
        let count = limits.len();
        // Numbers are taken modulo the limits that there are, each once.
        let on_these = |takes: Vec<(usize, i64)>| -> Vec<(usize, i64)> {
            let takes = takes
                .into_iter()
                .map(|(limit, amount)| (limit % count, amount));
            let takes: BTreeMap<usize, i64> = takes.collect();
            takes.into_iter().collect()
        };
        let known = |(number, (is_slots, capacity, ms)): (usize, (bool, u64, u64))| {
            let key = number.to_string();
            let limit = if is_slots {
                Limit::slots(key, capacity)
            } else {
                let window = SECOND / 1_000 * u32::try_from(ms).expect("small");
                Limit::new(key).rate(capacity, window)
            };
            let id = LimitId(i64::try_from(number).expect("small"));
            let limit = limit.build().expect("a limit that can be");
            Arc::new(Known::of(id, limit))
        };
        let charges = charges.into_iter();
        let books = Tiny {
            limits: limits.into_iter().enumerate().map(known).collect(),
            held: held.into_iter().enumerate().collect(),
            charges: charges
                .map(|(limit, ms, amount)| (limit % count, NOW_MS + ms, amount))
                .collect(),
        };
        let tickets = tickets.into_iter().map(|(takes, is_late)| Ticket {
            takes: on_these(takes),
            is_late,
        });
        // What never fits is refused before anybody looks at the line.
        let most = |limit: usize| {
            books.limits[limit]
                .limit
                .tightest()
                .capacity()
                .cast_signed()
        };
        let ask = on_these(ask).into_iter();
        let ask = ask.map(|(limit, amount)| (limit, amount.min(most(limit))));
        Scene {
            tickets: tickets.collect(),
            ask: ask.collect(),
            books,
        }
    })
}

fn slots(counts: &[u64]) -> Tiny {
    let known = |(number, count): (i64, &u64)| {
        let limit = Limit::slots(number.to_string(), *count);
        let limit = limit.build().expect("a limit that can be");
        let id = LimitId(number);
        Arc::new(Known::of(id, limit))
    };
    Tiny {
        limits: (0..).zip(counts).map(known).collect(),
        ..Tiny::default()
    }
}

fn ticket(takes: &[(usize, i64)], is_late: bool) -> Ticket {
    let takes = takes.to_vec();
    Ticket { takes, is_late }
}

#[test]
fn nothing_is_kept_for_a_late_one_that_is_short() {
    let mut books = slots(&[3]);
    books.take(&[(0, 1)]);
    let scene = Scene {
        books,
        tickets: vec![ticket(&[(0, 3)], true)],
        ask: vec![(0, 2)],
    };
    assert_eq!(
        scene.verdict(&scene.waiters()),
        Verdict::Admit(at_ms(NOW_MS))
    );
}

#[test]
fn nobody_makes_the_first_one_short_of_what_the_second_one_could_go_with() {
    let mut books = slots(&[4, 1]);
    books.take(&[(1, 1)]);
    let scene = |amount| Scene {
        books: books.clone(),
        tickets: vec![ticket(&[(0, 3), (1, 1)], false), ticket(&[(0, 1)], false)],
        ask: vec![(0, amount)],
    };
    let verdict = |amount| scene(amount).verdict(&scene(amount).waiters());
    assert_eq!(verdict(1), Verdict::Admit(at_ms(NOW_MS)));
    // With two taken, the first one would be short of three, and keep the rest from the second.
    assert!(matches!(
        verdict(2),
        Verdict::Refuse(Refusal::Behind { .. })
    ));
}

fn earliest(books: &mut impl Books<Error = Infallible>, lines: &[Line<'_>]) -> Earliest {
    let Ok(earliest) = calendar::earliest(books, lines, at_ms(NOW_MS));
    earliest
}

fn instant(earliest: Earliest) -> Timestamp {
    match earliest {
        Earliest::Now => at_ms(NOW_MS),
        Earliest::Later { at, .. } => at,
        Earliest::Beyond { .. } => panic!("instants of these tests can be written down"),
    }
}

/// Who is asked for these by itself, but for slots.
fn of_rates(scene: &Scene, takes: &[(usize, i64)]) -> Waiter {
    let rates = scene.known(takes).into_iter();
    Waiter {
        owner: 0,
        takes: rates
            .filter(|(known, amount)| {
                let capacity = known.limit.tightest().capacity().cast_signed();
                known.limit.slot_count().is_none() && *amount <= capacity
            })
            .collect(),
        is_late: false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_line_moves_by_its_rule(scene in scene()) {
        let rule = Rule::of(&scene, &[]);
        prop_assert_eq!(&scene.can_go(), &rule.can_go);
        let verdict = scene.verdict(&scene.waiters());
        let short = rule.short_of(&scene.books, &scene.ask);
        let after = Rule::of(&scene, &scene.ask);
        let mut turns = rule.can_go.iter();
        let holds_up_nobody = turns.all(|position| {
            scene.tickets[*position].is_late || after.can_go.contains(position)
        });
        let goes = short.is_empty() && holds_up_nobody;
        prop_assert_eq!(verdict == Verdict::Admit(at_ms(NOW_MS)), goes);
        if let Verdict::Refuse(Refusal::Taken { blocker }) = verdict {
            let limit = scene.ask[blocker.line].0;
            prop_assert!(short.contains(&limit), "{limit} is not one of {short:?}");
        }
    }

    #[test]
    fn all_whose_turn_it_is_can_go_together(scene in scene()) {
        let mut books = scene.books.clone();
        for position in scene.can_go() {
            let ticket = &scene.tickets[position];
            let mut takes = ticket.takes.iter();
            prop_assert!(takes.all(|(limit, amount)| books.fits(*limit, *amount)));
            if !ticket.is_late {
                books.take(&ticket.takes);
            }
        }
    }

    #[test]
    fn nobody_who_comes_later_takes_what_an_older_one_could_go_with(scene in scene()) {
        let could_go = scene.can_go();
        if scene.verdict(&scene.waiters()) == Verdict::Admit(at_ms(NOW_MS)) {
            let mut after = scene.clone();
            after.books.take(&scene.ask);
            let can_go = after.can_go();
            for position in could_go {
                let is_late = scene.tickets[position].is_late;
                prop_assert!(is_late || can_go.contains(&position));
            }
        }
    }

    #[test]
    fn nobody_is_refused_for_a_limit_that_no_older_one_wants(scene in scene()) {
        let behind = scene.verdict(&scene.waiters());
        let is_wanted = |limit: usize| {
            let mut older = scene.tickets.iter().filter(|ticket| !ticket.is_late);
            older.any(|ticket| ticket.takes.iter().any(|take| take.0 == limit))
        };
        if let Verdict::Refuse(Refusal::Behind { blocker }) = behind {
            prop_assert!(is_wanted(scene.ask[blocker.line].0), "{behind:?}");
        }
        if !scene.ask.iter().any(|take| is_wanted(take.0)) {
            prop_assert_eq!(behind, scene.verdict(&[]));
        }
    }

    #[test]
    fn places_count_as_if_they_were_charged(
        scene in scene(),
        places in prop::collection::vec((0_usize..8, 0_i64..=9, 1_i64..=3), 0..=4),
        looks_ms in -12_i64..=12,
    ) {
        let mut charged = scene.books.clone();
        let mut books = scene.books.clone();
        let mut kept = Places::none(&mut books);
        for (limit, ms, amount) in places {
            let limit = limit % scene.books.limits.len();
            let known = &scene.books.limits[limit];
            if known.limit.slot_count().is_some() {
                continue;
            }
            let line = Line { id: known.id, pattern: None, limit: &known.limit, amount };
            kept.keep(&[line], at_ms(NOW_MS + ms));
            charged.charges.push((limit, NOW_MS + ms, amount));
        }
        let ask = of_rates(&scene, &scene.ask);
        let lines: Vec<Line<'_>> = ask.lines().collect();
        prop_assert_eq!(earliest(&mut kept, &lines), earliest(&mut charged, &lines));
        let at = at_ms(NOW_MS + looks_ms);
        for known in &scene.books.limits {
            let at_it = |charge: Charge| (charge.at, charge.total);
            let Ok(one) = kept.last_at(known.id, at);
            let Ok(other) = charged.last_at(known.id, at);
            prop_assert_eq!(one.map(at_it), other.map(at_it));
            let before = |charge: Charge| (charge.at, charge.before());
            let Ok(one) = kept.first_after(known.id, at);
            let Ok(other) = charged.first_after(known.id, at);
            prop_assert_eq!(one.map(before), other.map(before));
        }
    }

    #[test]
    fn no_booking_takes_what_those_ask_for_who_can_go(scene in scene()) {
        let could_go = scene.can_go();
        let mut books = scene.books.clone();
        let mut booked = scene.clone();
        if booked.book().is_some() {
            books.charges = booked.books.charges;
            for position in could_go {
                let ticket = &scene.tickets[position];
                if !ticket.is_late {
                    let mut takes = ticket.takes.iter();
                    prop_assert!(takes.all(|(limit, amount)| books.fits(*limit, *amount)));
                    books.take(&ticket.takes);
                }
            }
        }
    }

    #[test]
    fn no_booking_puts_off_who_stands_in_line_for_the_same_rates(scene in scene()) {
        let Some(first) = scene.tickets.iter().find(|ticket| !ticket.is_late) else {
            return Ok(());
        };
        let can_fit = first.takes.iter().all(|(limit, amount)| {
            let tightest = scene.books.limits[*limit].limit.tightest();
            *amount <= tightest.capacity().cast_signed()
        });
        let waits = of_rates(&scene, &first.takes);
        let places: Vec<Line<'_>> = waits.lines().collect();
        let before = earliest(&mut scene.books.clone(), &places);
        // Who is short of slots alone has no place.
        if before == Earliest::Now || !can_fit {
            return Ok(());
        }
        let mut booked = scene.clone();
        if booked.book().is_some() {
            let after = earliest(&mut booked.books, &places);
            prop_assert!(instant(after) <= instant(before), "{after:?}, {before:?}");
        }
    }
}
