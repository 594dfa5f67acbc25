//! Who holds the lock of an owner, where that is no longer the process that took it.
//!
//! Beside each descriptor, Linux shows the locks of the open file behind it (`proc_pid_fdinfo(5)`): to whoever has inherited
//! it, too. `F_OFD_GETLK` and `/proc/locks` tell of no process.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::inspection::OwnerId;

/// The processes that hold the byte of an owner, unless the one that it is named after does. Those that cannot be looked into, of
/// other users above all, are not found.
pub(super) fn heirs(owner: OwnerId, lock_file: &Path) -> Vec<u32> {
    let OwnerId {
        pid,
        lock_inode,
        byte,
    } = owner;
    let file = match lock_file.symlink_metadata() {
        Ok(file) if file.ino().cast_signed() == lock_inode => file,
        _ => return Vec::new(),
    };
    let lock = HeldLock {
        device: file.dev(),
        inode: file.ino(),
        byte,
    };
    if lock.is_held_by(pid) {
        return Vec::new();
    }
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| lock.is_held_by(*pid));
    let mut pids: Vec<u32> = pids.collect();
    pids.sort_unstable();
    pids
}

#[derive(Clone, Copy)]
struct HeldLock {
    device: u64,
    inode: u64,
    byte: i64,
}

impl HeldLock {
    fn is_held_by(self, pid: u32) -> bool {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else {
            return false;
        };
        let mut names = descriptors.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.any(|name| self.is_held_through(pid, &name).is_some())
    }

    /// The lock is shown by the number of a device that some filesystems have besides the one that their files are known by, so that
    /// only the file itself says which it is.
    fn is_held_through(self, pid: u32, descriptor: &str) -> Option<()> {
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{descriptor}")).ok()?;
        info.lines().find(|line| self.is_shown_in(line))?;
        let file = fs::metadata(format!("/proc/{pid}/fd/{descriptor}")).ok()?;
        ((file.dev(), file.ino()) == (self.device, self.inode)).then_some(())
    }

    /// Such as `lock: 1: OFDLCK ADVISORY  WRITE -1 00:31:7281 5 5`: the device and the inode, the first and the last byte.
    fn is_shown_in(self, line: &str) -> bool {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let ["lock:", _, "OFDLCK", .., place, first, last] = words[..] else {
            return false;
        };
        let inode = place
            .rsplit(':')
            .next()
            .and_then(|inode| inode.parse().ok());
        inode == Some(self.inode) && [first, last].map(str::parse) == [Ok(self.byte), Ok(self.byte)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_known_by_its_file_and_its_byte() {
        let line = "lock:\t1: OFDLCK ADVISORY  WRITE -1 00:31:7281 5 5";
        let lock = |inode, byte| HeldLock {
            device: 0,
            inode,
            byte,
        };
        for (inode, byte, is_shown) in [(7281, 5, true), (7282, 5, false), (7281, 1, false)] {
            assert_eq!(lock(inode, byte).is_shown_in(line), is_shown);
        }
        for other in [
            "",
            "flags:\t02100002",
            "lock:\t1: POSIX  ADVISORY  WRITE 17 00:31:7281 5 5",
            "lock:\t1: OFDLCK ADVISORY  WRITE -1 00:31:7281 5 EOF",
            "lock:",
        ] {
            assert!(!lock(7281, 5).is_shown_in(other), "{other}");
        }
    }
}
