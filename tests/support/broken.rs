//! Little limiters, each broken in a way that real ones have been, to show that histories notice.

use std::collections::BTreeMap;
use std::time::Duration;

use quotalite::{Definition, Limit, Obstacle, OnConflict, Overage, Rate};

use crate::subject::{
    Answer, Asked, Closing, Defined, Refused, Settling, Subject, Takes, Wait, ns,
};

/// What is wrong with a limiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing. It shows that the others fail for their flaw and not for something else.
    Nothing,
    /// Counts what has left the window until a cleaning comes by, at most every ten seconds.
    CountsUntilCleaned,
    /// Charges one limit after the other, and stops at the one that is full.
    ChargesOneByOne,
    /// Counts in buckets that start at multiples of the window.
    FixedBuckets,
    /// Looks only at the present when it admits at once, and not at who stands in line.
    Overtakes,
    /// Counts a charge for a nanosecond too long.
    ClosedWindow,
    /// Settles, but what was not used stays charged until it leaves the window.
    FreesNothing,
    /// Settles by charging the difference at the present, and not at the charge's own instant.
    CorrectsAtPresent,
    /// Settles beyond the estimate by the room that there is at the present, and not by what those who
    /// booked leave of it.
    GrowsIntoBookings,
}

/// What was charged to one limit: less than nothing, if a flaw has it so.
#[derive(Clone, Copy, Debug)]
struct Entry {
    at_ns: i64,
    amount: i64,
    claim: Option<usize>,
}

/// What somebody was let through with.
#[derive(Clone, Debug)]
struct Granted {
    at_ns: i64,
    takes: Takes,
    is_closed: bool,
}

#[derive(Debug)]
struct Book {
    limit: Limit,
    entries: Vec<Entry>,
}

/// A limiter for one caller, with a flaw.
#[derive(Debug)]
pub struct Broken {
    flaw: Flaw,
    now_ns: i64,
    cleaned_ns: i64,
    books: BTreeMap<String, Book>,
    granted: BTreeMap<usize, Granted>,
}

impl Broken {
    pub fn with(flaw: Flaw) -> Self {
        Self {
            flaw,
            now_ns: 0,
            cleaned_ns: 0,
            books: BTreeMap::new(),
            granted: BTreeMap::new(),
        }
    }

    fn counts(&self, entry: &Entry, instant_ns: i64, reach_ns: i64) -> bool {
        let age_ns = instant_ns - entry.at_ns;
        match self.flaw {
            Flaw::CountsUntilCleaned if age_ns >= reach_ns => {
                instant_ns < self.cleaned_ns + ns(Duration::from_secs(10))
            }
            Flaw::FixedBuckets => age_ns >= 0 && instant_ns / reach_ns == entry.at_ns / reach_ns,
            Flaw::ClosedWindow => (0..=reach_ns).contains(&age_ns),
            _ => (0..reach_ns).contains(&age_ns),
        }
    }

    /// The most that is in any window of a rate which a charge at `at_ns` counts in and which ends at
    /// `from_ns` or later; or only in the one that ends there.
    fn fullest(&self, book: &Book, rate: &Rate, at_ns: i64, from_ns: i64, alone: bool) -> i64 {
        let reach_ns = ns(rolling(rate) + book.limit.pad());
        let mut instants = vec![from_ns];
        if !alone {
            let later = book.entries.iter().map(|entry| entry.at_ns);
            instants.extend(
                later.filter(|later_ns| (from_ns + 1..at_ns + reach_ns).contains(later_ns)),
            );
        }
        let used = instants.into_iter().map(|instant_ns| {
            let inside = book.entries.iter();
            let inside = inside.filter(|entry| self.counts(entry, instant_ns, reach_ns));
            inside.map(|entry| entry.amount).sum()
        });
        used.max().expect("one instant at least")
    }

    fn is_over(&self, book: &Book, rate: &Rate, at_ns: i64, amount: u64, alone: bool) -> bool {
        let used = self.fullest(book, rate, at_ns, at_ns, alone);
        used.saturating_add_unsigned(amount) > rate.capacity().cast_signed()
    }

    /// How much more can be charged to a limit at an instant that may be past.
    fn room(&self, book: &Book, at_ns: i64) -> u64 {
        let alone = self.flaw == Flaw::GrowsIntoBookings;
        let from_ns = at_ns.max(self.now_ns);
        let rates = book.limit.rates().iter();
        let counting = rates.filter(|rate| from_ns < at_ns + ns(rolling(rate) + book.limit.pad()));
        let free = counting.map(|rate| {
            rate.capacity().cast_signed() - self.fullest(book, rate, at_ns, from_ns, alone)
        });
        free.min().unwrap_or(0).max(0).unsigned_abs()
    }

    /// The first limit and rate of the request that forbid it at this instant.
    fn obstacle(&self, takes: &Takes, at_ns: i64, alone: bool) -> Option<(String, Rate, u64)> {
        for (key, amount) in takes {
            let book = &self.books[key];
            for rate in book.limit.rates() {
                if self.is_over(book, rate, at_ns, *amount, alone) {
                    return Some((key.clone(), *rate, *amount));
                }
            }
        }
        None
    }

    fn earliest(&self, takes: &Takes) -> i64 {
        let mut candidates = vec![self.now_ns, self.cleaned_ns + ns(Duration::from_secs(10))];
        for (key, _) in takes {
            let book = &self.books[key];
            for rate in book.limit.rates() {
                let reach_ns = ns(rolling(rate) + book.limit.pad());
                let leaving = book.entries.iter().map(|entry| match self.flaw {
                    Flaw::FixedBuckets => (entry.at_ns / reach_ns + 1) * reach_ns,
                    Flaw::ClosedWindow => entry.at_ns + reach_ns + 1,
                    _ => entry.at_ns + reach_ns,
                });
                candidates.extend(leaving);
            }
        }
        candidates.sort_unstable();
        let mut candidates = candidates.into_iter().filter(|at_ns| *at_ns >= self.now_ns);
        let fits = candidates.find(|at_ns| self.obstacle(takes, *at_ns, false).is_none());
        fits.unwrap_or(self.now_ns + 1)
    }

    fn wrong(&self, takes: &Takes) -> Option<Answer> {
        for (key, amount) in takes {
            let Some(book) = self.books.get(key) else {
                return Some(Answer::Unknown { key: key.clone() });
            };
            let mut rates = book.limit.rates().iter();
            if let Some(rate) = rates.find(|rate| rate.capacity() < *amount) {
                return Some(Answer::NeverFits {
                    key: key.clone(),
                    amount: *amount,
                    obstacle: Obstacle::Rate(*rate),
                });
            }
        }
        None
    }

    fn charge(&mut self, takes: &[(String, u64)], at_ns: i64, claim: Option<usize>) -> Answer {
        for (key, amount) in takes {
            let entries = &mut self.books.get_mut(key).expect("checked").entries;
            entries.push(Entry {
                at_ns,
                amount: amount.cast_signed(),
                claim,
            });
        }
        if let Some(claim) = claim {
            let granted = Granted {
                at_ns,
                takes: takes.to_owned(),
                is_closed: false,
            };
            self.granted.insert(claim, granted);
        }
        if self.now_ns - self.cleaned_ns >= ns(Duration::from_secs(10)) {
            self.clean();
        }
        Answer::Admitted {
            at_ns,
            waits_ns: at_ns - self.now_ns,
            fence: None,
        }
    }

    fn clean(&mut self) {
        self.cleaned_ns = self.now_ns;
        for book in self.books.values_mut() {
            let longest = book.limit.rates().last().expect("a limit has a rate");
            let reach_ns = ns(rolling(longest) + book.limit.pad());
            book.entries
                .retain(|entry| entry.at_ns + reach_ns > self.now_ns);
        }
    }

    /// What is open under this name, and closed from now on.
    fn take_open(&mut self, claim: usize) -> Option<Granted> {
        let granted = self
            .granted
            .get_mut(&claim)
            .filter(|granted| !granted.is_closed)?;
        granted.is_closed = true;
        Some(granted.clone())
    }

    fn settle_one(
        &mut self,
        claim: usize,
        at_ns: i64,
        key: &str,
        estimated: u64,
        used: u64,
    ) -> Settling {
        let book = &self.books[key];
        let excess = used.saturating_sub(estimated);
        let fitting = excess.min(self.room(book, at_ns));
        let (more, debt) = match book.limit.overage() {
            Overage::Debt => (fitting, excess - fitting),
            Overage::Charge => (excess, 0),
            Overage::Deny => (fitting, 0),
        };
        let charged = used.min(estimated) + more;
        let entries = &mut self.books.get_mut(key).expect("it is there").entries;
        if self.flaw == Flaw::CorrectsAtPresent {
            entries.push(Entry {
                at_ns: self.now_ns,
                amount: charged.cast_signed() - estimated.cast_signed(),
                claim: Some(claim),
            });
        } else if self.flaw != Flaw::FreesNothing || charged > estimated {
            for entry in entries
                .iter_mut()
                .filter(|entry| entry.claim == Some(claim))
            {
                entry.amount = charged.cast_signed();
            }
        }
        Settling {
            key: key.to_owned(),
            estimated,
            used,
            charged,
            debt,
        }
    }

    fn refuse(&self, takes: &Takes, retry_at_ns: i64) -> Refused {
        let (key, rate, amount) = self
            .obstacle(takes, retry_at_ns - 1, false)
            .or_else(|| self.obstacle(takes, self.now_ns, false))
            .expect("something stands in the way");
        Refused {
            key,
            obstacle: Obstacle::Rate(rate),
            amount,
            now_ns: self.now_ns,
            retry_at_ns,
        }
    }
}

impl Subject for Broken {
    fn define(&mut self, _slot: usize, limit: &Limit, conflict: OnConflict) -> Defined {
        let Some(book) = self.books.get_mut(limit.key()) else {
            let book = Book {
                limit: limit.clone(),
                entries: Vec::new(),
            };
            self.books.insert(limit.key().to_owned(), book);
            return Defined::Done(Definition::Created);
        };
        let stored = book.limit.clone();
        Defined::Done(match conflict {
            _ if stored == *limit => Definition::Unchanged,
            OnConflict::Adopt => Definition::Adopted(stored),
            OnConflict::Replace => {
                book.limit = limit.clone();
                Definition::Replaced(stored)
            }
            OnConflict::Fail => {
                let given = limit.clone();
                return Defined::Conflict { stored, given };
            }
        })
    }

    fn try_acquire(&mut self, _slot: usize, ask: &Asked, claim: usize, _holds: bool) -> Answer {
        let (takes, _) = ask;
        if let Some(wrong) = self.wrong(takes) {
            return wrong;
        }
        let alone = self.flaw == Flaw::Overtakes;
        let Some((full, ..)) = self.obstacle(takes, self.now_ns, alone) else {
            return self.charge(takes, self.now_ns, Some(claim));
        };
        let refused = self.refuse(takes, self.earliest(takes));
        if self.flaw == Flaw::ChargesOneByOne {
            let before = takes.iter().take_while(|(key, _)| *key != full);
            let before: Takes = before.cloned().collect();
            self.charge(&before, self.now_ns, None);
        }
        Answer::Refused(refused)
    }

    fn book(&mut self, _slot: usize, ask: &Asked, wait: Wait, claim: usize) -> Answer {
        let (takes, _) = ask;
        if let Some(wrong) = self.wrong(takes) {
            return wrong;
        }
        let deadline_ns = match wait {
            Wait::Forever => i64::MAX,
            Wait::Within(longest) => self.now_ns + ns(longest),
            Wait::Until { deadline_ns } => deadline_ns,
        };
        match self.earliest(takes) {
            at_ns if at_ns <= deadline_ns.max(self.now_ns) => {
                self.charge(takes, at_ns, Some(claim))
            }
            at_ns => Answer::TooLate {
                refused: self.refuse(takes, at_ns),
                deadline_ns,
            },
        }
    }

    fn give_back(&mut self, claim: usize, _by_dropping: bool) {
        for book in self.books.values_mut() {
            book.entries.retain(|entry| entry.claim != Some(claim));
        }
    }

    fn accept(&mut self, claim: usize, _holds: bool) -> i64 {
        self.granted[&claim].at_ns
    }

    fn settle(&mut self, claim: usize, used: &Takes) -> Closing {
        let Some(granted) = self.take_open(claim) else {
            return Closing::Before;
        };
        let mut settled = Vec::new();
        for (key, estimated) in &granted.takes {
            if let Some((_, used)) = used.iter().find(|(said, _)| said == key) {
                settled.push(self.settle_one(claim, granted.at_ns, key, *estimated, *used));
            }
        }
        settled.sort_by(|a, b| a.key.cmp(&b.key));
        Closing::Now(settled)
    }

    fn cancel(&mut self, claim: usize) -> Closing {
        if self.take_open(claim).is_none() {
            return Closing::Before;
        }
        self.give_back(claim, false);
        Closing::Now(Vec::new())
    }

    fn let_go(&mut self, _claim: usize) {}

    fn advance(&mut self, duration: Duration) {
        self.now_ns += ns(duration);
    }
}

/// The window of a rate that has no calendar.
fn rolling(rate: &Rate) -> Duration {
    rate.window().rolling().expect("it rolls along")
}
