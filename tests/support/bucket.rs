//! A bucket as the model knows it: a list of what was done to it, replayed from the beginning for each question.
//!
//! Levels are whole numbers: a token is as many parts as its refill takes nanoseconds, so that each nanosecond
//! brings back as many parts as that refill has tokens.

use quotalite::Bucket;

/// What was done to a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    Take(u64),
    /// Its definition was changed, and what was missing stays missing.
    Become(Bucket),
}

/// When.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub at_ns: i64,
    pub deed: Deed,
}

/// A bucket from its beginning, when it was full, and all that was done to it, in order.
#[derive(Clone, Debug)]
pub struct Tank {
    pub first: Bucket,
    pub events: Vec<Event>,
}

/// What is missing at an instant.
#[derive(Clone, Copy, Debug)]
struct Level {
    bucket: Bucket,
    at_ns: i64,
    missing: i128,
}

fn per_ns(bucket: Bucket) -> i128 {
    i128::try_from(bucket.per().as_nanos()).expect("it is allowed")
}

impl Level {
    fn flow_until(&mut self, at_ns: i64) {
        let brings = i128::from(at_ns - self.at_ns) * i128::from(self.bucket.refill());
        self.missing = (self.missing - brings).max(0);
        self.at_ns = at_ns;
    }

    fn suffer(&mut self, deed: Deed) {
        let per = per_ns(self.bucket);
        match deed {
            Deed::Take(amount) => self.missing += i128::from(amount) * per,
            Deed::Become(bucket) => {
                let new_per = per_ns(bucket);
                self.missing = (self.missing * new_per + per - 1) / per;
                self.bucket = bucket;
            }
        }
    }

    fn is_below_zero(&self) -> bool {
        self.missing > i128::from(self.bucket.burst()) * per_ns(self.bucket)
    }
}

impl Tank {
    /// With everything that was done up to an instant, and at it.
    fn at(&self, at_ns: i64) -> Level {
        let first_ns = self.events.first().map_or(at_ns, |event| event.at_ns);
        let mut level = Level {
            bucket: self.first,
            at_ns: first_ns.min(at_ns),
            missing: 0,
        };
        for event in self.events.iter().filter(|event| event.at_ns <= at_ns) {
            level.flow_until(event.at_ns);
            level.suffer(event.deed);
        }
        level.flow_until(at_ns);
        level
    }

    fn after(&self, at_ns: i64) -> impl Iterator<Item = &Event> {
        self.events.iter().filter(move |event| event.at_ns > at_ns)
    }

    /// Whether so much can be taken at an instant. What is booked for later and would not be there anyhow is no
    /// reason against it: only where taking this makes a difference it has to leave enough.
    pub fn admits(&self, at_ns: i64, amount: u64) -> bool {
        let mut without = self.at(at_ns);
        let mut with = without;
        with.suffer(Deed::Take(amount));
        if with.is_below_zero() {
            return false;
        }
        for event in self.after(at_ns) {
            for level in [&mut without, &mut with] {
                level.flow_until(event.at_ns);
                level.suffer(event.deed);
            }
            if with.missing > without.missing && with.is_below_zero() {
                return false;
            }
        }
        true
    }

    /// Between two bookings a bucket only fills, so the first instant that can do is found by halving; whether it does
    /// is asked then. One for each such time.
    pub fn candidates(&self, now_ns: i64, amount: u64) -> Vec<i64> {
        let mut starts = vec![now_ns];
        starts.extend(self.after(now_ns).map(|event| event.at_ns));
        let mut found = Vec::new();
        for (position, start_ns) in starts.iter().enumerate() {
            let end_ns = starts.get(position + 1).copied();
            let level = self.at(*start_ns);
            let suffices = |at_ns: i64| {
                let mut level = level;
                level.flow_until(at_ns);
                level.suffer(Deed::Take(amount));
                !level.is_below_zero()
            };
            // Nothing that a history does empties a bucket for longer.
            let (mut low, mut high) = (*start_ns, end_ns.unwrap_or(start_ns + (1 << 62)));
            if !suffices(high) {
                continue;
            }
            while low < high {
                let middle = low.midpoint(high);
                if suffices(middle) {
                    high = middle;
                } else {
                    low = middle + 1;
                }
            }
            found.push(low);
        }
        found
    }

    /// The most that can be taken at an instant.
    pub fn room(&self, at_ns: i64) -> u64 {
        let (mut low, mut high) = (0, self.at(at_ns).bucket.burst());
        while low < high {
            let middle = (low + high).div_ceil(2);
            if self.admits(at_ns, middle) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        low
    }

    /// What is missing, in whole tokens.
    pub fn used(&self, at_ns: i64) -> u64 {
        let level = self.at(at_ns);
        let per = per_ns(level.bucket);
        u64::try_from((level.missing + per - 1) / per).expect("not that much")
    }

    /// When there is a token more, if nobody takes any.
    pub fn next_release_ns(&self, now_ns: i64) -> Option<i64> {
        let level = self.at(now_ns);
        let wanted = i128::from(self.used(now_ns).checked_sub(1)?) * per_ns(level.bucket);
        let refill = i128::from(level.bucket.refill());
        let later_ns = (level.missing - wanted + refill - 1) / refill;
        Some(now_ns + i64::try_from(later_ns).expect("not that long"))
    }

    /// Whether something is owed now, or something that is booked will not be there.
    pub fn is_over(&self, now_ns: i64) -> bool {
        let later = self.after(now_ns).map(|event| event.at_ns);
        let mut instants = std::iter::once(now_ns).chain(later);
        instants.any(|at_ns| self.at(at_ns).is_below_zero())
    }
}
