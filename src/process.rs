//! Which process this is, for what a forked child inherits: its own, or its parent's. The id of a process does not tell: a child
//! has its parent's in a pid namespace of its own, or once that is given out again.

/// What a process has, and none of those that it was forked from. Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark(u32);

impl Mark {
    pub(crate) const fn as_u32(self) -> u32 {
        self.0
    }
}

#[cfg(target_os = "linux")]
pub(crate) use linux::mark;

#[cfg(not(target_os = "linux"))]
pub(crate) fn mark() -> Mark {
    Mark(std::process::id())
}

#[cfg(target_os = "linux")]
mod linux {
    #![expect(
        unsafe_code,
        reason = "only a page of its own can be wiped when the process forks"
    )]

    use std::process;
    use std::ptr;
    use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

    use super::Mark;

    const BYTES: usize = 4_096;

    /// Where the mark is kept, once there is such a page.
    static KEPT: AtomicPtr<AtomicU32> = AtomicPtr::new(ptr::null_mut());

    /// The last mark that was given out, to this process or to one that it was forked from.
    static LAST: AtomicU32 = AtomicU32::new(0);

    /// The mark of this process. It is asked for with each call that is handed out from a block, and costs two loads.
    pub(crate) fn mark() -> Mark {
        let mut page = KEPT.load(Ordering::Acquire);
        if page.is_null() {
            page = keep();
        }
        if ptr::eq(page, &raw const NONE) {
            return Mark(process::id());
        }
        // SAFETY: a page that stays mapped for ever, and is valid as atomics whatever it holds.
        let kept = unsafe { &*page };
        match kept.load(Ordering::Relaxed) {
            // In a child that was forked, the page is wiped, and what was given out last is inherited.
            0 => {
                let next = LAST.fetch_add(1, Ordering::Relaxed).wrapping_add(1).max(1);
                let kept = kept.compare_exchange(0, next, Ordering::Relaxed, Ordering::Relaxed);
                // Another thread may have been faster.
                Mark(kept.err().unwrap_or(next))
            }
            mark => Mark(mark),
        }
    }

    /// Stands for a page that could not be had: a process never goes from one kind of mark to the other.
    static NONE: AtomicU32 = AtomicU32::new(0);

    /// Maps the page, once and for all. There is none if this kernel cannot wipe it (before 4.14).
    fn keep() -> *mut AtomicU32 {
        let none = (&raw const NONE).cast_mut();
        let keep = |page: *mut AtomicU32| {
            let kept =
                KEPT.compare_exchange(ptr::null_mut(), page, Ordering::AcqRel, Ordering::Acquire);
            kept.is_ok()
        };
        // SAFETY: a new mapping; the kernel chooses where.
        let mapped = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        };
        let Ok(page) = mapped else {
            keep(none);
            return KEPT.load(Ordering::Acquire);
        };
        // SAFETY: of this mapping alone, which nothing stands in yet.
        let wiped = unsafe { madvise(page, BYTES, Advice::LinuxWipeOnFork) };
        let kept = wiped.is_ok() && keep(page.cast());
        if wiped.is_err() {
            keep(none);
        }
        if !kept {
            // SAFETY: this mapping, which nobody has seen.
            let _: Result<(), _> = unsafe { munmap(page, BYTES) };
        }
        KEPT.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::mark;

    #[test]
    fn all_threads_have_the_mark_of_their_process() {
        let threads: Vec<_> = (0..8).map(|_| thread::spawn(mark)).collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), mark());
        }
        assert_ne!(mark().as_u32(), 0);
    }
}
