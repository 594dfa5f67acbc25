//! One page of a file that all its users map.

#![expect(
    unsafe_code,
    reason = "a shared mapping is memory that other processes change"
)]

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// The page begins here in the file: what stands before it is the lock file's own.
const OFFSET: u64 = 4_096;
const BYTES: usize = 4_096;
const WORDS: usize = BYTES / size_of::<AtomicU32>();

/// A page of words that processes share.
#[derive(Debug)]
pub(super) struct WakePage(NonNull<[AtomicU32; WORDS]>);

// SAFETY: the page consists of atomics and stays mapped until the value is dropped.
unsafe impl Send for WakePage {}
// SAFETY: as above.
unsafe impl Sync for WakePage {}

impl WakePage {
    /// Maps the page, and makes the file long enough for it. A file that is cut short by somebody else
    /// afterwards kills who touches the page (`SIGBUS`), as it does with SQLite's own shared memory.
    pub(super) fn map(file: &File) -> io::Result<Self> {
        let end = OFFSET + BYTES as u64;
        if file.metadata()?.len() < end {
            file.set_len(end)?;
        }
        // SAFETY: a new mapping, of a range that the file has; the kernel chooses where.
        let page = unsafe {
            mmap(
                std::ptr::null_mut(),
                BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                OFFSET,
            )
        }?;
        NonNull::new(page.cast())
            .map(Self)
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))
    }

    pub(super) fn words(&self) -> &[AtomicU32; WORDS] {
        // SAFETY: mapped for as long as `self` lives, aligned to a page, and valid as atomics whatever it holds.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for WakePage {
    fn drop(&mut self) {
        // SAFETY: this mapping, and nobody has a reference into it any more.
        let unmapped = unsafe { munmap(self.0.as_ptr().cast(), BYTES) };
        if let Err(error) = unmapped {
            tracing::debug!(%error, "a page stays mapped");
        }
    }
}
