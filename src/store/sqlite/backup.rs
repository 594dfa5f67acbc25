//! A copy of a file in use.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, ffi};

use super::connection::{Durability, flags, prepare};
use super::inspector::Inspector;
use super::place::Place;
use super::schema::check_current;
use crate::error::Error;

impl Inspector {
    /// Copies the file, as it is at one moment, to a path where nothing stands. Nobody who uses it has to wait; as long
    /// as the copying takes, its WAL cannot start anew.
    ///
    /// The copy is a file to be used, without free pages, and only its owner may read and write it. In the copy nobody
    /// lives: the first who needs what was booked or held there gets it. It comes to stand at its path whole or not at
    /// all; should this process be killed, what was begun stays beside it under names with `.part` in them, which can be removed.
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
    /// the disk is full, which names the copy, or the file is damaged; [`Error::Busy`] if somebody keeps the file locked; and
    /// as [`open`](Self::open).
    pub fn backup(&self, to: impl AsRef<Path>) -> Result<(), Error> {
        let to = Place::new(to.as_ref())?;
        for path in [&to.database, &to.wal, &to.shm] {
            if path.symlink_metadata().is_ok() {
                return Err(failed(path, io::ErrorKind::AlreadyExists.into()));
            }
        }
        self.patiently(|| {
            let part = Part::new(&to)?;
            self.copy(&part.place, &to)?;
            part.put(&to)
        })
    }

    fn copy(&self, part: &Place, to: &Place) -> Result<(), Error> {
        let connection = self.open_alone()?;
        check_current(&connection, &self.place)?;
        let path = part.database.to_str().ok_or_else(|| {
            let why = io::Error::other("its path is not UTF-8");
            failed(&to.database, why)
        })?;
        connection.execute(COPY, [path]).map_err(|error| {
            let place = if is_of_the_copy(&error) {
                to
            } else {
                &self.place
            };
            place.sqlite(error)
        })?;
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

/// Whether copying has failed where it writes: all that it reads, locks and maps is the original.
fn is_of_the_copy(error: &rusqlite::Error) -> bool {
    match error.sqlite_error() {
        Some(error) if error.code == ErrorCode::SystemIoFailure => !matches!(
            error.extended_code,
            ffi::SQLITE_IOERR_READ
                | ffi::SQLITE_IOERR_SHORT_READ
                | ffi::SQLITE_IOERR_LOCK
                | ffi::SQLITE_IOERR_RDLOCK
                | ffi::SQLITE_IOERR_SHMOPEN
                | ffi::SQLITE_IOERR_SHMSIZE
                | ffi::SQLITE_IOERR_SHMLOCK
                | ffi::SQLITE_IOERR_SHMMAP
        ),
        Some(error) => matches!(
            error.code,
            ErrorCode::DiskFull | ErrorCode::CannotOpen | ErrorCode::ReadOnly
        ),
        None => false,
    }
}

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
            rename_to_free(&self.place.database, &to.database)?;
            File::open(&to.directory)?.sync_all()
        };
        put().map_err(|source| failed(&to.database, source))
    }
}

/// Renames a file, unless something stands there. At no moment does it have two names.
#[cfg(any(target_os = "linux", target_os = "macos"))]
fn rename_to_free(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every filesystem can do that.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => link_to_free(from, to),
        renamed => Ok(renamed?),
    }
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
fn rename_to_free(from: &Path, to: &Path) -> io::Result<()> {
    link_to_free(from, to)
}

/// The same by a link: the former name is removed after that. Whoever is killed in between leaves both.
fn link_to_free(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::hard_link(from, to) {
        // Not every filesystem has links.
        Err(error)
            if error.kind() != io::ErrorKind::AlreadyExists && to.symlink_metadata().is_err() =>
        {
            std::fs::rename(from, to)
        }
        linked => linked,
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
