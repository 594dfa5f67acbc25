//! Who holds the lock of an owner, where that is no longer the process that took it.
//!
//! Beside each descriptor, Linux shows the locks of the open file behind it (`proc_pid_fdinfo(5)`): to whoever has inherited
//! it, too. `F_OFD_GETLK` and `/proc/locks` tell of no process.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::inspection::OwnerId;

/// The processes that hold the bytes of owners, for those that the process itself does not hold. What cannot be looked into, of
/// other users above all, is not found.
pub(super) fn heirs(owners: &[OwnerId], lock_file: &Path) -> BTreeMap<OwnerId, Vec<u32>> {
    let mut heirs = BTreeMap::<OwnerId, Vec<u32>>::new();
    let Ok(file) = lock_file.symlink_metadata() else {
        return heirs;
    };
    let place = (file.dev(), file.ino());
    let gone: BTreeMap<i64, OwnerId> = owners
        .iter()
        .filter(|owner| owner.lock_inode == file.ino().cast_signed())
        .filter(|owner| !bytes_held_by(owner.pid, place).contains(&owner.byte))
        .map(|owner| (owner.byte, *owner))
        .collect();
    if gone.is_empty() {
        return heirs;
    }
    let processes = fs::read_dir("/proc").into_iter().flatten();
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut pids: Vec<u32> = pids.collect();
    pids.sort_unstable();
    for pid in pids {
        let mut bytes = bytes_held_by(pid, place);
        bytes.sort_unstable();
        bytes.dedup();
        for owner in bytes.iter().filter_map(|byte| gone.get(byte)) {
            heirs.entry(*owner).or_default().push(pid);
        }
    }
    heirs
}

/// The bytes of a file, which is known by its device and its inode, that a process holds.
fn bytes_held_by(pid: u32, place: (u64, u64)) -> Vec<i64> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo"));
    let descriptors = descriptors.into_iter().flatten();
    let mut held = Vec::new();
    for name in descriptors.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{name}")).unwrap_or_default();
        let bytes: Vec<i64> = info
            .lines()
            .filter_map(|line| byte_in(line, place.1))
            .collect();
        // A lock is shown by a number of the device that some filesystems have besides the one that their files are known by, so
        // that only the file itself tells which it is.
        let is_it = || {
            let file = fs::metadata(format!("/proc/{pid}/fd/{name}"));
            file.is_ok_and(|file| (file.dev(), file.ino()) == place)
        };
        if !bytes.is_empty() && is_it() {
            held.extend(bytes);
        }
    }
    held
}

/// The byte that is locked in the file with this inode, if a line says so. Such as
/// `lock: 1: OFDLCK ADVISORY  WRITE -1 00:31:7281 5 5`: the device and the inode, the first and the last byte.
fn byte_in(line: &str, inode: u64) -> Option<i64> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let ["lock:", _, "OFDLCK", .., place, first, last] = words[..] else {
        return None;
    };
    let is_it = place.rsplit(':').next()?.parse() == Ok(inode) && first == last;
    is_it.then(|| first.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_known_by_its_file_and_its_byte() {
        let line = "lock:\t1: OFDLCK ADVISORY  WRITE -1 00:31:7281 5 5";
        assert_eq!(byte_in(line, 7281), Some(5));
        assert_eq!(byte_in(line, 7282), None);
        for other in [
            "",
            "flags:\t02100002",
            "lock:\t1: POSIX  ADVISORY  WRITE 17 00:31:7281 5 5",
            "lock:\t1: OFDLCK ADVISORY  WRITE -1 00:31:7281 5 EOF",
            "lock:\t1: OFDLCK ADVISORY  WRITE -1 00:31:7281 x x",
            "lock:",
        ] {
            assert_eq!(byte_in(other, 7281), None, "{other}");
        }
    }
}
