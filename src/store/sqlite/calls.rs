//! A call: the session it uses, the lock it waits for, and the transaction it runs.

use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::sync::{Arc, RwLockWriteGuard};
use std::time::Duration;

use super::acquire::glance;
use super::acts::{Act, Alone, Borrowed, tried};
use super::checkpoints::{Due, TIME_TO_COPY};
use super::connection::{Deadline, waiting_until};
use super::desk::{Came, Lead, Waited};
use super::dropped::Dropped;
use super::joined::check_not_within;
use super::refusals::{Hint, Known, real_time};
use super::session::{Opening, Session, lock_until, locked_until};
use super::transaction::{Access, Transaction};
use super::{SHORTEST_LOCK_WAIT, SqliteStore, State};
use crate::clock::{Timestamp, elapsed_at};
use crate::error::Error;
use crate::plan::{Latest, Patience, Plan};
use crate::store::{Claim, Outcome};

impl SqliteStore {
    /// The open session, opened anew if the former one had to be left, or belongs to the process that
    /// this one was forked from.
    pub(super) fn session(&self, deadline: Deadline) -> Result<Arc<Session>, Error> {
        if let Some(session) = self.open_session() {
            return Ok(session);
        }
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

    /// What is known of a request from before, without a look at the file.
    pub(super) fn hint(&self, plan: &Plan<'_>) -> Hint {
        let Ok(state) = self.state.try_read() else {
            return Hint::Nothing;
        };
        match &state.session {
            Some(session) if session.is_ours() && !session.put_off.any() => {
                let clock = &*self.options.clock;
                session.refusals.hint(plan, &session.generation, clock)
            }
            _ => Hint::Nothing,
        }
    }

    /// The session, if it is open and nobody is opening another.
    pub(super) fn open_session(&self) -> Option<Arc<Session>> {
        let state = self.state.try_read().ok()?;
        let session = state.session.as_ref()?;
        session.is_ours().then(|| Arc::clone(session))
    }

    /// The state, or an error if another thread keeps it: because that thread waits for a lock itself, or
    /// because there was one when this process was forked, and here there is none.
    pub(super) fn lock_state_until(
        &self,
        deadline: Deadline,
    ) -> Result<RwLockWriteGuard<'_, State>, Error> {
        locked_until(|| self.state.try_write(), deadline.at).ok_or_else(|| {
            if self.process == crate::process::mark() {
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
        let lead = match access {
            Access::Read => None,
            Access::Look | Access::Write => Some(self.lead(session, access, deadline)?),
        };
        let result = self.transact_led(session, access, deadline, act);
        if access == Access::Write {
            self.tend_wal(session, lead, deadline);
        }
        result
    }

    /// Copies the WAL if it is long, after everybody has got an answer.
    fn tend_wal(&self, session: &Session, lead: Option<Lead<'_>>, deadline: Deadline) {
        match session.checkpoints.due() {
            Due::Nothing => {}
            Due::Copy => {
                // Others of this process go on writing.
                drop(lead);
                self.copy_wal(session);
            }
            Due::StartAnew => {
                if let Some(_call) = session.call()
                    && let Ok(link) = session.link(Access::Write, &self.place, deadline)
                {
                    let connection = &link.connection;
                    session.checkpoints.start_anew(connection, &session.watch);
                }
            }
        }
    }

    fn copy_wal(&self, session: &Session) {
        // Whoever copies has what it came for: it is not to wait for those who read.
        let deadline = Deadline::after(TIME_TO_COPY);
        if let Some(_call) = session.call()
            && let Ok(link) = session.link(Access::Read, &self.place, deadline)
        {
            session.checkpoints.copy(&link.connection, &session.watch);
        }
    }

    /// Copies the WAL where its caller will not go on at once, whatever came of its request.
    pub(super) fn use_time_of(&self, session: &Session, outcome: &Outcome) {
        let has_time = match outcome {
            Outcome::Admitted { claim, now } => {
                claim.at.saturating_duration_since(*now) >= TIME_TO_COPY
            }
            Outcome::Refused { denial, .. } => denial
                .retry_after()
                .is_some_and(|after| after >= TIME_TO_COPY),
            Outcome::Queued(_) => false,
        };
        if has_time && session.checkpoints.is_worth_copying() {
            self.copy_wal(session);
        }
    }

    /// Reads, by whatever connection is free for it.
    pub(super) fn look<T>(
        &self,
        session: &Session,
        deadline: Deadline,
        act: impl FnOnce(&mut Transaction<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let lead = session.desk.try_lead();
        let access = lead.as_ref().map_or(Access::Read, |_| Access::Look);
        self.transact_led(session, access, deadline, act)
    }

    /// Refuses a request that the committed state refuses already, without the write lock, and remembers that.
    pub(super) fn glance(
        &self,
        session: &Session,
        plan: &Plan<'_>,
        deadline: Deadline,
    ) -> Result<Option<Outcome>, Error> {
        let clock = &*self.options.clock;
        let since = real_time(clock, clock.elapsed());
        let seen = session.generation.seen();
        let glanced = self.look(session, deadline, |transaction| {
            let glanced = glance(transaction, session, plan)?;
            Ok(glanced.map(|glanced| (glanced, *transaction.timeline())))
        })?;
        let Some((glanced, timeline)) = glanced else {
            return Ok(None);
        };
        let outcome = glanced.outcome;
        if let Some(seen) = seen.filter(|seen| session.generation.seen() == Some(*seen))
            && !glanced.changes_unwritten
            && let Outcome::Refused { denial, .. } = &outcome
        {
            let known = Known {
                denial: denial.clone(),
                timeline,
                goes_by_wall: glanced.goes_by_wall,
                seen,
                since,
            };
            session.refusals.know(plan, known);
        }
        Ok(Some(outcome))
    }

    /// Waits until this thread may use the connection that writes, for something that no other can do for it.
    pub(super) fn lead<'s>(
        &self,
        session: &'s Session,
        access: Access,
        deadline: Deadline,
    ) -> Result<Lead<'s>, Error> {
        if access == Access::Write {
            check_not_within(&self.place.database)?;
        }
        match session.desk.come(|| None::<Alone>, deadline) {
            Came::Leads(lead) => Ok(lead),
            Came::Waits(slip) => match session.desk.wait(&slip) {
                Waited::Leads(lead) => Ok(lead),
                Waited::Told | Waited::TooLate => Err(deadline.busy(&self.place)),
            },
        }
    }

    /// Does something in one transaction with what other threads of this process want to be done at the same moment.
    pub(super) fn together<B: Borrowed>(
        &self,
        session: &Session,
        deadline: Deadline,
        act: &B,
    ) -> Result<B::Answer, Error> {
        check_not_within(&self.place.database)?;
        let slip = match session.desk.come(|| Some(act.owned()), deadline) {
            Came::Leads(lead) => return self.lead_with(session, deadline, lead, act),
            Came::Waits(slip) => slip,
        };
        loop {
            let mut lead = match session.desk.wait(&slip) {
                Waited::Leads(lead) => lead,
                Waited::TooLate => return Err(deadline.busy(&self.place)),
                Waited::Told => match slip.told() {
                    Some(answer) => return answer,
                    None => return Err(deadline.busy(&self.place)),
                },
            };
            lead.let_others_come();
            let result = self.transact_led(session, Access::Write, deadline, |transaction| {
                lead.take(transaction);
                lead.act_for_others(transaction, session)
            });
            match result {
                Ok(()) => lead.tell_others(),
                Err(_) if lead.has_others() => self.act_for_each(session, &mut lead),
                Err(error) => {
                    if session.desk.take_away(&slip) {
                        return Err(error);
                    }
                }
            }
            self.tend_wal(session, Some(lead), deadline);
        }
    }

    /// Does something, and then what others have left slips for.
    fn lead_with<A: Act>(
        &self,
        session: &Session,
        deadline: Deadline,
        mut lead: Lead<'_>,
        act: &A,
    ) -> Result<A::Answer, Error> {
        lead.let_others_come();
        let result = self.transact_led(session, Access::Write, deadline, |transaction| {
            lead.take(transaction);
            let answer = tried(act, transaction, session)?;
            lead.act_for_others(transaction, session)?;
            Ok(answer)
        });
        let answer = match result {
            Ok(answer) => {
                lead.tell_others();
                answer
            }
            Err(_) if lead.has_others() => {
                let answer = self.transact_led(session, Access::Write, deadline, |transaction| {
                    act.act(transaction, session)
                });
                self.act_for_each(session, &mut lead);
                answer
            }
            Err(error) => return Err(error),
        };
        self.tend_wal(session, Some(lead), deadline);
        answer
    }

    /// Where a transaction for several has failed, each gets one of its own, so that an error is told to those alone
    /// whom it concerns.
    fn act_for_each(&self, session: &Session, lead: &mut Lead<'_>) {
        lead.act_for_each(|slip| {
            self.transact_led(session, Access::Write, slip.deadline(), |transaction| {
                slip.act(transaction, session)
            })
        });
    }

    /// Runs one transaction. Nobody else of this process uses the connection that writes, if it is by that.
    fn transact_led<T>(
        &self,
        session: &Session,
        access: Access,
        deadline: Deadline,
        act: impl FnOnce(&mut Transaction<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut is_stuck = false;
        let ending = Ending {
            session,
            access,
            put_off: match access {
                Access::Write => session.put_off.take(),
                Access::Read | Access::Look => Vec::new(),
            },
            is_committed: Cell::new(false),
        };
        let result = match session.call() {
            None => Err(self.place.moved()),
            Some(_call) => session
                .link(access, &self.place, deadline)
                .and_then(|mut link| {
                    let result = waiting_until(deadline.at, || {
                        let (place, clock) = (&self.place, &*self.options.clock);
                        let mut transaction =
                            Transaction::begin(&mut link, access, place, session, clock, deadline)?;
                        let offset_ns = transaction.timeline().offset_ns;
                        self.offset_ns.store(offset_ns, Ordering::Relaxed);
                        transaction.let_go_of_all(&ending.put_off, session);
                        let value = act(&mut transaction)?;
                        let is_undone = transaction.is_undone();
                        for ticket in transaction.finish()? {
                            session.wakes.wake(ticket);
                        }
                        ending.is_committed.set(!is_undone);
                        Ok(value)
                    });
                    is_stuck = link.stuck;
                    result
                }),
        };
        drop(ending);
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
        let deadline = self.deadline();
        let session = self.session(deadline)?;
        self.transact(&session, Access::Read, deadline, act)
    }

    pub(super) fn write<T>(
        &self,
        session: &Session,
        act: impl FnOnce(&mut Transaction<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.transact(session, Access::Write, self.deadline(), act)
    }

    /// Lets go of something that was dropped; later, if that cannot be done now.
    pub(super) fn let_go(&self, session: &Session, dropped: Dropped) -> Result<(), Error> {
        let result = self.together(session, self.deadline(), &dropped);
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
        let session = self.session(self.deadline())?;
        if session.number == claim.session {
            Ok(session)
        } else {
            Err(self.place.moved())
        }
    }

    pub(super) fn deadline(&self) -> Deadline {
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

/// What is to be done at the end of a transaction, whatever that is: a panic of the caller's clock, too.
struct Ending<'s> {
    session: &'s Session,
    access: Access,
    put_off: Vec<Dropped>,
    is_committed: Cell<bool>,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let (session, is_committed) = (self.session, self.is_committed.get());
        if self.access == Access::Write {
            session.crowd.leave();
            session.accepted.ended(is_committed);
            session.checkpoints.ended();
        }
        if !is_committed {
            session.put_off.push(std::mem::take(&mut self.put_off));
        }
    }
}
