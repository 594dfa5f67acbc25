//! What an [`Inspector`](crate::Inspector) sees: rows of the file, in the words of this crate.

use crate::clock::Timestamp;

/// A charge in the ledger of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChargeRow {
    /// Its instant. What is charged to a limit at one instant in one transaction is one row.
    pub at: Timestamp,
    /// The amount, in the limit's unit.
    pub amount: u64,
    /// What it is.
    pub kind: ChargeKind,
}

/// What a charge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChargeKind {
    /// It was admitted.
    Charged,
    /// Its instant lies ahead, and somebody waits for it.
    Booked,
    /// A process hands it out from memory until its instant.
    Block,
}

/// Who is known to have been charged at an instant. The file knows that of permits with an id, until an hour after their
/// end, and for some time of processes that had to wait; of others it does not.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpenderRow {
    /// The instant of the charge: that of a [`ChargeRow`], which may be what several have spent, also some that the file does
    /// not know.
    pub at: Timestamp,
    /// The id of the permit, if it has one.
    pub id: Option<String>,
    /// The process, if it is still known.
    pub pid: Option<u32>,
}

/// What somebody has booked of a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BookingRow {
    /// The key of the limit.
    pub key: String,
    /// For when.
    pub at: Timestamp,
    /// The amount, in the limit's unit.
    pub amount: u64,
    /// The process, by the id that it knows itself by.
    pub pid: u32,
}

/// A permit that holds slots, or has an id.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PermitRow {
    /// Its fencing number: see [`Permit::fence`](crate::Permit::fence).
    pub fence: u64,
    /// Its id, if it has one.
    pub id: Option<String>,
    /// The process that holds it, if one does.
    pub pid: Option<u32>,
    /// The same, as the file knows it: see [`Inspector::heirs`](crate::Inspector::heirs).
    pub owner: Option<OwnerId>,
    /// When it was granted, or will be if it is booked.
    pub at: Timestamp,
    /// When it ends by itself, if it does.
    pub expires: Option<Timestamp>,
    /// The keys and amounts that it holds or was charged. Empty once it has ended.
    pub takes: Vec<(String, u64)>,
    /// How it stands.
    pub state: PermitState,
}

/// How a permit stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PermitState {
    /// Its instant lies ahead.
    Booked,
    /// A process holds it.
    Held,
    /// It has outlived its process on purpose, until it is settled or times out.
    Detached,
    /// Its process has died; it can still be settled by its id.
    Abandoned,
    /// It was settled.
    Settled,
    /// It was cancelled.
    Cancelled,
    /// It timed out.
    Expired,
}

impl PermitState {
    /// As the file's view `permits` shows it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Booked => "booked",
            Self::Held => "held",
            Self::Detached => "detached",
            Self::Abandoned => "abandoned",
            Self::Settled => "settled",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    /// Whether it is open: it can be settled, or holds something.
    #[must_use]
    pub const fn is_open(self) -> bool {
        !matches!(self, Self::Settled | Self::Cancelled | Self::Expired)
    }
}

/// Who waits in line for slots.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WaiterRow {
    /// The process, if it is still known.
    pub pid: Option<u32>,
    /// Since when.
    pub since: Timestamp,
    /// Until when at the latest, if that was said.
    pub deadline: Option<Timestamp>,
    /// The keys and amounts that it waits for.
    pub takes: Vec<(String, u64)>,
}

/// A process that has booked, waits or holds something.
///
/// It lives as long as its lock is held: by itself, or by what it has left a [lifeline](crate::Limiter::lifeline) to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OwnerRow {
    /// The process, by the id that it knows itself by.
    pub pid: u32,
    /// Since when it is an owner.
    pub since: Timestamp,
    /// Whether it lives; nothing where that cannot be seen. What a dead one held comes back when somebody needs it.
    pub is_alive: Option<bool>,
    /// Which owner it is: see [`Inspector::heirs`](crate::Inspector::heirs).
    pub id: OwnerId,
}

/// An owner, as the file knows it: processes in different pid namespaces can have the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnerId {
    pub(crate) pid: u32,
    /// The lock file that says whether it lives, and the byte of it.
    pub(crate) lock_inode: i64,
    pub(crate) byte: i64,
}

impl OwnerId {
    /// The process, by the id that it knows itself by.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid
    }
}
