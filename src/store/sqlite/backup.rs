//! A copy of a file in use.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::connection::{Deadline, Durability, flags, prepare, waiting_until};
use super::inspector::Inspector;
use super::place::Place;
use super::schema::check_current;
use super::session::{Session, UnderWay};
use crate::error::Error;

impl Inspector {
    /// Copies the file, as it is at one moment, to a path where nothing stands. Nobody who uses it has to wait; as long
    /// as the copying takes, its WAL cannot start anew.
    ///
    /// The copy is a file to be used, without free pages, and only its owner may read and write it. In the copy nobody
    /// lives: the first who needs what was booked or held there gets it. It comes to stand at its path whole or not at
    /// all; what was begun stands beside it under a name that ends in `.part`, should this process be killed.
    ///
    /// ```
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let path = directory.path().join("limits.db");
    /// # let copy = directory.path().join("copy.db");
    /// use quotalite::{Inspector, Limit, Limiter};
    ///
    /// let limiter = Limiter::open(&path)?;
    /// limiter.define(Limit::new("mail").per_day(10))?;
    /// limiter.acquire(("mail", 7))?;
    ///
    /// Inspector::open(&path)?.backup(&copy)?;
    /// assert_eq!(Limiter::open(&copy)?.usage("mail")?.available(), 3);
    /// # Ok::<(), quotalite::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Io`] if something stands there, or a WAL that was left by what stood there before; [`Error::Sqlite`] if
    /// the disk is full or the file is damaged; and as [`open`](Self::open).
    pub fn backup(&self, to: impl AsRef<Path>) -> Result<(), Error> {
        let to = Place::new(to.as_ref())?;
        for path in [&to.database, &to.wal, &to.shm] {
            if path.symlink_metadata().is_ok() {
                return Err(failed(path, io::ErrorKind::AlreadyExists.into()));
            }
        }
        self.place.check_kind(false)?;
        if !Session::close_inherited() {
            return Err(self.place.forked());
        }
        // A child that is forked meanwhile could not close what is open here.
        let _under_way = UnderWay::new();
        let part = Part::new(&to)?;
        let deadline = Deadline::after(super::inspector::PATIENCE);
        waiting_until(deadline.at, || self.copy(&part.place, &to))?;
        part.put(&to)
    }

    fn copy(&self, part: &Place, to: &Place) -> Result<(), Error> {
        let connection = self.open_alone()?;
        check_current(&connection, &self.place)?;
        let path = part.database.to_str().ok_or_else(|| {
            let why = io::Error::other("its path is not UTF-8");
            failed(&to.database, why)
        })?;
        connection
            .execute(COPY, [path])
            .map_err(|error| to.sqlite(error))?;
        drop(connection);
        let copy = Connection::open_with_flags(&part.database, flags());
        copy.and_then(|copy| {
            prepare(&copy, Durability::Full)?;
            copy.execute(BURY, [])?;
            // As the original: it is a property of the file.
            copy.query_row(KEEP_LOG, [], |_| Ok(()))
        })
        .map_err(|error| to.sqlite(error))
    }
}

const COPY: &str = "VACUUM INTO ?1";
// Their locks are in the lock file of the original. An owner of another boot is dead.
const BURY: &str = "UPDATE owner SET boot_id = 'before the backup'";
const KEEP_LOG: &str = "PRAGMA journal_mode = WAL";

/// A copy that is not whole yet.
struct Part {
    place: Place,
}

impl Part {
    /// Makes it empty, beside where the copy will stand; nobody else can read what will be in it.
    fn new(to: &Place) -> Result<Self, Error> {
        let mut name = to.database.clone().into_os_string();
        name.push(format!(".{:08x}.part", fastrand::u32(..)));
        let place = Place::new(Path::new(&name))?;
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt;
            options.mode(0o600);
        }
        options
            .open(&place.database)
            .map_err(|source| failed(&place.database, source))?;
        Ok(Self { place })
    }

    /// Puts it in its place, if that is still free.
    fn put(self, to: &Place) -> Result<(), Error> {
        let put = || -> io::Result<()> {
            File::open(&self.place.database)?.sync_all()?;
            match std::fs::hard_link(&self.place.database, &to.database) {
                // Not every filesystem has links.
                Err(error)
                    if error.kind() != io::ErrorKind::AlreadyExists
                        && to.database.symlink_metadata().is_err() =>
                {
                    std::fs::rename(&self.place.database, &to.database)?;
                }
                linked => linked?,
            }
            File::open(&to.directory)?.sync_all()
        };
        put().map_err(|source| failed(&to.database, source))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let mut journal = self.place.database.clone().into_os_string();
        journal.push("-journal");
        let others = [&self.place.database, &self.place.wal, &self.place.shm];
        for path in others.into_iter().chain([&PathBuf::from(journal)]) {
            // Whoever looks there sees by its name what it is.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn failed(path: &Path, source: io::Error) -> Error {
    Error::Io {
        file: path.to_owned(),
        action: "making a copy here",
        source,
    }
}
