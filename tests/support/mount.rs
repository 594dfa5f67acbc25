//! Filesystems so small that they fill up.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A small filesystem of its own, for as long as this lives.
#[derive(Debug)]
pub struct Mount(PathBuf);

impl Mount {
    /// Nothing if this user may not mount.
    pub fn tmpfs(directory: &Path, bytes: &str) -> Option<Self> {
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "none"])
            .arg(directory)
            .status();
        status
            .is_ok_and(|status| status.success())
            .then(|| Self(directory.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Fills whatever is left, in pieces that get smaller.
pub fn fill(ballast: &Path) {
    let mut file = std::fs::File::create(ballast).unwrap();
    for piece in [64 << 10, 4 << 10, 1] {
        while std::io::Write::write_all(&mut file, &vec![1; piece]).is_ok() {}
    }
}
