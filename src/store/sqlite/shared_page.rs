//! A part of the lock file that all its users map.

#[cfg(target_os = "linux")]
pub(super) use linux::SharedPage;
#[cfg(not(target_os = "linux"))]
pub(super) use portable::SharedPage;

#[cfg(target_os = "linux")]
mod linux {
    #![expect(
        unsafe_code,
        reason = "a shared mapping is memory that other processes change"
    )]

    use std::fs::File;
    use std::io;
    use std::ptr::NonNull;
    use std::sync::atomic::AtomicU32;

    use nix::errno::Errno;
    use nix::fcntl::posix_fallocate;
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

    /// It begins here in the file: what stands before it is the lock file's own.
    const OFFSET: u64 = 4_096;
    const BYTES: usize = 8_192;
    const WORDS: usize = BYTES / size_of::<AtomicU32>();

    /// So many words are on one line of a processor's cache: what is written often by some stands alone.
    const LINE: usize = 16;

    /// On which words those who wait in line for a limit sleep.
    const TICKETS: std::ops::Range<usize> = 0..1_024;
    /// On which words those sleep who wait to write.
    const SEATS: std::ops::Range<usize> = 1_024..1_536;
    const MOVES: usize = WORDS - 4 * LINE;
    const GENERATION: usize = WORDS - 3 * LINE;
    const TAKEN: usize = WORDS - 2 * LINE;
    const CALLED: usize = WORDS - LINE;

    /// Words that processes share.
    #[derive(Debug)]
    pub(in super::super) struct SharedPage(NonNull<[AtomicU32; WORDS]>);

    // SAFETY: the page consists of atomics and stays mapped until the value is dropped.
    unsafe impl Send for SharedPage {}
    // SAFETY: as above.
    unsafe impl Sync for SharedPage {}

    impl SharedPage {
        /// Maps the page, and makes the file long enough for it. A file that is cut short by somebody else
        /// afterwards kills who touches the page (`SIGBUS`), as it does with SQLite's own shared memory.
        pub(in super::super) fn map(file: &File) -> io::Result<Self> {
            // With its place on the disk: if that is full, this fails, and not who touches the page.
            let (offset, bytes) = (OFFSET.cast_signed(), BYTES.cast_signed() as i64);
            while let Err(errno) = posix_fallocate(file, offset, bytes) {
                match errno {
                    Errno::EINTR => {}
                    // Not everywhere can a file be given its place.
                    Errno::EOPNOTSUPP | Errno::EINVAL => {
                        let end = OFFSET + BYTES as u64;
                        if file.metadata()?.len() < end {
                            file.set_len(end)?;
                        }
                        break;
                    }
                    errno => return Err(errno.into()),
                }
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

        /// The word on which the ticket of that number sleeps.
        pub(in super::super) fn ticket(&self, number: i64) -> &AtomicU32 {
            let number = usize::try_from(number.unsigned_abs() % TICKETS.len() as u64).unwrap_or(0);
            &self.words()[TICKETS.start + number]
        }

        /// The word on which the one sleeps who waits to write by that number.
        pub(in super::super) fn seat(&self, number: u32) -> &AtomicU32 {
            &self.words()[SEATS.start + number as usize % SEATS.len()]
        }

        /// See [`Generation`](super::super::generation::Generation).
        pub(in super::super) fn generation(&self) -> &AtomicU32 {
            &self.words()[GENERATION]
        }

        /// See [`Moves`](crate::store::moves::Moves).
        pub(in super::super) fn moves(&self) -> &AtomicU32 {
            &self.words()[MOVES]
        }

        /// The last number that was taken by one who waits to write.
        pub(in super::super) fn taken(&self) -> &AtomicU32 {
            &self.words()[TAKEN]
        }

        /// The last number that was called.
        pub(in super::super) fn called(&self) -> &AtomicU32 {
            &self.words()[CALLED]
        }

        fn words(&self) -> &[AtomicU32; WORDS] {
            // SAFETY: mapped for as long as `self` lives, aligned to a page, and valid as atomics whatever it holds.
            unsafe { self.0.as_ref() }
        }
    }

    impl Drop for SharedPage {
        fn drop(&mut self) {
            // SAFETY: this mapping, and nobody has a reference into it any more.
            let unmapped = unsafe { munmap(self.0.as_ptr().cast(), BYTES) };
            if let Err(error) = unmapped {
                tracing::debug!(%error, "a page stays mapped");
            }
        }
    }
}

/// Nothing is shared.
#[cfg(not(target_os = "linux"))]
mod portable {
    use std::sync::atomic::AtomicU32;

    #[derive(Debug)]
    pub(in super::super) enum SharedPage {}

    impl SharedPage {
        pub(in super::super) fn generation(&self) -> &AtomicU32 {
            match *self {}
        }

        pub(in super::super) fn moves(&self) -> &AtomicU32 {
            match *self {}
        }
    }
}
