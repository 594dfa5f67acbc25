//! What keeps permits alive beyond the process that they were granted to.

use std::os::fd::OwnedFd;

use super::Limiter;
use crate::error::Error;

impl Limiter {
    /// Lets slots outlive this process, for as long as a program that it starts goes on: a descriptor that a child inherits,
    /// so that what this process holds does not come back before the last process has ended that has it open. Only on Linux.
    ///
    /// What a process has booked, waits for or holds comes back when it ends, however it ends. Who holds a slot for a
    /// program that it has started would let somebody else in beside that program if it were killed by itself. With a lifeline
    /// in hand while it is started, the slot stays taken until the program has ended, too.
    ///
    /// - It is inherited through `exec`: whatever this process starts while the lifeline is open keeps it, in other threads,
    ///   too. Drop it as soon as the program was started: the copy in there goes on.
    /// - It is all of this process that lives on, not one permit: what is granted later in the same process, and its places
    ///   in line, as well.
    /// - What is given back explicitly (a permit that is dropped, settled or cancelled) comes back at once, whoever has the
    ///   lifeline. It keeps only what nobody has given back.
    /// - A daemon that the program leaves behind has inherited it as well, and keeps what this process holds should that be
    ///   killed. Who closes all descriptors, as daemons often do and `sudo` does, lets go of it.
    /// - It stands for what is at the path of the file now, not for permits of a file that was replaced since.
    ///
    /// Its number is large where that is possible, out of the way of the small ones that scripts use.
    ///
    /// ```
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let path = directory.path().join("limits.db");
    /// use std::process::Command;
    /// use quotalite::{Limit, Limiter};
    ///
    /// let limiter = Limiter::open(path)?;
    /// limiter.define(Limit::slots("converters", 2))?;
    /// let permit = limiter.acquire("converters")?;
    /// let lifeline = limiter.lifeline()?;
    /// let mut child = Command::new("true").spawn().expect("it can be started");
    /// drop(lifeline);
    /// // Were this process killed now, the slot would come back when the child has ended.
    /// child.wait().expect("it ends");
    /// drop(permit);
    /// # Ok::<(), quotalite::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`RequestError::NoFile`](crate::RequestError::NoFile) in memory, and whatever can happen to the file. There is nothing
    /// to inherit then.
    pub fn lifeline(&self) -> Result<OwnedFd, Error> {
        self.store.lifeline()
    }
}
