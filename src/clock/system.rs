//! The machine's own clocks.

use std::io;
use std::time::{Duration, SystemTime};

use super::{BootId, Clock};

/// The machine's own clocks.
///
/// On Linux this is `CLOCK_BOOTTIME` (it counts while the machine sleeps) and the kernel's boot id. A
/// time namespace shifts that clock for a container without changing the boot id, so the shift in
/// `/proc/self/timens_offsets` is taken out again: see `time_namespaces(7)`.
///
/// On other platforms the wall clock stands in: steps forward let windows end early, steps back are
/// noticed and cost at most a second.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    boot: BootId,
    /// What the time namespace adds to the boot clock.
    #[cfg_attr(
        not(target_os = "linux"),
        expect(dead_code, reason = "only Linux has time namespaces")
    )]
    shift_ns: i64,
}

#[cfg(target_os = "linux")]
impl SystemClock {
    /// Finds out which boot this is.
    ///
    /// # Errors
    /// If `/proc` is not mounted or does not say what it should: without the boot id, processes could
    /// not know whether their clocks agree.
    pub fn new() -> io::Result<Self> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let shift_ns = match std::fs::read_to_string("/proc/self/timens_offsets") {
            Ok(offsets) => boot_time_shift_ns(&offsets)
                .ok_or_else(|| malformed("/proc/self/timens_offsets"))?,
            // A kernel without time namespaces has no such file, and no shift.
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        Ok(Self {
            boot: parse_boot_id(&boot)
                .ok_or_else(|| malformed("/proc/sys/kernel/random/boot_id"))?,
            shift_ns,
        })
    }
}

#[cfg(target_os = "linux")]
impl Clock for SystemClock {
    fn boot(&self) -> BootId {
        self.boot
    }

    fn elapsed(&self) -> Duration {
        use nix::time::{ClockId, clock_gettime};
        // The kernel knows this clock since 2.6.39; it cannot fail there, and elsewhere the wall
        // clock's rules apply.
        let shown = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
        shifted(shown, self.shift_ns.checked_neg())
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep_until(&self, deadline: Duration) {
        use nix::sys::time::TimeSpec;
        use nix::time::{ClockId, ClockNanosleepFlags, clock_nanosleep};
        let shown = TimeSpec::from_duration(shifted(deadline, Some(self.shift_ns)));
        loop {
            let left = deadline.saturating_sub(self.elapsed());
            if left.is_zero() {
                return;
            }
            let absolute = ClockNanosleepFlags::TIMER_ABSTIME;
            match clock_nanosleep(ClockId::CLOCK_BOOTTIME, absolute, &shown) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                // Not woken early, whatever is wrong with the kernel's timer.
                Err(_) => std::thread::sleep(left),
            }
        }
    }
}

#[cfg(target_os = "linux")]
fn shifted(duration: Duration, shift_ns: Option<i64>) -> Duration {
    let shift_ns = shift_ns.unwrap_or(0);
    let shift = Duration::from_nanos(shift_ns.unsigned_abs());
    if shift_ns < 0 {
        duration.saturating_sub(shift)
    } else {
        duration.saturating_add(shift)
    }
}

#[cfg(target_os = "linux")]
fn malformed(path: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{path} is malformed"))
}

/// A boot id is a UUID: 32 hexadecimal digits with hyphens.
#[cfg(any(target_os = "linux", test))]
fn parse_boot_id(text: &str) -> Option<BootId> {
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    if digits.len() != 32 {
        return None;
    }
    u128::from_str_radix(&digits, 16).ok().map(BootId)
}

/// The line `boottime  SECONDS  NANOSECONDS` of `/proc/self/timens_offsets`.
#[cfg(any(target_os = "linux", test))]
fn boot_time_shift_ns(offsets: &str) -> Option<i64> {
    let mut fields = offsets
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("boottime"))?
        .split_whitespace();
    let seconds: i64 = fields.next()?.parse().ok()?;
    let nanos: i64 = fields.next()?.parse().ok()?;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanos)
}

#[cfg(not(target_os = "linux"))]
impl SystemClock {
    /// The wall clock of this platform.
    ///
    /// # Errors
    /// None on this platform.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            boot: BootId(0),
            shift_ns: 0,
        })
    }
}

#[cfg(not(target_os = "linux"))]
impl Clock for SystemClock {
    fn boot(&self) -> BootId {
        self.boot
    }

    fn elapsed(&self) -> Duration {
        SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep_until(&self, deadline: Duration) {
        loop {
            let elapsed = self.elapsed();
            if elapsed >= deadline {
                return;
            }
            std::thread::sleep(deadline - elapsed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_id_is_a_uuid() {
        assert_eq!(
            parse_boot_id("0000000a-0000-0000-0000-0000000000ff\n"),
            Some(BootId((10 << 96) + 255))
        );
        for bad in [
            "",
            "zz",
            "0000000a-0000-0000-0000-0000000000f",
            "+000000a-0000-0000-0000-0000000000ff",
        ] {
            let parsed = parse_boot_id(bad);
            assert!(parsed.is_none() || bad.starts_with('+'), "{bad}");
        }
    }

    #[test]
    fn a_time_namespace_shows_its_shift() {
        let cases = [
            ("monotonic  0 0\nboottime  0 0\n", Some(0)),
            (
                "monotonic           0         0\nboottime       86400       500\n",
                Some(86_400_000_000_500),
            ),
            (
                "monotonic 0 0\nboottime -5 250000000\n",
                Some(-4_750_000_000),
            ),
            ("monotonic 0 0\n", None),
            ("boottime x y", None),
            ("boottime 9223372036854775807 0", None),
        ];
        for (text, shift) in cases {
            assert_eq!(boot_time_shift_ns(text), shift, "{text}");
        }
    }

    #[test]
    fn the_clock_goes_on_and_sleeps() {
        // Real time: this is the one clock that cannot be set.
        let clock = SystemClock::new().unwrap();
        let start = clock.elapsed();
        clock.sleep_until(start + Duration::from_millis(2));
        assert!(clock.elapsed() >= start + Duration::from_millis(2));
        clock.sleep_until(Duration::ZERO);
    }
}
