//! What may be wrong with a file: findings, in words for people.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::clock::{Clock, SystemClock};
use crate::error::Error;
use crate::limiter::Limiter;
use crate::store::check_up;

/// A look at everything that can be wrong with a file, from its permissions to the sums in its ledgers. It changes
/// nothing, and workers go on meanwhile.
///
/// ```
/// # let directory = tempfile::tempdir().unwrap();
/// # let path = directory.path().join("limits.db");
/// use quotalite::{Checkup, FindingKind, Limit, Limiter};
///
/// Limiter::open(&path)?.define(Limit::new("mail").per_second(10))?;
/// let checkup = Checkup::of(&path)?;
/// assert!(checkup.findings().is_empty());
///
/// let checkup = Checkup::of(path.with_extension("nothing"))?;
/// let finding = &checkup.findings()[0];
/// assert_eq!(finding.kind(), FindingKind::Missing);
/// println!("{}: {}", finding.what(), finding.todo());
/// # Ok::<(), quotalite::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Checkup {
    pub(crate) file: PathBuf,
    pub(crate) findings: Vec<Finding>,
    pub(crate) checked: Vec<String>,
}

impl Checkup {
    /// Looks at the file at this path.
    ///
    /// # Errors
    /// [`Error::OldSqlite`], [`Error::Clock`], [`Error::Forked`], or [`Error::Busy`] if somebody keeps the file locked.
    /// Whatever else is wrong with the file is a finding.
    pub fn of(path: impl AsRef<Path>) -> Result<Self, Error> {
        let clock = SystemClock::new().map_err(|source| Error::Clock { source })?;
        Self::of_with(path, clock)
    }

    /// Looks at the file at this path, which is used on this clock: for tests.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub fn of_with(path: impl AsRef<Path>, clock: impl Clock) -> Result<Self, Error> {
        check_up(path.as_ref(), Box::new(clock))
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// What was found, the worst first.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// What was looked at and is well, in a few words each.
    #[must_use]
    pub fn checked(&self) -> &[String] {
        &self.checked
    }

    /// Mends what can be mended beside workers that live: gives back what the dead held, deletes rows that belong to nothing,
    /// removes what has expired, copies and cuts the WAL, and gives the files beside the database its permissions.
    /// What was mended is not found any more by the next checkup.
    ///
    /// # Errors
    /// Whatever can happen to the file; nothing is touched if one of the findings says that it is damaged, or not ours to
    /// change ([`Finding::forbids_mending`]): then this does nothing.
    pub fn mend(&self) -> Result<(), Error> {
        if self.findings.is_empty() || self.findings.iter().any(Finding::forbids_mending) {
            return Ok(());
        }
        crate::store::mend_permissions(&self.file)?;
        Limiter::builder(&self.file).create(false).open()?.mend()
    }
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Limits do not hold, or cannot be used.
    Fault,
    /// Something may go wrong.
    Warning,
    /// All is well; it is good to know.
    Note,
}

impl Severity {
    /// In a word: `fault`, `warning` or `note`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fault => "fault",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Something that a [`Checkup`] has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub(crate) kind: FindingKind,
    pub(crate) subject: String,
    pub(crate) what: String,
}

impl Finding {
    /// What it is.
    #[must_use]
    pub const fn kind(&self) -> FindingKind {
        self.kind
    }

    /// How bad it is.
    #[must_use]
    pub const fn severity(&self) -> Severity {
        self.kind.severity()
    }

    /// What it concerns: a key, a path, a table, or a process.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// What is the case.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.what
    }

    /// Why it matters.
    #[must_use]
    pub const fn why(&self) -> &'static str {
        self.kind.texts().1
    }

    /// What to do about it.
    #[must_use]
    pub const fn todo(&self) -> &'static str {
        self.kind.texts().2
    }

    /// Whether a file with this finding is not touched by [`Checkup::mend`].
    #[must_use]
    pub const fn forbids_mending(&self) -> bool {
        matches!(
            self.kind,
            FindingKind::Missing
                | FindingKind::NotAFile
                | FindingKind::Filesystem
                | FindingKind::Unreadable
                | FindingKind::Foreign
                | FindingKind::Empty
                | FindingKind::OlderSchema
                | FindingKind::NewerSchema
                | FindingKind::Damaged
        )
    }
}

/// Declares the kinds, each with its name, how bad it is, why it matters and what to do about it.
macro_rules! kinds {
    ($($(#[$doc:meta])+ $kind:ident: $severity:ident, $name:literal, $why:expr, $todo:expr;)+) => {
        /// What a [`Finding`] is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum FindingKind {
            $($(#[$doc])+ $kind,)+
        }

        impl FindingKind {
            /// In a word, as programs know it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                self.texts().0
            }

            /// How bad it is.
            #[must_use]
            pub const fn severity(self) -> Severity {
                match self {
                    $(Self::$kind => Severity::$severity,)+
                }
            }

            const fn texts(self) -> (&'static str, &'static str, &'static str) {
                match self {
                    $(Self::$kind => ($name, $why, $todo),)+
                }
            }
        }
    };
}

kinds! {
    /// Nothing stands at the path.
    Missing: Fault, "missing",
        "no limit can be used without it",
        "check the path; `quotalite limits set` makes a file, `quotalite backup` has made copies if you have used it";
    /// What stands there is a symbolic link, or no file.
    NotAFile: Fault, "not_a_file",
        "a link can be planted, and leads processes to different files if it is changed; so it is not followed",
        "name the file itself";
    /// The file is on a filesystem that several machines may share.
    Filesystem: Fault, "filesystem",
        "locks do not hold there between processes: charges are lost and the file is damaged, without any error",
        "move the file, while nobody uses it, to a local disk";
    /// This user may not read it or write to it.
    Unreadable: Fault, "unreadable",
        "who cannot write to the file and to those beside it cannot use the limits",
        "run as the user that it belongs to, or change the permissions of the file and those beside it";
    /// It is no file of this library's.
    Foreign: Fault, "foreign",
        "it is another program's database, or no database at all; nothing is ever written to it",
        "name another file, or restore this one from a backup";
    /// A newer version has brought it up to date.
    NewerSchema: Fault, "newer_schema",
        "this version does not know what the newer one has written, and refuses to guess",
        "install the version that has written it";
    /// Nothing was ever written to it.
    Empty: Warning, "empty",
        "no limit can be used without a definition; whoever makes one makes it a database of limits",
        "check the path; `quotalite limits set KEY RATES` defines a limit in it";
    /// It will be brought up to date by whoever opens it next.
    OlderSchema: Warning, "older_schema",
        "it has to be brought up to date before it is used; programs with the older version fail from then on, so its ledgers were not looked at",
        "make a copy with the older version, then open it with this one: any command that writes does that";
    /// SQLite finds the file damaged.
    Damaged: Fault, "damaged",
        "charges and definitions can be lost or wrong; nothing of it is mended by itself, for that can make it worse",
        "stop all who use it, copy all four files away, then restore a backup, or try `sqlite3 FILE .recover | sqlite3 NEW`";
    /// A WAL that belongs to another file stands beside it.
    ForeignWal: Fault, "foreign_wal",
        "SQLite would lay the pages of a former file over this one",
        "`quotalite doctor --fix`, or any program that opens the file with this library, removes it. No other may open the file before";
    /// Others may write to it.
    WorldWritable: Warning, "world_writable",
        "any user of this machine can change limits and what is charged, or cut a file short under those who use it",
        "`chmod o-w` the file and those beside it";
    /// Others may read it.
    WorldReadable: Warning, "world_readable",
        "another user who merely reads it leaves files of his own beside it, and then its owner cannot write any more",
        "`chmod o-r` the file and those beside it";
    /// Others may replace files in its directory.
    OpenDirectory: Warning, "open_directory",
        "any user of this machine can remove the file or put another in its place",
        "`chmod o-w` the directory, or `chmod +t` it, or move the file";
    /// A file beside it belongs to somebody else.
    ForeignSidecar: Fault, "foreign_sidecar",
        "the database's owner may not be able to write to it, and nobody else can use the limits then",
        "stop all who use the file, and `chown` those beside it as the database is";
    /// A file beside it has other permissions.
    SidecarMode: Warning, "sidecar_mode",
        "who may use the database may not be able to use what belongs to it",
        "`quotalite doctor --fix`, or `chmod` it as the database is";
    /// It is not set up as this library does it.
    Setup: Warning, "setup",
        "it works, but slower than it could, or without ever becoming smaller",
        "`quotalite backup`, and put the copy in its place while nobody uses it";
    /// A definition cannot be read.
    BadDefinition: Fault, "bad_definition",
        "whoever asks for this limit gets an error",
        "restore a backup; or delete its row of `limit_definition` with `sqlite3` while nobody uses the file, and define it anew";
    /// This program cannot read a definition that others can.
    UnknownZone: Warning, "unknown_zone",
        "programs like this one, which do not know the time zone, cannot use the limit",
        "build them with the feature `calendar` and a current time zone database";
    /// The totals of a ledger are not the sums of its amounts.
    WrongTotals: Fault, "wrong_totals",
        "how much is used is read from the totals: more or less than the limit may be admitted",
        "`quotalite reset KEY` begins the ledger anew; report it: this must not happen";
    /// A charge is of less than nothing.
    WrongAmount: Fault, "wrong_amount",
        "a negative charge lets more than the limit through",
        "`quotalite reset KEY` begins the ledger anew; somebody may have edited the file";
    /// A window that ends now or later holds more than its capacity.
    WindowOver: Fault, "window_over",
        "more was admitted, or is booked, than the limit allows",
        "look for programs that write to the file without this library, or with a clock of their own; then report it";
    /// More slots are held than there are.
    SlotsOver: Fault, "slots_over",
        "more run at once than the limit allows",
        "look for programs that write to the file without this library; then report it";
    /// Permits, tickets or bookings name an owner that is not there.
    NoOwner: Fault, "no_owner",
        "nobody gives back what they hold, so it stays taken until a timeout, or for ever",
        "`quotalite doctor --fix` removes them";
    /// Rows that belong to nothing.
    Orphans: Warning, "orphans",
        "they take room, and may be counted when a number is given out again",
        "`quotalite doctor --fix` removes them";
    /// A process holds something by a lock that nobody can see.
    UnseenOwner: Warning, "unseen_owner",
        "the lock file was removed or replaced while the process lived; it is taken to be alive until the next boot, so what it holds does not come back",
        "end that process if it still lives; `quotalite reset KEY` frees the slots that it holds, and `quotalite cancel ID` a permit that has an id. Never remove the files beside the database";
    /// The WAL is long.
    LongWal: Warning, "long_wal",
        "it takes room and makes reading slower; somebody has been reading for a long time, or was killed before it was copied",
        "end programs that keep a read transaction open on the file; `quotalite doctor --fix` copies and cuts it";
    /// The clock of the file is far from the wall clock.
    ClockApart: Note, "clock_apart",
        "the wall clock was set since the file was made, or the machine restored; limits go on by the time that has passed, whatever the wall clock says. Only calendars follow it",
        "nothing, if the wall clock is right";
    /// A process is dead, and what it held waits to come back.
    DeadOwner: Note, "dead_owner",
        "it comes back when somebody needs it, and not before",
        "nothing; `quotalite doctor --fix` gives it back now";
    /// Permits whose time has passed long ago are still there.
    ExpiredPermits: Note, "expired_permits",
        "they count for nothing, and are removed in passing when somebody takes permits",
        "nothing; `quotalite doctor --fix` removes them now";
    /// More is in use than a definition allows that came later.
    Decreasing: Note, "decreasing",
        "the limit was lowered, or taken over by another definition, while it was in use: nothing is taken back, and nobody is admitted until it fits",
        "nothing";
    /// More was used than was asked for, and the limit charges that.
    Overcharged: Note, "overcharged",
        "permits were settled above their estimates, and the limit says `overage = charge`",
        "nothing; better estimates keep windows within their capacity";
    /// Much of the file is free.
    FreePages: Note, "free_pages",
        "the file is larger than it needs to be",
        "nothing; `quotalite compact` gives the room back now";
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
