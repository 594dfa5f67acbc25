//! A call: the session it uses, the lock it waits for, and the transaction it runs.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use super::connection::{Deadline, waiting_until};
use super::dropped::Dropped;
use super::joined::check_not_within;
use super::session::{Opening, Session, lock_until};
use super::transaction::{Access, Transaction};
use super::{SHORTEST_LOCK_WAIT, SqliteStore, State};
use crate::clock::{Timestamp, elapsed_at};
use crate::error::Error;
use crate::plan::{Latest, Patience};
use crate::store::Claim;

impl SqliteStore {
    /// The open session, opened anew if the former one had to be left, or belongs to the process that
    /// this one was forked from.
    pub(super) fn session(&self, deadline: Deadline) -> Result<Arc<Session>, Error> {
        let mut state = self.lock_state_until(deadline)?;
        if let Some(session) = &state.session
            && session.is_ours()
        {
            return Ok(Arc::clone(session));
        }
        // Also when there is no session: those that were left are inherited as well.
        if !Session::close_inherited() {
            return Err(self.place.forked());
        }
        state.session = None;
        // Never creates: a file that was removed comes back when somebody opens it on purpose.
        if !self.place.database.exists() {
            return Err(self.place.moved());
        }
        let opening = Opening {
            create: false,
            deadline,
        };
        let session = Session::open(&self.place, &self.options, opening)?;
        state
            .left
            .retain(|left| left.is_ours() && left.owner().is_some());
        for left in &state.left {
            left.close();
        }
        state.session = Some(Arc::clone(&session));
        self.session_number.store(session.number, Ordering::Relaxed);
        Ok(session)
    }

    /// The state, or an error if another thread keeps it: because that thread waits for a lock itself, or
    /// because there was one when this process was forked, and here there is none.
    pub(super) fn lock_state_until(
        &self,
        deadline: Deadline,
    ) -> Result<MutexGuard<'_, State>, Error> {
        lock_until(&self.state, deadline.at).ok_or_else(|| {
            if self.pid == std::process::id() {
                deadline.busy(&self.place)
            } else {
                self.place.forked()
            }
        })
    }

    /// Lets go of a session that can no longer be used.
    pub(super) fn leave(&self, session: &Session, deadline: Deadline) {
        let Ok(mut state) = self.lock_state_until(deadline) else {
            return;
        };
        let open = state.session.as_ref();
        if open.is_some_and(|open| open.number == session.number) {
            let left = state.session.take();
            self.session_number.store(0, Ordering::Relaxed);
            state.left.extend(left);
        }
    }

    /// Runs one transaction, and commits if it returns a value.
    pub(super) fn transact<T>(
        &self,
        session: &Session,
        access: Access,
        deadline: Deadline,
        act: impl FnOnce(&mut Transaction<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if access == Access::Write {
            check_not_within(&self.place.database)?;
        }
        let mut is_stuck = false;
        let mut is_committed = false;
        let put_off = match access {
            Access::Write => session.put_off.take(),
            Access::Read | Access::Look => Vec::new(),
        };
        let result = match session.call() {
            None => Err(self.place.moved()),
            Some(_call) => session
                .link(access, &self.place, deadline)
                .and_then(|mut link| {
                    let result = waiting_until(deadline.at, || {
                        let (place, clock) = (&self.place, &*self.options.clock);
                        let opened = &session.watch;
                        let mut transaction =
                            Transaction::begin(&mut link, access, place, opened, clock, deadline)?;
                        let offset_ns = transaction.timeline().offset_ns;
                        self.offset_ns.store(offset_ns, Ordering::Relaxed);
                        transaction.let_go_of_all(&put_off, session);
                        let value = act(&mut transaction)?;
                        let is_undone = transaction.is_undone();
                        for ticket in transaction.finish()? {
                            session.wakes.wake(ticket);
                        }
                        is_committed = !is_undone;
                        Ok(value)
                    });
                    if access == Access::Write {
                        if result.is_err() {
                            session.accepted.put_back();
                        } else if session.is_wal_due() {
                            link.keep_wal_short(&self.place);
                        }
                    }
                    is_stuck = link.stuck;
                    result
                }),
        };
        if !is_committed {
            session.put_off.push(put_off);
        }
        // After the call has ended: whoever opens the file anew waits for that, and has the state.
        if is_stuck || matches!(result, Err(Error::Moved { .. })) {
            self.leave(session, deadline);
        }
        result
    }

    pub(super) fn read<T>(
        &self,
        act: impl FnOnce(&mut Transaction<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let deadline = self.busy_deadline();
        let session = self.session(deadline)?;
        self.transact(&session, Access::Read, deadline, act)
    }

    pub(super) fn write<T>(
        &self,
        session: &Session,
        act: impl FnOnce(&mut Transaction<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.transact(session, Access::Write, self.busy_deadline(), act)
    }

    /// Lets go of something that was dropped; later, if that cannot be done now.
    pub(super) fn let_go(&self, session: &Session, dropped: Dropped) -> Result<(), Error> {
        let result = self.write(session, |transaction| transaction.let_go(&dropped, session));
        if result.is_err() {
            session.put_off.push([dropped]);
        }
        result
    }

    /// Makes this process an owner, if it is none yet.
    pub(super) fn become_owner(&self, session: &Session, deadline: Deadline) -> Result<(), Error> {
        let _entering =
            lock_until(&session.entering, deadline.at).ok_or_else(|| deadline.busy(&self.place))?;
        if session.owner().is_some() {
            return Ok(());
        }
        let mut entered = None;
        let result = self.transact(session, Access::Write, deadline, |transaction| {
            // A good moment to see who else is gone.
            transaction.reclaim(&session.lock_file)?;
            let id = transaction.insert_owner(&session.lock_file)?;
            entered = Some(id);
            Ok(())
        });
        match (&result, entered) {
            (Ok(()), Some(id)) => session.set_owner(id),
            (Err(_), Some(id)) => {
                // Nobody has seen the row. Should this fail, the byte stays locked, and others take the
                // next id.
                let _ = session.lock_file.unlock_owner(id);
            }
            (_, None) => {}
        }
        result
    }

    /// The session in which a claim was made; an error if that was left since.
    pub(super) fn session_of(&self, claim: &Claim) -> Result<Arc<Session>, Error> {
        let session = self.session(self.busy_deadline())?;
        if session.number == claim.session {
            Ok(session)
        } else {
            Err(self.place.moved())
        }
    }

    pub(super) fn busy_deadline(&self) -> Deadline {
        Deadline::after(self.options.busy_deadline)
    }

    /// Until when a request may wait for locks: no longer than for its turn, but long enough for an answer.
    pub(super) fn lock_deadline(&self, patience: Patience) -> Deadline {
        let deadline = match patience.latest() {
            Some(Latest::UntilElapsed(deadline)) => Some(deadline),
            Some(Latest::Until(deadline)) => self.elapsed_at(deadline),
            Some(Latest::Forever) | None => None,
        };
        let left = deadline.map_or(Duration::MAX, |deadline| {
            deadline.saturating_sub(self.options.clock.elapsed())
        });
        Deadline::after(self.options.busy_deadline.min(left.max(SHORTEST_LOCK_WAIT)))
    }

    /// What the clock shows at an instant, by the last transaction of this process.
    pub(super) fn elapsed_at(&self, at: Timestamp) -> Option<Duration> {
        let offset_ns = self.offset_ns.load(Ordering::Relaxed);
        (offset_ns != i64::MIN).then(|| elapsed_at(at, offset_ns))
    }
}
