//! Who holds the lock of an owner, where that is no longer the process that took it.
//!
//! Beside each descriptor, Linux shows the locks of the open file behind it (`proc_pid_fdinfo(5)`): to whoever has inherited
//! it, too. `F_OFD_GETLK` and `/proc/locks` tell of no process.

use std::fs;
use std::path::Path;

/// The processes that hold this byte of the lock file, unless `pid` is one of them. Those that cannot be looked into, of other users
/// above all, are not found.
pub(super) fn heirs(pid: u32, inode: i64, byte: i64) -> Vec<u32> {
    let lock = HeldLock { inode, byte };
    if lock.is_held_by(pid) != Some(false) && Path::new(&format!("/proc/{pid}")).exists() {
        return Vec::new();
    }
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| lock.is_held_by(*pid) == Some(true));
    let mut pids: Vec<u32> = pids.collect();
    pids.sort_unstable();
    pids
}

#[derive(Clone, Copy)]
struct HeldLock {
    inode: i64,
    byte: i64,
}

impl HeldLock {
    /// Nothing if the process is not there, or not to be looked into.
    fn is_held_by(self, pid: u32) -> Option<bool> {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo")).ok()?;
        let mut infos = descriptors.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok());
        Some(infos.any(|info| info.lines().any(|line| self.is_shown_in(line))))
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
        for (inode, byte, is_shown) in [(7281, 5, true), (7282, 5, false), (7281, 1, false)] {
            assert_eq!(HeldLock { inode, byte }.is_shown_in(line), is_shown);
        }
        let lock = HeldLock {
            inode: 7281,
            byte: 5,
        };
        for other in [
            "",
            "flags:\t02100002",
            "lock:\t1: POSIX  ADVISORY  WRITE 17 00:31:7281 5 5",
            "lock:\t1: OFDLCK ADVISORY  WRITE -1 00:31:7281 5 EOF",
            "lock:",
        ] {
            assert!(!lock.is_shown_in(other), "{other}");
        }
    }
}
