//! How a limiter is opened.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::Limiter;
use crate::clock::{Clock, SystemClock};
use crate::error::Error;
use crate::store::{Durability, Options, SqliteStore};

pub(super) fn system_clock() -> Result<SystemClock, Error> {
    SystemClock::new().map_err(|source| Error::Clock { source })
}

/// How a file is opened.
#[derive(Debug)]
#[must_use = "a builder opens nothing until `open`"]
pub struct Builder {
    path: PathBuf,
    clock: Option<Box<dyn Clock>>,
    durability: Durability,
    busy_deadline: Duration,
    readers: u32,
    mode: u32,
    trust_filesystem: bool,
    create: bool,
}

impl Builder {
    /// With the defaults.
    pub(super) fn of(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            clock: None,
            durability: Durability::default(),
            busy_deadline: Duration::from_secs(5),
            readers: 4,
            mode: 0o600,
            trust_filesystem: false,
            create: true,
        }
    }

    /// What a power failure may forget. Defaults to [`Durability::Normal`]; for windows of minutes and
    /// budgets of a day, choose [`Durability::Full`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// How long a call waits for the file's write lock before it fails with [`Error::Busy`]. Defaults to
    /// 5 seconds, and is at most a day.
    pub fn busy_deadline(mut self, deadline: Duration) -> Self {
        self.busy_deadline = deadline.min(crate::limit::DAY);
        self
    }

    /// Where the time comes from. Defaults to [`SystemClock`]. All processes that share a file must use
    /// the same kind.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Some(Box::new(clock));
        self
    }

    /// How many connections `peek`, `usage` and the like may use at the same time; one more is always
    /// there for writing. Defaults to 4, and is at least 1.
    pub fn readers(mut self, count: u32) -> Self {
        self.readers = count.max(1);
        self
    }

    /// The permissions of the file on Linux, if it is made. Defaults to `0o600`: other users have no access. With
    /// `0o660`, put it into a directory that its group may write, and let nobody else.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode & 0o666;
        self
    }

    /// Opens the file even on a filesystem that several machines may share, such as NFS or virtiofs.
    /// Defaults to false. If processes of two machines open it, limits are exceeded and the file is
    /// damaged within minutes.
    pub fn trust_filesystem(mut self, trust: bool) -> Self {
        self.trust_filesystem = trust;
        self
    }

    /// Whether to make the file if it is not there. Defaults to true. Without it, a missing file is
    /// [`Error::Io`].
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// Opens the file, makes it if need be, and brings its schema up to date. Any number of processes
    /// can do so at once.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Sqlite`] if the file cannot be made or opened (a symbolic link in its
    /// place is refused), [`Error::Filesystem`], [`Error::NewerSchema`], [`Error::ForeignFile`],
    /// [`Error::OldSqlite`], [`Error::Clock`], and [`Error::Busy`] if others have been opening it for 30
    /// seconds.
    pub fn open(self) -> Result<Limiter, Error> {
        let clock = match self.clock {
            Some(clock) => clock,
            None => Box::new(system_clock()?),
        };
        let store = SqliteStore::open(Options {
            path: self.path,
            clock,
            durability: self.durability,
            busy_deadline: self.busy_deadline,
            reader_count: self.readers,
            mode: self.mode,
            trust_filesystem: self.trust_filesystem,
            create: self.create,
        })?;
        Ok(Limiter {
            store: Arc::new(store),
        })
    }
}
