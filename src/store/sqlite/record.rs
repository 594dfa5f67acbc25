//! Which database, WAL and shared memory were last opened together. The lock file keeps it as its content:
//! a lock there needs no bytes, so they are free.
//!
//! A WAL does not say which database it belongs to: SQLite would replay that of a former database into one
//! that was renamed to its place. Whoever opens the file knows by this record that both were not opened
//! together before, also where nobody who had the former ones open is left.

use super::lock_file::LockFile;
use super::place::Place;
use crate::error::Error;

#[cfg(all(feature = "inspect", target_os = "linux"))]
pub(super) use linux::has_foreign_wal;
#[cfg(target_os = "linux")]
pub(super) use linux::{note_opened, remove_orphans};

#[cfg(target_os = "linux")]
mod linux {
    use std::fmt;
    use std::io;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;
    use std::time::UNIX_EPOCH;

    use super::{Error, LockFile, Place};

    /// A file as long as it exists. Numbers of inodes are given out again; with the time at which the file
    /// was made, they are not.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Identity {
        device: u64,
        inode: u64,
        born_ns: u128,
    }

    impl Identity {
        /// Nothing where no file stands, and where the filesystem does not tell when it was made.
        fn of(path: &Path) -> Option<Self> {
            let metadata = path.symlink_metadata().ok()?;
            let born = metadata.created().ok()?.duration_since(UNIX_EPOCH).ok()?;
            Some(Self {
                device: metadata.dev(),
                inode: metadata.ino(),
                born_ns: born.as_nanos(),
            })
        }
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Record {
        database: Identity,
        wal: Identity,
        shm: Identity,
    }

    impl Record {
        fn of(place: &Place) -> Option<Self> {
            Some(Self {
                database: Identity::of(&place.database)?,
                wal: Identity::of(&place.wal)?,
                shm: Identity::of(&place.shm)?,
            })
        }

        /// Nothing if there is no record, or none that can be read.
        fn parse(text: &str) -> Option<Self> {
            let (line, _) = text.split_once('\n')?;
            let mut fields = line.strip_prefix(HEAD)?.split(' ');
            let mut identity = || {
                Some(Identity {
                    device: fields.next()?.parse().ok()?,
                    inode: fields.next()?.parse().ok()?,
                    born_ns: fields.next()?.parse().ok()?,
                })
            };
            Some(Self {
                database: identity()?,
                wal: identity()?,
                shm: identity()?,
            })
        }
    }

    const HEAD: &str = "last opened: ";

    /// One line, whatever a longer one has left behind it.
    impl fmt::Display for Record {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let [database, wal, shm] = [self.database, self.wal, self.shm].map(
                |Identity {
                     device,
                     inode,
                     born_ns,
                 }| format!("{device} {inode} {born_ns}"),
            );
            writeln!(f, "{HEAD}{database} {wal} {shm}")
        }
    }

    fn read(lock_file: &LockFile) -> Option<Record> {
        Record::parse(&lock_file.read().ok()?)
    }

    /// Removes what belongs to a former database, or to a former WAL of this one. The caller holds the open
    /// guard.
    ///
    /// Files that nobody has recorded are left alone: a database that was put there with a WAL of its own
    /// keeps it.
    pub(in super::super) fn remove_orphans(
        lock_file: &LockFile,
        place: &Place,
    ) -> Result<(), Error> {
        let Some(record) = read(lock_file) else {
            return Ok(());
        };
        let has_database = Identity::of(&place.database) == Some(record.database);
        let has_wal = Identity::of(&place.wal) == Some(record.wal);
        let has_shm = Identity::of(&place.shm) == Some(record.shm);
        // The WAL last: as long as it is there, whoever comes after a crash in between goes on here.
        if has_shm && !(has_database && has_wal) {
            remove(&place.shm, place)?;
        }
        if has_wal && !has_database {
            remove(&place.wal, place)?;
        }
        Ok(())
    }

    /// Whether a WAL stands there that was opened with another database than the one that does.
    #[cfg(feature = "inspect")]
    pub(in super::super) fn has_foreign_wal(lock_file: &LockFile, place: &Place) -> bool {
        read(lock_file).is_some_and(|record| {
            Identity::of(&place.wal) == Some(record.wal)
                && Identity::of(&place.database).is_some_and(|found| found != record.database)
        })
    }

    fn remove(path: &Path, place: &Place) -> Result<(), Error> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(place.failed("removing the WAL of a former file", error))
            }
            _ => Ok(()),
        }
    }

    /// Records what was opened. The caller holds the open guard.
    pub(in super::super) fn note_opened(lock_file: &LockFile, place: &Place) {
        let opened = Record::of(place);
        let Some(opened) = opened.filter(|opened| read(lock_file) != Some(*opened)) else {
            return;
        };
        // An old record stays true of the files that it names, and says nothing of these.
        if let Err(error) = lock_file.write(&opened.to_string()) {
            tracing::debug!(%error, "the lock file does not say what was opened");
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn identity(number: u32) -> Identity {
            Identity {
                device: u64::from(number),
                inode: u64::from(number) + 1,
                born_ns: u128::from(number) + 2,
            }
        }

        #[test]
        fn a_record_is_read_as_it_was_written_whatever_stands_behind_it() {
            let directory = tempfile::tempdir().unwrap();
            let lock_file = LockFile::open(&directory.path().join("a.db-lock"), 0o600).unwrap();
            assert_eq!(read(&lock_file), None);
            for number in [u32::MAX, 1] {
                let record = Record {
                    database: identity(number),
                    wal: identity(number / 2),
                    shm: identity(number / 3),
                };
                lock_file.write(&record.to_string()).unwrap();
                assert_eq!(read(&lock_file), Some(record));
            }
            for text in [
                "",
                "\n",
                "last opened: 1 2 3\n",
                "last opened: 1 2 3 4 5 6 7 8 9",
            ] {
                assert_eq!(Record::parse(text), None, "{text}");
            }
        }

        #[test]
        fn only_what_is_left_of_former_files_is_removed() {
            // What is replaced by a new file, and which of the WAL and the shared memory are left.
            let cases: [(&[&str], [bool; 2]); 5] = [
                (&[], [true, true]),
                (&[""], [false, false]),
                (&["-wal"], [true, false]),
                (&["-shm"], [true, true]),
                (&["", "-wal", "-shm"], [true, true]),
            ];
            for (replaced, left) in cases {
                let directory = tempfile::tempdir().unwrap();
                let place = Place::new(&directory.path().join("a.db")).unwrap();
                let lock_file = LockFile::open(&place.lock, 0o600).unwrap();
                for path in [&place.database, &place.wal, &place.shm] {
                    std::fs::write(path, "").unwrap();
                }
                remove_orphans(&lock_file, &place).unwrap();
                note_opened(&lock_file, &place);
                for suffix in replaced {
                    let other = directory.path().join("other");
                    std::fs::write(&other, "").unwrap();
                    let path = directory.path().join(format!("a.db{suffix}"));
                    std::fs::rename(&other, path).unwrap();
                }
                remove_orphans(&lock_file, &place).unwrap();
                assert!(place.database.exists());
                assert_eq!(
                    [place.wal.exists(), place.shm.exists()],
                    left,
                    "{replaced:?}"
                );
            }
        }
    }
}

/// Elsewhere nothing is recorded, and a former WAL is replayed into a database renamed to its place: locks
/// of whole files can be in the way of their content.
#[cfg(not(target_os = "linux"))]
#[expect(clippy::unnecessary_wraps, reason = "on Linux this can fail")]
pub(super) fn remove_orphans(_lock_file: &LockFile, _place: &Place) -> Result<(), Error> {
    Ok(())
}

#[cfg(not(target_os = "linux"))]
pub(super) fn note_opened(_lock_file: &LockFile, _place: &Place) {}

#[cfg(all(feature = "inspect", not(target_os = "linux")))]
pub(super) fn has_foreign_wal(_lock_file: &LockFile, _place: &Place) -> bool {
    false
}
