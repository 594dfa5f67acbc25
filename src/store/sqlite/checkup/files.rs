//! The files themselves: what stands there, whose it is, and who may do what with it.

use std::io;
use std::path::Path;

use crate::checkup::{Checkup, FindingKind};
use crate::error::Error;
use crate::store::sqlite::checkpoints::WAL_BYTES_KEPT;
use crate::store::sqlite::lock_file::LockFile;
use crate::store::sqlite::place::Place;
use crate::store::sqlite::record::has_foreign_wal;

/// A WAL that is so many times as long as it should become is long.
const TIMES_TOO_LONG: u64 = 4;

impl Checkup {
    /// False if there is nothing more to look at.
    pub(super) fn look_at_files(&mut self, place: &Place) -> bool {
        let found = match place.database.symlink_metadata() {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.find(
                    FindingKind::Missing,
                    &*place.database,
                    "nothing stands there",
                );
                return false;
            }
            Err(error) => {
                self.find(FindingKind::Unreadable, &*place.database, error.to_string());
                return false;
            }
        };
        if !found.is_file() {
            let what = if found.is_symlink() {
                "it is a symbolic link"
            } else {
                "it is no file"
            };
            self.find(FindingKind::NotAFile, &*place.database, what);
            return false;
        }
        if let Err(error) = place.check_filesystem() {
            self.find(
                FindingKind::Filesystem,
                &*place.directory,
                error.to_string(),
            );
        }
        #[cfg(unix)]
        self.look_at_permissions(place, &found);
        let kinds = [
            FindingKind::Filesystem,
            FindingKind::Unreadable,
            FindingKind::WorldReadable,
            FindingKind::WorldWritable,
            FindingKind::OpenDirectory,
            FindingKind::ForeignSidecar,
            FindingKind::SidecarMode,
        ];
        self.note_well(&kinds, "filesystem and permissions");
        let wal_bytes = place.wal.symlink_metadata().map_or(0, |found| found.len());
        if wal_bytes > WAL_BYTES_KEPT.unsigned_abs() * TIMES_TOO_LONG {
            let what = format!("the WAL has {wal_bytes} bytes");
            self.find(FindingKind::LongWal, &*place.wal, what);
        }
        let is_foreign = LockFile::open_existing(&place.lock)
            .is_ok_and(|lock_file| has_foreign_wal(&lock_file, place));
        if is_foreign {
            let what = "it was last used with another database than the one that stands here";
            self.find(FindingKind::ForeignWal, &*place.wal, what);
        }
        self.note_well(&[FindingKind::LongWal, FindingKind::ForeignWal], "WAL");
        // To open it would be to read a former file's pages.
        let ends_here = |kind| matches!(kind, FindingKind::ForeignWal | FindingKind::Unreadable);
        !self.findings.iter().any(|found| ends_here(found.kind()))
    }

    #[cfg(unix)]
    fn look_at_permissions(&mut self, place: &Place, database: &std::fs::Metadata) {
        use std::os::unix::fs::MetadataExt;

        use nix::unistd::{AccessFlags, access};
        let (mode, owner) = (database.mode() & 0o777, database.uid());
        if mode & 0o002 != 0 {
            let what = format!("anybody may write to it: its mode is {mode:o}");
            self.find(FindingKind::WorldWritable, &*place.database, what);
        } else if mode & 0o004 != 0 {
            let what = format!("anybody may read it: its mode is {mode:o}");
            self.find(FindingKind::WorldReadable, &*place.database, what);
        }
        if let Ok(directory) = place.directory.metadata()
            && directory.mode() & 0o002 != 0
            && directory.mode() & 0o1000 == 0
        {
            let what = "anybody may remove files from its directory, and add others";
            self.find(FindingKind::OpenDirectory, &*place.directory, what);
        }
        let may_use = |path: &Path| access(path, AccessFlags::R_OK | AccessFlags::W_OK).is_ok();
        if !may_use(&place.directory) || !may_use(&place.database) {
            let what = "this user may not read it and write to it, or to its directory";
            self.find(FindingKind::Unreadable, &*place.database, what);
        }
        for path in sidecars(place) {
            let Ok(found) = path.symlink_metadata() else {
                continue;
            };
            if found.uid() != owner {
                let what = format!(
                    "it belongs to user {}, and the database to {owner}",
                    found.uid()
                );
                self.find(FindingKind::ForeignSidecar, path, what);
            } else if found.mode() & 0o777 != mode_beside(mode, found.mode()) {
                let what = format!(
                    "its mode is {:o}, and that of the database {mode:o}",
                    found.mode() & 0o777
                );
                self.find(FindingKind::SidecarMode, path, what);
            }
            if !may_use(path) && path.exists() {
                let what = "this user may not read it and write to it";
                self.find(FindingKind::Unreadable, path, what);
            }
        }
    }
}

fn sidecars(place: &Place) -> [&Path; 3] {
    [&place.wal, &place.shm, &place.lock]
}

/// The permissions that a file beside a database is to have. All who may use the database have to be let in, or they cannot; but
/// nobody is let in because the database was left open to anybody.
#[cfg(unix)]
const fn mode_beside(database: u32, found: u32) -> u32 {
    (database & 0o770) | (database & found & 0o007)
}

/// Gives the files beside a database its permissions, as far as they are its owner's.
#[cfg(unix)]
pub(crate) fn mend_permissions(path: &Path) -> Result<(), Error> {
    use std::fs::Permissions;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let place = Place::new(path)?;
    let failed = |error| place.failed("setting the permissions of the files beside it", error);
    let database = place.database.symlink_metadata().map_err(failed)?;
    for path in sidecars(&place) {
        let Ok(found) = path.symlink_metadata() else {
            continue;
        };
        let mode = mode_beside(database.mode(), found.mode());
        if found.is_file() && found.uid() == database.uid() && found.mode() & 0o777 != mode {
            std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed)?;
        }
    }
    Ok(())
}

#[cfg(not(unix))]
pub(crate) fn mend_permissions(_path: &Path) -> Result<(), Error> {
    Ok(())
}
