//! One transaction: the lock, the present, and the end.

use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::connection::{Deadline, Link, waiting_until};
use super::file_control::data_version;
use super::generation::Begun;
use super::ledger::Unwritten;
use super::memo::{ClockRow, Memo};
use super::place::{Place, Watch};
use super::schema::{check_version, is_busy};
use super::session::Session;
use crate::calendar::LimitId;
use crate::clock::{BootId, Change, Clock, Present, Reading, Timeline, Timestamp};
use crate::error::Error;
use crate::store::{Few, TicketId};

/// Whether a transaction may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    /// Reads by the connection that writes: what that remembers is younger.
    Look,
    Write,
}

/// A transaction in which the present is fixed. Dropping it rolls it back.
#[derive(Debug)]
pub(super) struct Transaction<'l> {
    pub(super) link: Open<'l>,
    pub(super) place: &'l Place,
    clock: &'l dyn Clock,
    pub(super) reading: Reading,
    present: Present,
    access: Access,
    /// The row of the clock, as it was read or made up for a file that has none yet.
    stored: ClockRow,
    /// What is charged at the present, a row for each limit, and not written yet.
    pub(super) unwritten: Few<Unwritten>,
    /// How often something was charged.
    charges: u64,
    /// Whether there is anything to commit.
    wrote: bool,
    /// Whether it is to be rolled back, whatever was written.
    is_undone: bool,
    /// The limits of which something came free that somebody may wait for.
    freed: Few<LimitId>,
    /// The tickets that wait in vain: what they wait for is no more.
    in_vain: Few<i64>,
    /// The tickets that have come in this transaction and could not go, since when nothing came free: they are not
    /// called by it.
    came: Few<i64>,
}

/// A connection with a transaction on it, which ends with this.
#[derive(Debug)]
pub(super) struct Open<'l> {
    pub(super) connection: &'l Connection,
    pub(super) memo: &'l mut Memo,
    stuck: &'l mut bool,
    scope: Scope,
    /// If it may write. Where it is part of a transaction of somebody else's, nobody says when that ends.
    writing: Option<Begun<'l>>,
    ended: bool,
}

/// What a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// All of what the connection does.
    Whole,
    /// Its part of a transaction of somebody else's.
    Part,
}

impl Scope {
    const fn commit(self) -> &'static [&'static str] {
        match self {
            Self::Whole => &["COMMIT"],
            Self::Part => &["RELEASE quotalite"],
        }
    }

    const fn rollback(self) -> &'static [&'static str] {
        match self {
            Self::Whole => &["ROLLBACK"],
            Self::Part => &["ROLLBACK TO quotalite", "RELEASE quotalite"],
        }
    }
}

const BEGIN_PART: &str = "SAVEPOINT quotalite";
const BEGIN_WRITE: &str = "BEGIN IMMEDIATE";
const BEGIN_READ: &str = "BEGIN";

impl<'l> Transaction<'l> {
    /// Begins a transaction. A writing one holds the write lock from here on: a transaction that reads
    /// first and asks for the lock later would decide on a state that others have changed since.
    ///
    /// Then it checks that the file is still the one that was opened, and reads the clock: after the
    /// lock, so that nobody's charge can lie later than what is decided here.
    pub(super) fn begin(
        link: &'l mut Link,
        access: Access,
        place: &'l Place,
        session: &'l Session,
        clock: &'l dyn Clock,
        deadline: Deadline,
    ) -> Result<Self, Error> {
        let begun = match access {
            Access::Read | Access::Look => run(&link.connection, BEGIN_READ),
            Access::Write => begin_in_turn(&link.connection, session, deadline),
        };
        if let Err(error) = begun {
            return Err(if is_busy(&error) {
                deadline.busy(place)
            } else {
                place.sqlite(error)
            });
        }
        let watch = link.watch.get_or_insert_with(|| session.watch.clone());
        let open = Open {
            connection: &link.connection,
            memo: &mut link.memo,
            stuck: &mut link.stuck,
            scope: Scope::Whole,
            writing: (access == Access::Write).then(|| session.generation.begin()),
            ended: false,
        };
        Self::begun(open, access, place, Some(watch), clock)
    }

    /// Begins to read by a connection that was opened for this alone.
    #[cfg(feature = "inspect")]
    pub(super) fn begin_alone(
        link: &'l mut Link,
        place: &'l Place,
        clock: &'l dyn Clock,
    ) -> Result<Self, Error> {
        run(&link.connection, BEGIN_READ).map_err(|error| place.sqlite(error))?;
        let open = Open {
            connection: &link.connection,
            memo: &mut link.memo,
            stuck: &mut link.stuck,
            scope: Scope::Whole,
            writing: None,
            ended: false,
        };
        Self::begun(open, Access::Read, place, None, clock)
    }

    /// Takes part in a transaction of somebody else's, which holds the write lock.
    pub(super) fn join(
        connection: &'l Connection,
        (memo, stuck): (&'l mut Memo, &'l mut bool),
        place: &'l Place,
        session: &'l Session,
        clock: &'l dyn Clock,
    ) -> Result<Self, Error> {
        run(connection, BEGIN_PART).map_err(|error| place.sqlite(error))?;
        let open = Open {
            connection,
            memo,
            stuck,
            scope: Scope::Part,
            writing: Some(session.generation.begin()),
            ended: false,
        };
        Self::begun(
            open,
            Access::Write,
            place,
            Some(&mut session.watch.clone()),
            clock,
        )
    }

    fn begun(
        mut open: Open<'l>,
        access: Access,
        place: &'l Place,
        watch: Option<&mut Watch>,
        clock: &'l dyn Clock,
    ) -> Result<Self, Error> {
        let row = open.refresh(access, place)?;
        if watch.is_some_and(|watch| !watch.holds()) {
            return Err(place.moved());
        }
        let reading = Reading::of(clock);
        let stored = row.unwrap_or(ClockRow {
            timeline: Timeline::start(reading),
            definitions: 0,
        });
        let mut present = stored.timeline.present(reading);
        if row.is_none() {
            present.change = Change::Fixed;
        }
        Ok(Self {
            link: open,
            place,
            clock,
            reading,
            present,
            access,
            stored,
            unwritten: Few::new(),
            charges: 0,
            wrote: false,
            is_undone: false,
            freed: Few::new(),
            in_vain: Few::new(),
            came: Few::new(),
        })
    }

    /// Whether it is only part of a transaction of somebody else's.
    pub(super) fn is_part(&self) -> bool {
        self.link.scope == Scope::Part
    }

    /// Whether the file does not yet know the running boot.
    pub(super) fn clock_has_to_be_fixed(&self) -> bool {
        self.present.change == Change::Fixed
    }

    pub(super) fn now(&self) -> Timestamp {
        self.present.now
    }

    /// Goes on to the present.
    pub(super) fn read_clock(&mut self) {
        self.reading = Reading::of(self.clock);
        let present = self.present.timeline.present(self.reading);
        self.present = Present {
            change: self.present.change.max(present.change),
            ..present
        };
    }

    /// The instant that has been reached meanwhile.
    pub(super) fn reached(&self) -> Timestamp {
        self.present.timeline.present(Reading::of(self.clock)).now
    }

    pub(super) fn timeline(&self) -> &Timeline {
        &self.present.timeline
    }

    /// Says that there is something to commit.
    pub(super) fn wrote(&mut self) {
        self.wrote = true;
    }

    /// Says that definitions were changed: everybody reads them anew.
    pub(super) fn changed_definitions(&mut self) {
        self.stored.definitions = self.stored.definitions.wrapping_add(1);
        self.present.change = Change::Fixed;
        self.link.memo.forget_limits();
        // Buckets are remembered in the terms of their definitions.
        self.link.memo.forget_ledgers();
    }

    /// Says that something was charged.
    pub(super) fn charged(&mut self) {
        self.charges += 1;
        self.wrote();
    }

    /// Tells, by comparing, whether anything was changed.
    pub(super) fn changes(&self) -> u64 {
        self.charges + self.link.connection.total_changes()
    }

    /// Says that nothing of this is to be committed after all.
    pub(super) fn undo(&mut self) {
        self.is_undone = true;
    }

    pub(super) fn is_undone(&self) -> bool {
        self.is_undone
    }

    /// Does one of several things, each as a whole or not at all by itself.
    pub(super) fn as_a_whole<T>(
        &mut self,
        act: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.write_charges()?;
        run(self.link.connection, "SAVEPOINT one").map_err(|error| self.sqlite(error))?;
        let result = act(self);
        if result.is_ok() {
            self.write_charges()?;
        } else {
            self.unwritten.clear();
            self.link.memo.forget_ledgers();
            self.link.memo.forget_limits();
            run(self.link.connection, "ROLLBACK TO one").map_err(|error| self.sqlite(error))?;
        }
        run(self.link.connection, "RELEASE one").map_err(|error| self.sqlite(error))?;
        result
    }

    /// Says that something of a limit came free.
    pub(super) fn freed(&mut self, limit: LimitId) {
        self.came.clear();
        self.look_who_waits(limit);
    }

    /// Says that it may be the turn of somebody who waits for a limit.
    pub(super) fn look_who_waits(&mut self, limit: LimitId) {
        if !self.freed.contains(&limit) {
            self.freed.push(limit);
        }
    }

    /// Says that these tickets wait in vain.
    pub(super) fn wait_in_vain(&mut self, tickets: impl IntoIterator<Item = i64>) {
        self.in_vain.extend(tickets);
    }

    /// Says that this ticket has come, and waits on.
    pub(super) fn came(&mut self, ticket: TicketId) {
        self.came.push(ticket.number);
    }

    /// Commits what was written; if nothing was, ends without a trace. Returns the tickets whose turn it is now, or who
    /// wait in vain.
    pub(super) fn finish(mut self) -> Result<Few<i64>, Error> {
        if self.is_undone {
            self.link.memo.forget_ledgers();
            self.link.memo.forget_limits();
            self.link.roll_back(self.place)?;
            return Ok(Few::new());
        }
        let freed = std::mem::take(&mut self.freed);
        let mut turns = if freed.is_empty() {
            Few::new()
        } else {
            let came = std::mem::take(&mut self.came);
            self.next_in_line(&freed, &came)?
        };
        turns.append(&mut self.in_vain);
        self.write_charges()?;
        self.commit().map(|()| turns)
    }

    fn commit(&mut self) -> Result<(), Error> {
        let store_clock = match self.present.change {
            Change::None => false,
            Change::Refreshed => self.wrote,
            Change::Fixed => true,
        };
        if self.access != Access::Write || !(self.wrote || store_clock) {
            return self.link.roll_back(self.place);
        }
        if store_clock {
            let row = ClockRow {
                timeline: self.present.timeline,
                definitions: self.stored.definitions,
            };
            write_clock(self.link.connection, row).map_err(|error| self.place.sqlite(error))?;
            self.link.memo.clock = Some(row);
        }
        self.link.end(self.link.scope.commit(), true, self.place)
    }

    pub(super) fn sqlite(&self, error: rusqlite::Error) -> Error {
        self.place.sqlite(error)
    }
}

impl Open<'_> {
    /// Brings the memo up to date with the file, and returns the row of the clock.
    fn refresh(&mut self, access: Access, place: &Place) -> Result<Option<ClockRow>, Error> {
        let memo = &mut *self.memo;
        // A transaction that reads sees the file only from its first read on.
        if access != Access::Write && memo.version.is_some() {
            read_anything(self.connection).map_err(|error| place.sqlite(error))?;
        }
        if memo.clock.is_some()
            && memo.version.is_some()
            && memo.version == data_version(self.connection)
        {
            return Ok(memo.clock);
        }
        memo.forget_ledgers();
        let row = read_clock(self.connection, place)?;
        if memo.clock.map(|row| row.definitions) != row.map(|row| row.definitions) {
            memo.forget_limits();
            // A newer program may have made of the file what this one would not understand.
            check_version(self.connection, place)?;
        }
        memo.clock = row;
        Ok(row)
    }

    fn roll_back(&mut self, place: &Place) -> Result<(), Error> {
        self.end(self.scope.rollback(), false, place)
    }

    fn end(&mut self, statements: &[&str], has_written: bool, place: &Place) -> Result<(), Error> {
        for statement in statements {
            run(self.connection, statement).map_err(|error| place.sqlite(error))?;
        }
        self.ended = true;
        if let Some(writing) = self.writing.take()
            && self.scope == Scope::Whole
        {
            writing.end(has_written);
        }
        self.memo.version = data_version(self.connection);
        Ok(())
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        self.memo.forget();
        // After some errors SQLite has rolled back by itself, and then there is nothing to end.
        if !self.connection.is_autocommit()
            && let Err(error) = self
                .connection
                .execute_batch(&self.scope.rollback().join(";"))
        {
            *self.stuck = !self.connection.is_autocommit();
            tracing::error!(%error, "a transaction could not be rolled back");
            return;
        }
        if let Some(writing) = self.writing.take()
            && self.scope == Scope::Whole
        {
            writing.end(true);
        }
    }
}

/// How long a process asks for the write lock before it takes a number, and how long it does once that is called.
const ASKS: Duration = Duration::from_micros(30);
const ASKS_WHEN_CALLED: Duration = Duration::from_millis(1);

/// So often it may find nobody writing, and the lock taken all the same, because whoever has it has no processor just then.
/// After that it sleeps between its attempts, twice as long each time, up to so often.
const MOST_BAD_LUCK: u32 = 4;
const HELD_UP: Duration = Duration::from_micros(200);
const MOST_DOUBLED: u32 = 5;

/// Begins a transaction that may write, in turn with other processes.
fn begin_in_turn(
    connection: &Connection,
    session: &Session,
    deadline: Deadline,
) -> rusqlite::Result<()> {
    let (crowd, generation) = (&session.crowd, &session.generation);
    if !crowd.calls() {
        return run(connection, BEGIN_WRITE);
    }
    crowd.come(generation, deadline.at);
    let mut asks = ASKS;
    let mut held_up: u32 = 0;
    loop {
        let until = deadline.at.min(Instant::now() + asks);
        match waiting_until(until, || run(connection, BEGIN_WRITE)) {
            Err(error) if is_busy(&error) && !deadline.has_passed() => {
                held_up = if crowd.wait(generation, deadline.at) {
                    0
                } else {
                    held_up + 1
                };
                asks = ASKS_WHEN_CALLED;
                if let Some(doubled) = held_up.checked_sub(MOST_BAD_LUCK + 1) {
                    // It is stopped, or another program's: there is no use in asking often.
                    let nap = HELD_UP * (1 << doubled.min(MOST_DOUBLED));
                    thread::sleep(nap.min(deadline.at.saturating_duration_since(Instant::now())));
                    asks = ASKS;
                }
            }
            begun => return begun,
        }
    }
}

const ANYTHING: &str = "SELECT 1 FROM clock";

fn read_anything(connection: &Connection) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(ANYTHING)?;
    statement.query([])?.next().map(drop)
}

fn run(connection: &Connection, statement: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(statement)?.execute([]).map(drop)
}

const READ_CLOCK: &str =
    "SELECT boot_id, offset_ns, high_ns, wall_minus_instant_ns, calendar_shift_ns, definitions
    FROM clock";

fn read_clock(connection: &Connection, place: &Place) -> Result<Option<ClockRow>, Error> {
    let failed = |error| place.sqlite(error);
    let mut statement = connection.prepare_cached(READ_CLOCK).map_err(failed)?;
    let mut rows = statement.query([]).map_err(failed)?;
    let Some(row) = rows.next().map_err(failed)? else {
        return Ok(None);
    };
    let boot = row
        .get_ref(0)
        .map_err(failed)?
        .as_str()
        .ok()
        .and_then(parse_boot)
        .ok_or_else(|| place.damaged("the boot id of its clock is no number"))?;
    let number = |column| row.get::<_, i64>(column).map_err(failed);
    Ok(Some(ClockRow {
        timeline: Timeline {
            boot,
            offset_ns: number(1)?,
            high: Timestamp::from_nanos(number(2)?),
            wall_minus_instant_ns: number(3)?,
            calendar_shift_ns: number(4)?,
        },
        definitions: number(5)?,
    }))
}

const WRITE_CLOCK: &str = "INSERT INTO clock
    (id, boot_id, offset_ns, high_ns, wall_minus_instant_ns, calendar_shift_ns, definitions)
    VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6)
    ON CONFLICT (id) DO UPDATE SET boot_id = ?1, offset_ns = ?2, high_ns = ?3,
        wall_minus_instant_ns = ?4, calendar_shift_ns = ?5, definitions = ?6";

fn write_clock(connection: &Connection, row: ClockRow) -> rusqlite::Result<()> {
    connection.prepare_cached(WRITE_CLOCK)?.execute((
        print_boot(row.timeline.boot),
        row.timeline.offset_ns,
        row.timeline.high.as_nanos(),
        row.timeline.wall_minus_instant_ns,
        row.timeline.calendar_shift_ns,
        row.definitions,
    ))?;
    Ok(())
}

/// A boot id as it stands in the file: 32 hexadecimal digits.
pub(super) fn print_boot(boot: BootId) -> String {
    format!("{:032x}", boot.0)
}

fn parse_boot(text: &str) -> Option<BootId> {
    u128::from_str_radix(text, 16).ok().map(BootId)
}
