//! The lock file beside the database: who may migrate, and who is alive.
//!
//! On Linux it holds open file description locks (`fcntl_locking(2)`): the kernel frees them when
//! their holder ends, however it ends, and shows them across pid namespaces; nothing else opens this
//! file, and unlike POSIX locks they do not vanish when some other descriptor of the file is closed.
//! Byte 0 guards opening and migrating; byte N is held by the owner N for as long as it lives. What the
//! bytes hold is another matter: see `record`.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
#[cfg(target_os = "linux")]
use std::path::PathBuf;
#[cfg(target_os = "linux")]
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::shared_page::SharedPage;

#[derive(Debug)]
pub(super) struct LockFile {
    /// `None` once it was closed in a forked child.
    file: Mutex<Option<File>>,
    inode: i64,
    #[cfg(target_os = "linux")]
    path: PathBuf,
    /// The owner that this is; 0 if it is none. The kernel does not show to a file what it has locked itself.
    #[cfg(target_os = "linux")]
    own: AtomicI64,
    #[cfg(not(target_os = "linux"))]
    owners: portable::OwnerFiles,
}

/// How every descriptor of it is opened.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits());
    }
    options
}

impl LockFile {
    /// Opens one that is there, and leaves its permissions as they are.
    pub(super) fn open_existing(path: &Path) -> io::Result<Self> {
        Self::of(path, options().open(path)?)
    }

    /// Opens it, and makes it if it is not there. Only whoever makes it says what its permissions are.
    pub(super) fn open(path: &Path, mode: u32) -> io::Result<Self> {
        loop {
            match Self::open_existing(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                opened => return opened,
            }
            match Self::create(path, mode) {
                // Somebody else was first.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                created => return created,
            }
        }
    }

    fn create(path: &Path, mode: u32) -> io::Result<Self> {
        let mut options = options();
        options.create_new(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
            let file = options.mode(mode).open(path)?;
            // The umask would take bits away that the caller asked for.
            file.set_permissions(std::fs::Permissions::from_mode(mode))?;
            Self::of(path, file)
        }
        #[cfg(not(unix))]
        {
            let _ = mode;
            Self::of(path, options.open(path)?)
        }
    }

    fn of(path: &Path, file: File) -> io::Result<Self> {
        #[cfg(unix)]
        let inode = {
            use std::os::unix::fs::MetadataExt;
            file.metadata()?.ino().cast_signed()
        };
        #[cfg(not(unix))]
        let inode = 0;
        Ok(Self {
            file: Mutex::new(Some(file)),
            inode,
            #[cfg(target_os = "linux")]
            path: path.to_owned(),
            #[cfg(target_os = "linux")]
            own: AtomicI64::new(0),
            #[cfg(not(target_os = "linux"))]
            owners: portable::OwnerFiles::beside(path),
        })
    }

    /// Which lock file this is, should it ever be replaced.
    pub(super) const fn inode(&self) -> i64 {
        self.inode
    }

    /// The part of it that all its users share; nothing where there is none. An error on a system that has it: a process
    /// that does not tell others of what it writes would let them take for true what is no longer.
    ///
    /// It is mapped from a descriptor of its own: a mapping keeps what it was made from open, and with it a
    /// forked child would keep its parent's locks.
    #[cfg(target_os = "linux")]
    pub(super) fn page(&self) -> io::Result<Option<Arc<SharedPage>>> {
        let page = SharedPage::map(&self.open_again()?)?;
        Ok(Some(Arc::new(page)))
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn page(&self) -> io::Result<Option<Arc<SharedPage>>> {
        Ok(None)
    }

    /// The same file, opened once more.
    #[cfg(target_os = "linux")]
    fn open_again(&self) -> io::Result<File> {
        use std::os::unix::fs::MetadataExt;
        let file = options().open(&self.path)?;
        if file.metadata()?.ino().cast_signed() != self.inode {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        Ok(file)
    }

    /// Closes this process's descriptor. A forked child does that with the one that it inherited: as
    /// long as any copy is open, the kernel keeps the parent's locks.
    pub(super) fn close(&self) {
        drop(self.with(Option::take));
    }

    fn with<T>(&self, change: impl FnOnce(&mut Option<File>) -> T) -> T {
        change(&mut self.file.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn with_file<T>(&self, act: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        self.with(|file| match file {
            Some(file) => act(file),
            None => Err(io::Error::from(io::ErrorKind::NotConnected)),
        })
    }

    /// Takes the lock for opening and migrating, or says that it could not be had in time.
    pub(super) fn guard_open(&self, deadline: Instant) -> io::Result<Option<OpenGuard<'_>>> {
        loop {
            if self.try_lock_open()? {
                return Ok(Some(OpenGuard { lock_file: self }));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_micros(fastrand::u64(100..2_000)));
        }
    }
}

/// Holds the lock for opening and migrating.
#[derive(Debug)]
pub(super) struct OpenGuard<'f> {
    lock_file: &'f LockFile,
}

impl Drop for OpenGuard<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.lock_file.unlock_open() {
            tracing::warn!(%error, "the open lock stays held until this limiter is dropped");
        }
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::File;
    use std::io;
    use std::os::fd::{OwnedFd, RawFd};
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::Ordering;

    use nix::errno::Errno;
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::libc;
    use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

    use super::LockFile;

    const OPEN_BYTE: i64 = 0;

    /// Shells redirect small descriptors by number, and would close what is there.
    const OUT_OF_THE_WAY: RawFd = 100;

    impl LockFile {
        pub(super) fn try_lock_open(&self) -> io::Result<bool> {
            self.with_file(|file| set(file, OPEN_BYTE, Kind::Exclusive))
        }

        pub(super) fn unlock_open(&self) -> io::Result<()> {
            self.with_file(|file| set(file, OPEN_BYTE, Kind::None).map(drop))
        }

        /// Becomes the owner `id`, for as long as this file stays open. False if somebody else is.
        pub(in super::super) fn lock_owner(&self, id: i64) -> io::Result<bool> {
            let is_mine = self.with_file(|file| set(file, id, Kind::Exclusive))?;
            if is_mine {
                self.own.store(id, Ordering::SeqCst);
            }
            Ok(is_mine)
        }

        pub(in super::super) fn unlock_owner(&self, id: i64) -> io::Result<()> {
            self.own.store(0, Ordering::SeqCst);
            self.with_file(|file| set(file, id, Kind::None).map(drop))
        }

        /// The same open file, for programs that are started from now on: its locks are held until the last of them ends.
        pub(in super::super) fn to_inherit(&self) -> io::Result<OwnedFd> {
            self.with_file(|file| {
                let copy = match fcntl_dupfd_cloexec(file, OUT_OF_THE_WAY) {
                    // So few files may be open here.
                    Err(rustix::io::Errno::INVAL) => fcntl_dupfd_cloexec(file, 0)?,
                    copy => copy?,
                };
                fcntl_setfd(&copy, FdFlags::empty())?;
                Ok(copy)
            })
        }

        /// What stands in the file, as far as it is of any interest.
        pub(in super::super) fn read(&self) -> io::Result<String> {
            let mut bytes = [0; 1_024];
            let length = self.with_file(|file| file.read_at(&mut bytes, 0))?;
            Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
        }

        pub(in super::super) fn write(&self, text: &str) -> io::Result<()> {
            self.with_file(|file| file.write_all_at(text.as_bytes(), 0))
        }

        /// Whether this or some other open lock file holds the byte of the owner `id`.
        pub(in super::super) fn is_alive(&self, id: i64) -> io::Result<bool> {
            if self.own.load(Ordering::SeqCst) == id {
                return Ok(true);
            }
            self.with_file(|file| {
                let mut lock = region(id, Kind::Exclusive);
                fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
                Ok(i32::from(lock.l_type) != libc::F_UNLCK)
            })
        }
    }

    #[derive(Clone, Copy)]
    enum Kind {
        Exclusive,
        None,
    }

    fn set(file: &File, byte: i64, kind: Kind) -> io::Result<bool> {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&region(byte, kind))) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn region(byte: i64, kind: Kind) -> libc::flock {
        let l_type = match kind {
            Kind::Exclusive => libc::F_WRLCK,
            Kind::None => libc::F_UNLCK,
        };
        #[expect(
            clippy::cast_possible_truncation,
            reason = "constants of the C library"
        )]
        libc::flock {
            l_type: l_type as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: byte,
            l_len: 1,
            // Open file description locks demand it.
            l_pid: 0,
        }
    }
}

/// Elsewhere an owner is a file of its own, locked as a whole by the standard library.
#[cfg(any(not(target_os = "linux"), test))]
mod portable {
    use std::collections::HashMap;
    use std::fs::{File, OpenOptions, TryLockError};
    use std::io;
    use std::path::{Path, PathBuf};
    use std::sync::{Mutex, PoisonError};

    #[derive(Debug)]
    pub(super) struct OwnerFiles {
        lock_path: PathBuf,
        held: Mutex<HashMap<i64, File>>,
    }

    impl OwnerFiles {
        pub(super) fn beside(lock_path: &Path) -> Self {
            Self {
                lock_path: lock_path.to_owned(),
                held: Mutex::new(HashMap::new()),
            }
        }

        fn path(&self, id: i64) -> PathBuf {
            let mut name = self.lock_path.clone().into_os_string();
            name.push(format!("-{id}"));
            name.into()
        }

        pub(super) fn lock_owner(&self, id: i64) -> io::Result<bool> {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(self.path(id))?;
            if !try_lock(&file)? {
                return Ok(false);
            }
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            held.insert(id, file);
            Ok(true)
        }

        pub(super) fn unlock_owner(&self, id: i64) {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            if held.remove(&id).is_some() {
                // Somebody who looks now finds no file, which says the same as a free one.
                let _ = std::fs::remove_file(self.path(id));
            }
        }

        pub(super) fn is_alive(&self, id: i64) -> io::Result<bool> {
            let path = self.path(id);
            let file = match OpenOptions::new().write(true).open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(error),
            };
            let dead = try_lock(&file)?;
            if dead {
                let _ = std::fs::remove_file(path);
            }
            Ok(!dead)
        }
    }

    pub(super) fn try_lock(file: &File) -> io::Result<bool> {
        match file.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    #[cfg(not(target_os = "linux"))]
    impl super::LockFile {
        pub(super) fn try_lock_open(&self) -> io::Result<bool> {
            self.with_file(try_lock)
        }

        pub(super) fn unlock_open(&self) -> io::Result<()> {
            self.with_file(File::unlock)
        }

        pub(in super::super) fn lock_owner(&self, id: i64) -> io::Result<bool> {
            self.owners.lock_owner(id)
        }

        pub(in super::super) fn unlock_owner(&self, id: i64) -> io::Result<()> {
            self.owners.unlock_owner(id);
            Ok(())
        }

        pub(in super::super) fn is_alive(&self, id: i64) -> io::Result<bool> {
            self.owners.is_alive(id)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_lives_as_long_as_its_lock_file_is_open() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.db-lock");
        let (one, other) = (
            LockFile::open(&path, 0o600).unwrap(),
            LockFile::open(&path, 0o600).unwrap(),
        );
        assert!(one.lock_owner(7).unwrap());
        assert!(!other.lock_owner(7).unwrap());
        assert!(other.is_alive(7).unwrap() && one.is_alive(7).unwrap());
        assert!(!other.is_alive(8).unwrap());
        assert!(other.lock_owner(8).unwrap());
        one.unlock_owner(7).unwrap();
        assert!(!one.is_alive(7).unwrap());
        assert!(!other.is_alive(7).unwrap());
        assert!(one.is_alive(8).unwrap());
        drop(other);
        assert!(!one.is_alive(8).unwrap());
        one.close();
        assert!(one.is_alive(8).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn only_whoever_makes_it_says_who_may_use_it() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.db-lock");
        let mode = || path.metadata().unwrap().permissions().mode() & 0o777;
        assert!(LockFile::open_existing(&path).is_err());
        LockFile::open(&path, 0o666).unwrap();
        assert_eq!(mode(), 0o666);
        LockFile::open(&path, 0o600).unwrap();
        LockFile::open_existing(&path).unwrap();
        assert_eq!(mode(), 0o666);
        let link = directory.path().join("b.db-lock");
        std::os::unix::fs::symlink(directory.path().join("nothing"), &link).unwrap();
        assert!(LockFile::open(&link, 0o600).is_err());
        // However many make it at once, one of them does.
        for _ in 0..50 {
            std::fs::remove_file(&path).unwrap();
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| LockFile::open(&path, 0o660).unwrap());
                    scope.spawn(|| LockFile::open_existing(&path).is_ok());
                }
            });
            assert_eq!(mode(), 0o660);
        }
    }

    #[test]
    fn only_one_opens_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.db-lock");
        let (one, other) = (
            LockFile::open(&path, 0o600).unwrap(),
            LockFile::open(&path, 0o600).unwrap(),
        );
        let guard = one.guard_open(Instant::now()).unwrap();
        assert!(guard.is_some());
        assert!(other.guard_open(Instant::now()).unwrap().is_none());
        drop(guard);
        assert!(other.guard_open(Instant::now()).unwrap().is_some());
    }

    #[test]
    fn the_portable_owner_files_keep_the_same_promises() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.db-lock");
        let (one, other) = (
            portable::OwnerFiles::beside(&path),
            portable::OwnerFiles::beside(&path),
        );
        assert!(one.lock_owner(7).unwrap());
        assert!(!other.lock_owner(7).unwrap());
        assert!(other.is_alive(7).unwrap());
        assert!(!other.is_alive(8).unwrap());
        one.unlock_owner(7);
        assert!(!other.is_alive(7).unwrap());
        assert!(other.lock_owner(8).unwrap());
        drop(other);
        assert!(!one.is_alive(8).unwrap());
    }
}
