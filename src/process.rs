//! Which process this is. The C library asks the kernel each time, and a call of this crate needs to know it several
//! times, because a child that was forked must not go on with what is its parent's.

#[cfg(target_os = "linux")]
pub(crate) use linux::id;
#[cfg(not(target_os = "linux"))]
pub(crate) use std::process::id;

#[cfg(target_os = "linux")]
mod linux {
    #![expect(
        unsafe_code,
        reason = "memory that the kernel clears in a forked child has to be asked for"
    )]

    use std::io;
    use std::ptr::null_mut;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

    /// The id of this process.
    pub(crate) fn id() -> u32 {
        static REMEMBERED: OnceLock<Option<&'static AtomicU32>> = OnceLock::new();
        let Some(remembered) = REMEMBERED.get_or_init(|| word_cleared_by_fork().ok()) else {
            return std::process::id();
        };
        match remembered.load(Ordering::Relaxed) {
            0 => {
                let id = std::process::id();
                remembered.store(id, Ordering::Relaxed);
                id
            }
            id => id,
        }
    }

    /// A word that is zero, and zero again in each child that is forked: see `MADV_WIPEONFORK` in `madvise(2)`.
    fn word_cleared_by_fork() -> io::Result<&'static AtomicU32> {
        const BYTES: usize = 4_096;
        // SAFETY: a new mapping of memory that nothing else uses; the kernel chooses where.
        let page = unsafe {
            mmap_anonymous(
                null_mut(),
                BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        // SAFETY: all of the mapping above, to which there are no references yet.
        if let Err(error) = unsafe { madvise(page, BYTES, Advice::LinuxWipeOnFork) } {
            // SAFETY: as above.
            let _ = unsafe { munmap(page, BYTES) };
            return Err(error.into());
        }
        // SAFETY: the mapping stays for as long as the process, is aligned to a page, and whatever it holds is valid
        // for an atomic.
        Ok(unsafe { &*page.cast::<AtomicU32>() })
    }

    #[cfg(test)]
    mod tests {
        #[test]
        fn it_is_the_id_that_the_kernel_tells() {
            assert_eq!(super::id(), std::process::id());
            assert_eq!(super::id(), std::process::id());
        }
    }
}
