//! Which process this is, without asking the kernel each time.

#[cfg(target_os = "linux")]
pub(crate) use linux::id;
#[cfg(not(target_os = "linux"))]
pub(crate) use std::process::id;

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

    const BYTES: usize = 4_096;

    /// Where the id is kept, once there is such a page.
    static KEPT: AtomicPtr<AtomicU32> = AtomicPtr::new(ptr::null_mut());

    /// The id of this process. The kernel is asked once: asking it takes several times as long as all else that is
    /// done to hand out from a block.
    pub(crate) fn id() -> u32 {
        let mut page = KEPT.load(Ordering::Acquire);
        if page.is_null() {
            page = keep();
        }
        // SAFETY: null, or a page that stays mapped for ever, and is valid as atomics whatever it holds.
        let Some(kept) = (unsafe { page.as_ref() }) else {
            return process::id();
        };
        match kept.load(Ordering::Relaxed) {
            // In a child that was forked, the page is wiped.
            0 => {
                let pid = process::id();
                kept.store(pid, Ordering::Relaxed);
                pid
            }
            pid => pid,
        }
    }

    /// Maps the page; null if this kernel cannot wipe it (before 4.14).
    fn keep() -> *mut AtomicU32 {
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
            return ptr::null_mut();
        };
        // SAFETY: of this mapping alone, which nothing stands in yet.
        let wiped = unsafe { madvise(page, BYTES, Advice::LinuxWipeOnFork) };
        let kept = wiped.is_ok()
            && KEPT
                .compare_exchange(
                    ptr::null_mut(),
                    page.cast(),
                    Ordering::AcqRel,
                    Ordering::Acquire,
                )
                .is_ok();
        if !kept {
            // SAFETY: this mapping, which nobody has seen.
            let _: Result<(), _> = unsafe { munmap(page, BYTES) };
        }
        KEPT.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_the_one_that_the_kernel_says() {
        assert_eq!([super::id(), super::id()], [std::process::id(); 2]);
    }
}
