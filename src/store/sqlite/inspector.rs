//! Reading a file without having anything to do with it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, Row};

use super::connection::{Deadline, Durability, Link, flags, prepare, waiting_until};
use super::lock_file::LockFile;
use super::owners::is_alive;
use super::place::Place;
use super::schema::{check_current, check_sqlite, is_busy};
use super::session::{Session, UnderWay};
use super::transaction::{Transaction, print_boot};
use crate::clock::{Clock, SystemClock, Timestamp};
use crate::decision::Peek;
use crate::definition::{Action, LimitChange};
use crate::error::Error;
use crate::inspection::{
    BookingRow, ChargeKind, ChargeRow, OwnerId, OwnerRow, PermitRow, PermitState, SpenderRow,
    WaiterRow,
};
use crate::limit::{Limit, Pattern};
use crate::plan::{Patience, Plan};
use crate::request::Ask;
use crate::usage::Usage;

/// Looks into a file, for people and dashboards, and changes nothing.
///
/// It makes no file and brings none up to date, is no owner, and takes no lock that a worker waits for. Each look opens the
/// file and closes it again, for some tenths of a millisecond. What it needs for that are the permissions of
/// those who use the file: SQLite keeps its locks in files of its own beside it, which come and go.
///
/// ```
/// # let directory = tempfile::tempdir().unwrap();
/// # let path = directory.path().join("limits.db");
/// use quotalite::{Inspector, Limit, Limiter};
///
/// let limiter = Limiter::open(&path)?;
/// limiter.define(Limit::new("mail").per_second(10))?;
/// let _permit = limiter.try_acquire("mail")?;
///
/// let inspector = Inspector::open(&path)?;
/// let used = inspector.look(|look| {
///     let mut used = Vec::new();
///     for key in look.keys("*", 1_000)? {
///         used.push((look.usage(&key)?.rates()[0].used(), key));
///     }
///     Ok(used)
/// })?;
/// assert_eq!(used, [(1, "mail".to_owned())]);
/// # Ok::<(), quotalite::Error>(())
/// ```
#[derive(Debug)]
pub struct Inspector {
    pub(super) place: Place,
    pub(super) clock: Box<dyn Clock>,
}

/// How long a look waits for SQLite's locks: those who recover a file after a crash have them for a moment.
const PATIENCE: Duration = Duration::from_secs(5);

impl Inspector {
    /// Looks at the file at this path.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Sqlite`] if it is not there or cannot be read, [`Error::OlderSchema`] and
    /// [`Error::NewerSchema`] if another version of this crate has written it, [`Error::ForeignFile`],
    /// [`Error::Filesystem`], [`Error::OldSqlite`], [`Error::Clock`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let clock = SystemClock::new().map_err(|source| Error::Clock { source })?;
        Self::open_with(path, clock)
    }

    /// Looks at the file at this path, which is used on this clock: for tests.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(path: impl AsRef<Path>, clock: impl Clock) -> Result<Self, Error> {
        check_sqlite(rusqlite::version_number(), rusqlite::version())?;
        let place = Place::new(path.as_ref())?;
        place.check_filesystem()?;
        let inspector = Self {
            place,
            clock: Box::new(clock),
        };
        inspector.look(|_| Ok(()))?;
        Ok(inspector)
    }

    /// The file, as errors name it.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.place.database
    }

    /// Looks at the file as it is at one moment. As long as that takes, its WAL cannot start anew: do nothing else meanwhile.
    ///
    /// # Errors
    /// What `act` returns, and as [`open`](Self::open).
    pub fn look<T>(&self, act: impl FnOnce(&mut Look<'_>) -> Result<T, Error>) -> Result<T, Error> {
        self.patiently(|| {
            let mut link = self.connect()?;
            let transaction = Transaction::begin_alone(&mut link, &self.place, &*self.clock)?;
            act(&mut Look { transaction })
        })
    }

    /// The processes that hold the locks of owners where the process that an owner is named after does not: it has ended
    /// and has left them a [lifeline](crate::Limiter::lifeline), or it has another id here, in a pid namespace of its own.
    ///
    /// It looks into all processes to find them, and finds none of another user, nor any where there is no `/proc` of Linux.
    #[must_use]
    pub fn heirs(&self, owners: &[OwnerId]) -> BTreeMap<OwnerId, Vec<u32>> {
        #[cfg(target_os = "linux")]
        return super::heirs::heirs(owners, &self.place.lock);
        #[cfg(not(target_os = "linux"))]
        {
            let _ = owners;
            BTreeMap::new()
        }
    }

    /// Does something by connections of its own, which wait for SQLite's locks.
    pub(super) fn patiently<T>(&self, act: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        self.place.check_kind(false)?;
        if !Session::close_inherited() {
            return Err(self.place.forked());
        }
        // A child that is forked meanwhile could not close what is open here.
        let _under_way = UnderWay::new();
        let deadline = Deadline::after(PATIENCE);
        waiting_until(deadline.at, act).map_err(|error| match error {
            Error::Sqlite { source, .. } if is_busy(&source) => deadline.busy(&self.place),
            error => error,
        })
    }

    /// A connection that leaves the WAL to others.
    pub(super) fn open_alone(&self) -> Result<Connection, Error> {
        let failed = |error| self.place.sqlite(error);
        let has_wal = self.place.wal.symlink_metadata().is_ok();
        let refused = |kind, why: &str| {
            self.place
                .failed("looking at it", io::Error::new(kind, why))
        };
        if self.place.has_journal() {
            // SQLite would roll it back, and a file of this crate has none.
            let why = "a journal lies beside it, of another program, or of one that is making it";
            return Err(refused(io::ErrorKind::InvalidData, why));
        }
        let not_allowed = || {
            let why = "only those who may write to it can look at it";
            refused(io::ErrorKind::PermissionDenied, why)
        };
        let connection = Connection::open_with_flags(&self.place.database, flags());
        let connection = connection.map_err(|error| match error.sqlite_error_code() {
            Some(ErrorCode::CannotOpen) if !self.place.may_be_used() => not_allowed(),
            _ => failed(error),
        })?;
        if connection.is_readonly("main").map_err(failed)? {
            // With its first read, SQLite would make sidecars that belong to this user, and lock the owner out.
            return Err(not_allowed());
        }
        if has_wal {
            // Whoever closes a file last copies its WAL, which is for those to do who know that it belongs to it. If there
            // was none, there is nothing to copy, and it goes away again.
            connection
                .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
                .map_err(failed)?;
        }
        prepare(&connection, Durability::Normal).map_err(failed)?;
        Ok(connection)
    }

    fn connect(&self) -> Result<Link, Error> {
        let failed = |error| self.place.sqlite(error);
        let connection = self.open_alone()?;
        connection
            .pragma_update(None, "query_only", true)
            .map_err(failed)?;
        check_current(&connection, &self.place)?;
        Ok(Link::new(connection))
    }
}

/// A file as it is at one moment: see [`Inspector::look`].
#[derive(Debug)]
pub struct Look<'t> {
    pub(super) transaction: Transaction<'t>,
}

impl Look<'_> {
    /// The present instant of this file.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.transaction.now()
    }

    /// What the wall clock shows, or showed, at an instant.
    #[must_use]
    pub fn wall(&self, at: Timestamp) -> SystemTime {
        let timeline = self.transaction.timeline();
        let wall_ns = at.saturating_plus_ns(timeline.wall_minus_instant_ns);
        let since_epoch = Duration::from_nanos(wall_ns.as_nanos().unsigned_abs());
        let wall = if wall_ns.as_nanos() < 0 {
            SystemTime::UNIX_EPOCH.checked_sub(since_epoch)
        } else {
            SystemTime::UNIX_EPOCH.checked_add(since_epoch)
        };
        wall.unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// The instant at which the wall clock shows this, as far as it is known how it goes.
    #[must_use]
    pub fn instant(&self, wall: SystemTime) -> Timestamp {
        let shift_ns = self.transaction.timeline().wall_minus_instant_ns;
        let ns = |duration: Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
        let wall_ns = match wall.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => ns(since),
            Err(error) => -ns(error.duration()),
        };
        Timestamp::from_nanos(wall_ns).saturating_minus_ns(shift_ns)
    }

    /// All definitions, by key: limits, and patterns.
    ///
    /// # Errors
    /// [`Error::Definition`] if one of them cannot be read, and whatever can happen to the file.
    pub fn limits(&self) -> Result<Vec<Limit>, Error> {
        self.transaction.all_limits()
    }

    /// The definition of a limit or a pattern, or what a pattern makes of a key.
    ///
    /// # Errors
    /// [`Error::UnknownLimit`], and as [`limits`](Self::limits).
    pub fn limit(&mut self, key: &str) -> Result<Limit, Error> {
        self.transaction.limit_of(key)
    }

    /// The pattern that makes the limit of this key; nothing if the key has a definition of its own, or is not known.
    ///
    /// # Errors
    /// As [`limits`](Self::limits).
    pub fn pattern_of(&mut self, key: &str) -> Result<Option<Limit>, Error> {
        if self.transaction.defined(key)?.is_some() {
            return Ok(None);
        }
        let pattern = self.transaction.most_specific(key)?;
        Ok(pattern.map(|known| known.limit.clone()))
    }

    /// The last changes of a definition, the last one first.
    ///
    /// # Errors
    /// Whatever can happen to the file.
    pub fn changes(&mut self, key: &str) -> Result<Vec<LimitChange>, Error> {
        self.transaction.changes_of(key)
    }

    /// How a limit stands: see [`Limiter::usage`](crate::Limiter::usage).
    ///
    /// # Errors
    /// [`Error::UnknownLimit`], and whatever can happen to the file.
    pub fn usage(&mut self, key: &str) -> Result<Usage, Error> {
        self.transaction.usage(key)
    }

    /// Whether a request would be admitted now: see [`Limiter::peek`](crate::Limiter::peek).
    ///
    /// # Errors
    /// As [`Limiter::peek`](crate::Limiter::peek).
    pub fn peek<'a>(&mut self, ask: impl Into<Ask<'a>>) -> Result<Peek, Error> {
        let plan = Plan::new(ask.into(), Patience::Now)?;
        self.transaction.peek(&plan)
    }
}

// In the order in which they were made, the last one first.
const CHANGES: &str = "SELECT at_ns, action, key FROM limit_change ORDER BY change_id DESC";

impl Look<'_> {
    /// What was [reset](crate::Limiter::reset) after an instant: limits, patterns and keys of patterns, the last one first.
    ///
    /// # Errors
    /// Whatever can happen to the file.
    pub fn resets(&self, after: Timestamp) -> Result<Vec<(Timestamp, String)>, Error> {
        let mut resets = Vec::new();
        self.each(CHANGES, [], |row| {
            let at = Timestamp::from_nanos(row.get(0)?);
            let action: String = row.get(1)?;
            if at > after && Action::parse(&action) == Some(Action::Reset) {
                resets.push((at, row.get(2)?));
            }
            Ok(at > after)
        })?;
        Ok(resets)
    }
}

const KEYS: &str = "SELECT key FROM limit_definition WHERE NOT is_pattern AND key >= ?1
    UNION
    SELECT k.key FROM pattern_key AS k JOIN limit_definition AS p ON p.limit_id = k.pattern_id WHERE k.key >= ?1
    ORDER BY key";
const KEY_COUNT: &str = "SELECT
    (SELECT count(*) FROM limit_definition WHERE NOT is_pattern) + (SELECT count(*) FROM pattern_key)";

impl Look<'_> {
    /// The first so many keys that match a pattern or are it, in their order: those that are defined by themselves, and
    /// those that a pattern has made. `"*"` is all of them.
    ///
    /// # Errors
    /// Whatever can happen to the file.
    pub fn keys(&self, pattern: &str, most: usize) -> Result<Vec<String>, Error> {
        let start = pattern.split('*').next().unwrap_or_default();
        let has_passed = |key: &str| !key.starts_with(start);
        let mut keys = Vec::new();
        self.each(KEYS, [start], |row| {
            let key: String = row.get(0)?;
            if keys.len() >= most || has_passed(&key) {
                return Ok(false);
            }
            if key == pattern || Pattern(pattern).matches(&key) {
                keys.push(key);
            }
            Ok(true)
        })?;
        Ok(keys)
    }

    /// How many keys there are.
    ///
    /// # Errors
    /// Whatever can happen to the file.
    pub fn key_count(&self) -> Result<u64, Error> {
        let mut count = 0;
        self.each(KEY_COUNT, [], |row| {
            count = number(row, 0)?;
            Ok(true)
        })?;
        Ok(count)
    }

    /// Runs a statement, and shows each of its rows until that is enough.
    fn each<P: rusqlite::Params>(
        &self,
        sql: &str,
        parameters: P,
        mut show: impl FnMut(&Row<'_>) -> rusqlite::Result<bool>,
    ) -> Result<(), Error> {
        let failed = |error| self.transaction.sqlite(error);
        let connection = self.transaction.link.connection;
        let mut statement = connection.prepare_cached(sql).map_err(failed)?;
        let mut rows = statement.query(parameters).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            if !show(row).map_err(failed)? {
                break;
            }
        }
        Ok(())
    }
}

const CHARGES: &str = "SELECT c.at_ns, c.amount, EXISTS (
        SELECT 1 FROM block AS b WHERE (b.limit_id, b.at_ns, b.seq) = (c.limit_id, c.at_ns, c.seq)
    )
    FROM charge AS c WHERE c.limit_id = ?1 AND c.at_ns > ?2 ORDER BY c.at_ns, c.seq";
const BOOKINGS: &str = "SELECT l.key, b.due_ns, b.amount, o.pid
    FROM booking AS b JOIN owner AS o USING (owner_id) JOIN named_limit AS l USING (limit_id)
    WHERE b.due_ns > ?1 ORDER BY b.due_ns, l.key";

impl Look<'_> {
    /// What is charged to a limit after an instant and still stands in its ledger, in the order of time, and what is booked.
    ///
    /// # Errors
    /// [`Error::UnknownLimit`], and whatever can happen to the file.
    pub fn charges(&mut self, key: &str, after: Timestamp) -> Result<Vec<ChargeRow>, Error> {
        let known = self.transaction.known(key)?;
        let now = self.now();
        let mut charges = Vec::new();
        self.each(CHARGES, (known.id.0, after.as_nanos()), |row| {
            let at = Timestamp::from_nanos(row.get(0)?);
            let kind = match (at > now, row.get(2)?) {
                (true, true) => ChargeKind::Block,
                (true, false) => ChargeKind::Booked,
                (false, _) => ChargeKind::Charged,
            };
            let amount = number(row, 1)?;
            charges.push(ChargeRow { at, amount, kind });
            Ok(true)
        })?;
        Ok(charges)
    }

    /// Who has booked, and for when, in the order of time.
    ///
    /// # Errors
    /// Whatever can happen to the file.
    pub fn bookings(&self) -> Result<Vec<BookingRow>, Error> {
        let mut bookings = Vec::new();
        self.each(BOOKINGS, [self.now().as_nanos()], |row| {
            bookings.push(BookingRow {
                key: row.get(0)?,
                at: Timestamp::from_nanos(row.get(1)?),
                amount: number(row, 2)?,
                pid: row.get(3)?,
            });
            Ok(true)
        })?;
        Ok(bookings)
    }
}

const SPENDERS: &str = "SELECT c.at_ns, p.id, o.pid, NULL
    FROM permit_charge AS c JOIN permit AS p USING (permit_id) LEFT JOIN owner AS o USING (owner_id)
    WHERE c.limit_id = ?1 AND c.at_ns > ?2
    UNION ALL
    SELECT b.at_ns, NULL, o.pid, NULL FROM booking AS b JOIN owner AS o USING (owner_id)
    WHERE b.limit_id = ?1 AND b.at_ns > ?2 AND NOT EXISTS (
        SELECT 1 FROM permit AS p WHERE p.owner_id = b.owner_id AND p.booking_id = b.booking_id AND p.id IS NOT NULL
    )
    UNION ALL
    SELECT at_ns, id, NULL, request FROM ended_permit WHERE at_ns > ?2 AND outcome <> 'cancelled'
    ORDER BY 1";

impl Look<'_> {
    /// Who is known to have been charged by a limit after an instant, in the order of time.
    ///
    /// # Errors
    /// [`Error::UnknownLimit`], and whatever can happen to the file.
    pub fn spenders(&mut self, key: &str, after: Timestamp) -> Result<Vec<SpenderRow>, Error> {
        let known = self.transaction.known(key)?;
        let mut spenders = Vec::new();
        self.each(SPENDERS, (known.id.0, after.as_nanos()), |row| {
            // What has ended is known by what was asked for: an amount and a key a line.
            let request: Option<String> = row.get(3)?;
            let mut takes = request.iter().flat_map(|request| request.lines());
            let is_named = |take: &str| take.split_once(' ').is_some_and(|(_, named)| named == key);
            let is_of_the_key = request.is_none() || takes.any(is_named);
            // What has ended is known by its own instant, and what is open by that of its charge.
            let at = known.limit.entered_at(Timestamp::from_nanos(row.get(0)?));
            if is_of_the_key && at > after {
                spenders.push(SpenderRow {
                    at,
                    id: row.get(1)?,
                    pid: row.get(2)?,
                });
            }
            Ok(true)
        })?;
        spenders.sort_by_key(|spender| spender.at);
        Ok(spenders)
    }
}

const PERMITS: &str = "SELECT p.permit_id, coalesce(p.fence, p.permit_id), p.id, o.pid, p.at_ns, p.expires_ns, p.detached,
        p.owner_id IS NULL, NULL, p.owner_id, o.lock_inode
    FROM permit AS p LEFT JOIN owner AS o USING (owner_id) WHERE p.ended_ns IS NULL
    UNION ALL
    SELECT permit_id, permit_id, id, NULL, at_ns, NULL, 0, 0, outcome, NULL, NULL FROM ended_permit
    ORDER BY 1";
const HELD: &str = "SELECT s.permit_id, l.key, s.amount FROM slot AS s JOIN named_limit AS l USING (limit_id)
    UNION ALL
    SELECT c.permit_id, l.key, c.amount FROM permit_charge AS c JOIN named_limit AS l USING (limit_id)
    ORDER BY 1, 2";
const WAITERS: &str = "SELECT t.ticket_id, o.pid, t.since_ns, t.deadline_ns
    FROM ticket AS t LEFT JOIN owner AS o USING (owner_id) ORDER BY t.ticket_id";
const WANTED: &str = "SELECT w.ticket_id, l.key, w.amount FROM ticket_take AS w JOIN named_limit AS l USING (limit_id)
    ORDER BY 1, 2";

impl Look<'_> {
    /// Permits that hold slots or have an id, also those that have ended within the last hour, the oldest first.
    ///
    /// # Errors
    /// Whatever can happen to the file.
    pub fn permits(&self) -> Result<Vec<PermitRow>, Error> {
        let now = self.now();
        let mut permits = Vec::new();
        let mut takes = self.takes(HELD)?;
        self.each(PERMITS, [], |row| {
            let permit: i64 = row.get(0)?;
            let at = Timestamp::from_nanos(row.get(4)?);
            let expires = row.get::<_, Option<i64>>(5)?.map(Timestamp::from_nanos);
            let outcome: Option<String> = row.get(8)?;
            let state = match outcome.as_deref() {
                Some("settled") => PermitState::Settled,
                Some("cancelled") => PermitState::Cancelled,
                Some(_) => PermitState::Expired,
                None if expires.is_some_and(|expires| expires <= now) => PermitState::Expired,
                None if at > now => PermitState::Booked,
                None if row.get(6)? => PermitState::Detached,
                None if row.get(7)? => PermitState::Abandoned,
                None => PermitState::Held,
            };
            let pid: Option<u32> = row.get(3)?;
            let owner = match (pid, row.get(9)?, row.get(10)?) {
                (Some(pid), Some(byte), Some(lock_inode)) => Some(OwnerId {
                    pid,
                    lock_inode,
                    byte,
                }),
                _ => None,
            };
            permits.push(PermitRow {
                fence: number(row, 1)?,
                id: row.get(2)?,
                pid,
                owner,
                at,
                expires,
                takes: takes.remove(&permit).unwrap_or_default(),
                state,
            });
            Ok(true)
        })?;
        Ok(permits)
    }

    /// Who waits in line for slots, or behind those who do, the first one first.
    ///
    /// # Errors
    /// Whatever can happen to the file.
    pub fn waiting(&self) -> Result<Vec<WaiterRow>, Error> {
        let mut waiting = Vec::new();
        let mut takes = self.takes(WANTED)?;
        self.each(WAITERS, [], |row| {
            let ticket: i64 = row.get(0)?;
            waiting.push(WaiterRow {
                pid: row.get(1)?,
                since: Timestamp::from_nanos(row.get(2)?),
                deadline: row.get::<_, Option<i64>>(3)?.map(Timestamp::from_nanos),
                takes: takes.remove(&ticket).unwrap_or_default(),
            });
            Ok(true)
        })?;
        Ok(waiting)
    }

    /// Amounts of limits, by what takes them.
    fn takes(&self, sql: &str) -> Result<Takes, Error> {
        let mut takes = Takes::new();
        self.each(sql, [], |row| {
            let of = takes.entry(row.get(0)?).or_default();
            of.push((row.get(1)?, number(row, 2)?));
            Ok(true)
        })?;
        Ok(takes)
    }
}

type Takes = BTreeMap<i64, Vec<(String, u64)>>;

const OWNERS: &str =
    "SELECT owner_id, pid, boot_id, lock_inode, since_ns FROM owner ORDER BY owner_id";

impl Look<'_> {
    /// The processes that have booked, wait or hold something, and whether they live, as far as their locks tell.
    ///
    /// # Errors
    /// Whatever can happen to the file.
    pub fn owners(&self) -> Result<Vec<OwnerRow>, Error> {
        let place = self.transaction.place;
        let lock_file = LockFile::open_existing(&place.lock).ok();
        let boot = print_boot(self.transaction.timeline().boot);
        let mut owners = Vec::new();
        self.each(OWNERS, [], |row| {
            let owner = super::owners::Owner {
                id: row.get(0)?,
                boot: row.get(2)?,
                lock_inode: row.get(3)?,
            };
            let is_alive = lock_file
                .as_ref()
                .and_then(|lock_file| is_alive(&owner, lock_file, &boot).ok());
            let pid = row.get(1)?;
            owners.push(OwnerRow {
                pid,
                since: Timestamp::from_nanos(row.get(4)?),
                is_alive,
                id: OwnerId {
                    pid,
                    lock_inode: owner.lock_inode,
                    byte: owner.id,
                },
            });
            Ok(true)
        })?;
        Ok(owners)
    }
}

/// A number that is never written below 0.
fn number(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0))
}
