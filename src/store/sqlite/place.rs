//! The file's place: its path, its filesystem, and whether what stands there is still what was opened.

use std::io;
use std::path::{Path, PathBuf};
#[cfg(unix)]
use std::time::{Duration, Instant};

use crate::error::Error;

/// The paths of a database and of the files that belong to it.
///
/// Only SQLite ever opens the database and its sidecars: closing any other descriptor of theirs would
/// drop all of this process's locks on them (POSIX locks belong to the process, see `fcntl(2)`). This
/// module looks at them by path.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) directory: PathBuf,
    pub(super) database: PathBuf,
    pub(super) wal: PathBuf,
    pub(super) shm: PathBuf,
    pub(super) lock: PathBuf,
}

impl Place {
    /// Links in the directory part are followed, once and for all; a link in the last part is refused by
    /// SQLite, which opens with `NOFOLLOW`.
    pub(super) fn new(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Io {
            file: path.to_owned(),
            action: "finding its directory",
            source,
        };
        if path.as_os_str() == ":memory:" {
            let hint = "that is no file; see `Limiter::in_memory`";
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, hint)));
        }
        let name = path
            .file_name()
            .ok_or_else(|| failed(io::Error::from(io::ErrorKind::InvalidInput)))?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let directory = parent.canonicalize().map_err(failed)?;
        let database = directory.join(name);
        let beside = |suffix: &str| {
            let mut name = name.to_owned();
            name.push(suffix);
            directory.join(name)
        };
        Ok(Self {
            wal: beside("-wal"),
            shm: beside("-shm"),
            lock: beside("-lock"),
            database,
            directory,
        })
    }

    /// Whether this user may read it and write to it, as far as its permissions tell.
    #[cfg(all(feature = "inspect", unix))]
    pub(super) fn may_be_used(&self) -> bool {
        use nix::unistd::{AccessFlags, access};
        access(&self.database, AccessFlags::R_OK | AccessFlags::W_OK).is_ok()
    }

    #[cfg(all(feature = "inspect", not(unix)))]
    pub(super) fn may_be_used(&self) -> bool {
        true
    }

    /// Refuses what cannot be a database, before anything is made beside it.
    pub(super) fn check_kind(&self, may_be_missing: bool) -> Result<(), Error> {
        let refuse = |why: &str| Err(self.failed("opening it", io::Error::other(why)));
        match self.database.symlink_metadata() {
            Ok(found) if found.is_symlink() => refuse("a symbolic link, which is not followed"),
            Ok(found) if found.is_dir() => refuse("a directory"),
            Err(error) if error.kind() == io::ErrorKind::NotFound && may_be_missing => Ok(()),
            Ok(_) => Ok(()),
            Err(error) => Err(self.failed("opening it", error)),
        }
    }

    /// Refuses filesystems on which the locks that everything rests on do not hold between processes.
    #[cfg(target_os = "linux")]
    pub(super) fn check_filesystem(&self) -> Result<(), Error> {
        let found = nix::sys::statfs::statfs(&self.directory)
            .map_err(|errno| self.failed("finding its filesystem", errno.into()))?;
        // The type of the magic number differs between C libraries; as 32 bits it is the same in all.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "magic numbers have 32 bits"
        )]
        let magic = found.filesystem_type().0 as u32;
        match shared_filesystem(magic) {
            Some(filesystem) => Err(Error::Filesystem {
                file: self.database.clone(),
                filesystem,
            }),
            None => Ok(()),
        }
    }

    #[cfg(not(target_os = "linux"))]
    #[expect(clippy::unnecessary_wraps, reason = "on Linux this can fail")]
    pub(super) fn check_filesystem(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Makes an empty database file with these permissions, unless something stands there.
    ///
    /// On Linux `mknod` makes it without opening it, so that no lock of this process can be dropped.
    #[cfg(target_os = "linux")]
    pub(super) fn create(&self, mode: u32) -> Result<(), Error> {
        use std::os::unix::fs::PermissionsExt;

        use nix::errno::Errno;
        use nix::sys::stat::{Mode, SFlag, mknod};
        match mknod(
            &self.database,
            SFlag::S_IFREG,
            Mode::from_bits_truncate(mode & 0o600),
            0,
        ) {
            Ok(()) => {
                // Not by `mknod`, as the umask would take bits away that the caller asked for.
                let permissions = std::fs::Permissions::from_mode(mode);
                std::fs::set_permissions(&self.database, permissions)
                    .map_err(|source| self.failed("setting its permissions", source))
            }
            Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(self.failed("creating it", errno.into())),
        }
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn create(&self, _mode: u32) -> Result<(), Error> {
        match std::fs::File::create_new(&self.database) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(source) => Err(self.failed("creating it", source)),
        }
    }

    /// Whether a rollback journal lies beside it, as SQLite names it.
    #[cfg(feature = "inspect")]
    pub(super) fn has_journal(&self) -> bool {
        let mut name = self.database.clone().into_os_string();
        name.push("-journal");
        Path::new(&name).symlink_metadata().is_ok()
    }

    pub(super) fn failed(&self, action: &'static str, source: io::Error) -> Error {
        Error::Io {
            file: self.database.clone(),
            action,
            source,
        }
    }

    pub(super) fn sqlite(&self, source: rusqlite::Error) -> Error {
        Error::Sqlite {
            file: self.database.clone(),
            source,
        }
    }

    pub(super) fn damaged(&self, what: impl Into<String>) -> Error {
        Error::Damaged {
            file: self.database.clone(),
            what: what.into(),
        }
    }

    pub(super) fn forked(&self) -> Error {
        Error::Forked {
            file: self.database.clone(),
        }
    }

    pub(super) fn moved(&self) -> Error {
        Error::Moved {
            file: self.database.clone(),
        }
    }
}

/// The name of a filesystem that several machines may share, by its magic number (`statfs(2)` and
/// `linux/magic.h`). FUSE is among them because virtiofs and sshfs show its number.
#[cfg(any(target_os = "linux", test))]
fn shared_filesystem(magic: u32) -> Option<&'static str> {
    Some(match magic {
        0x6969 => "nfs",
        0x517B => "smb",
        0xFF53_4D42 => "cifs",
        0xFE53_4D42 => "smb2",
        0x0102_1997 => "9p",
        0x6573_5546 => "fuse or virtiofs",
        0x5346_414F | 0x6B41_4653 => "afs",
        0x7375_7245 => "coda",
        0x00C3_6400 => "ceph",
        0x0BD0_0BD0 => "lustre",
        0x4750_4653 => "gpfs",
        0x7461_636F => "ocfs2",
        0x0116_1970 => "gfs2",
        0x564C => "ncp",
        0x786F_4256 => "vboxsf",
        0xBACB_ACBC => "vmhgfs",
        _ => return None,
    })
}

/// Notices when the database, its WAL, its shared memory or the lock file is removed or replaced under
/// a running process: from then on, processes at the old files and processes at the new ones would each
/// hand out the whole limit.
///
/// Looking at four files costs more than all the rest of a refusal. So it looks at the directory first:
/// nothing in there can be removed, renamed or created without a new time stamp of the directory. And it
/// does not look again within a fraction of the time that another process needs to open the file.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    #[cfg(unix)]
    files: [(PathBuf, FileId); 4],
    #[cfg(unix)]
    directory: PathBuf,
    #[cfg(unix)]
    seen: Option<Stamps>,
    /// By the wall clock, as the files' stamps are.
    #[cfg(unix)]
    held_ns: i128,
    #[cfg(unix)]
    held_at: Option<Instant>,
}

#[cfg(unix)]
type FileId = (u64, u64);

#[cfg(unix)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamps {
    id: FileId,
    modified_ns: i128,
    changed_ns: i128,
}

/// Two changes within one tick of the kernel's clock (at most 10 ms) can carry the same time stamp, so
/// a stamp is trusted only once it is older than this.
#[cfg(unix)]
const SETTLED_NS: i128 = 50_000_000;

/// Some filesystems keep stamps of one or two seconds.
#[cfg(unix)]
const COARSE_NS: i128 = 2_500_000_000;

/// How long it relies on its last look. To open the file takes five times as long.
#[cfg(unix)]
const FRESH: Duration = Duration::from_micros(200);

#[cfg(unix)]
impl Watch {
    /// Remembers what stands there now. A database in use has all four.
    pub(super) fn new(place: &Place) -> Result<Self, Error> {
        let identify = |path: &PathBuf| -> Result<(PathBuf, FileId), Error> {
            let id =
                file_id(path).map_err(|source| place.failed("looking at its files", source))?;
            Ok((path.clone(), id))
        };
        Ok(Self {
            files: [
                identify(&place.database)?,
                identify(&place.wal)?,
                identify(&place.shm)?,
                identify(&place.lock)?,
            ],
            directory: place.directory.clone(),
            seen: None,
            held_ns: 0,
            held_at: None,
        })
    }

    /// Whether this is the lock file that stands there.
    pub(super) fn has_lock_file(&self, inode: i64) -> bool {
        self.files[3].1.1.cast_signed() == inode
    }

    /// Whether all files still are those that were opened.
    pub(super) fn holds(&mut self) -> bool {
        let is_fresh = |held_at: Instant| held_at.elapsed() < FRESH;
        self.held_at.is_some_and(is_fresh) || self.look()
    }

    /// The same, by a look at what stands there now.
    pub(super) fn look(&mut self) -> bool {
        let Ok(directory) = Stamps::of(&self.directory) else {
            return false;
        };
        let now_ns = wall_ns();
        if self.seen != Some(directory) {
            let stands = |(path, id): &(PathBuf, FileId)| file_id(path).is_ok_and(|f| f == *id);
            if !self.files.iter().all(stands) {
                return false;
            }
            let age_ns = now_ns - directory.modified_ns.max(directory.changed_ns);
            self.seen = (age_ns > directory.settled_ns()).then_some(directory);
        }
        self.held_ns = now_ns;
        self.held_at = Some(Instant::now());
        true
    }

    /// Whether a connection may copy its WAL into the database when it is the last one to close: if
    /// all files stand; or if the sidecars are gone and nobody can have written since they stood. Else
    /// it would lay old pages over newer ones.
    pub(super) fn allows_checkpoint(&mut self) -> bool {
        if self.look() {
            return true;
        }
        let [(database, id), (wal, _), ..] = &self.files;
        let alone = std::fs::symlink_metadata(wal)
            .is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        let untouched = Stamps::of(database).is_ok_and(|found| {
            found.id == *id && found.modified_ns < self.held_ns - found.settled_ns()
        });
        // The stamps are compared with the wall clock, which must not have been set meanwhile.
        let steady = self.held_at.is_some_and(|held_at| {
            let gone_ns = i128::try_from(held_at.elapsed().as_nanos()).unwrap_or(i128::MAX);
            (wall_ns() - self.held_ns - gone_ns).abs() < SETTLED_NS / 2
        });
        alone && untouched && steady
    }
}

#[cfg(unix)]
fn wall_ns() -> i128 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| i128::try_from(since.as_nanos()).unwrap_or(0))
}

#[cfg(unix)]
fn file_id(path: &Path) -> io::Result<FileId> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(unix)]
impl Stamps {
    fn of(path: &Path) -> io::Result<Self> {
        let in_ns =
            |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        // `std::fs::metadata` asks by `statx`, which takes half as long again, on the hot path.
        #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
        {
            let found = nix::sys::stat::stat(path)?;
            Ok(Self {
                id: (found.st_dev, found.st_ino),
                modified_ns: in_ns(found.st_mtime, found.st_mtime_nsec),
                changed_ns: in_ns(found.st_ctime, found.st_ctime_nsec),
            })
        }
        #[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
        {
            use std::os::unix::fs::MetadataExt;
            let found = std::fs::metadata(path)?;
            Ok(Self {
                id: (found.dev(), found.ino()),
                modified_ns: in_ns(found.mtime(), found.mtime_nsec()),
                changed_ns: in_ns(found.ctime(), found.ctime_nsec()),
            })
        }
    }

    /// How old these stamps have to be before a further change is sure to show in them.
    fn settled_ns(&self) -> i128 {
        let whole_seconds = |ns: i128| ns % 1_000_000_000 == 0;
        if whole_seconds(self.modified_ns) && whole_seconds(self.changed_ns) {
            COARSE_NS
        } else {
            SETTLED_NS
        }
    }
}

#[cfg(not(unix))]
impl Watch {
    #[expect(clippy::unnecessary_wraps, reason = "on Unix this can fail")]
    pub(super) fn new(_place: &Place) -> Result<Self, Error> {
        Ok(Self {})
    }

    pub(super) fn has_lock_file(&self, _inode: i64) -> bool {
        true
    }

    pub(super) fn holds(&mut self) -> bool {
        true
    }

    pub(super) fn look(&mut self) -> bool {
        true
    }

    pub(super) fn allows_checkpoint(&mut self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_filesystems_are_known_by_their_numbers() {
        let local = [
            0xEF53,
            0x0102_1994,
            0x5846_5342,
            0x9123_683E,
            0x794C_7630,
            0x2FC1_2FC1,
            0xF2F5_2010,
        ];
        for magic in local {
            assert_eq!(shared_filesystem(magic), None, "{magic:#x}");
        }
        let shared = [
            (0x6969, "nfs"),
            (0x0102_1997, "9p"),
            (0x6573_5546, "fuse or virtiofs"),
        ];
        for (magic, name) in shared {
            assert_eq!(shared_filesystem(magic), Some(name));
        }
    }

    #[test]
    fn the_sidecars_stand_beside_the_database() {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::new(&directory.path().join("limits.db")).unwrap();
        assert!(place.wal.ends_with("limits.db-wal"));
        assert!(place.lock.ends_with("limits.db-lock"));
        assert!(Place::new(Path::new("/")).is_err());
        assert!(Place::new(&directory.path().join("none/limits.db")).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_watch_notices_what_happens_to_any_of_its_files() {
        let fresh = || {
            let directory = tempfile::tempdir().unwrap();
            let place = Place::new(&directory.path().join("a.db")).unwrap();
            for path in [&place.database, &place.wal, &place.shm, &place.lock] {
                std::fs::write(path, "").unwrap();
            }
            let watch = Watch::new(&place).unwrap();
            (directory, place, watch)
        };
        for settle in [false, true] {
            for victim in 0..4 {
                for replaced in [false, true] {
                    let (_directory, place, mut watch) = fresh();
                    if settle {
                        // Real time: the stamps are the kernel's.
                        std::thread::sleep(std::time::Duration::from_millis(60));
                    }
                    assert!(watch.holds());
                    let age = || std::thread::sleep(std::time::Duration::from_millis(1));
                    age();
                    assert!(watch.holds());
                    assert_eq!(watch.seen.is_some(), settle);
                    let path = [&place.database, &place.wal, &place.shm, &place.lock][victim];
                    if replaced {
                        let other = place.directory.join("other");
                        std::fs::write(&other, "").unwrap();
                        std::fs::rename(&other, path).unwrap();
                    } else {
                        std::fs::remove_file(path).unwrap();
                    }
                    age();
                    assert!(!watch.holds(), "{path:?} {replaced} {settle}");
                }
            }
        }
    }
}
