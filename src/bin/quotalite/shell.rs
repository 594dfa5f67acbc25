//! What all commands have in common: the file, how they print, and how they end.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Args, ValueEnum, ValueHint};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use quotalite::{Error, Inspector, Limiter, LimitsFileError, RequestError};
use serde::Serialize;

use crate::disposition::end_by;
use crate::show::{self, Plain};

/// How a command ends. The numbers are part of what scripts rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    Done,
    /// A check has found something.
    Found,
    /// The command line is wrong, or names what is not there.
    Misused,
    /// Not admitted now.
    Refused,
    /// Not admitted in time.
    TooLate,
    /// The file cannot be used, or something else went wrong.
    Failed,
    /// What a command that was run ended with.
    Child(u8),
    /// The signal that has ended a command that was run.
    Signal(i32),
}

/// What `--help` says about them.
pub(crate) const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 a check has found something; 64 misused: wrong arguments, an unknown limit, an amount that never \
fits; 75 refused for now; 124 not admitted in time; 125 the file cannot be used. `run` passes on the code of its \
command, 126 if that cannot be executed, 127 if it is not found, and is ended by the signal that has ended it, which shells \
call 128 + n.";

impl Code {
    /// Ends this process if a signal is to end it.
    pub(crate) fn end(self) -> ExitCode {
        if let Self::Signal(number) = self
            && let Ok(signal) = Signal::try_from(number)
        {
            end_by(signal);
        }
        // Signals for real time have no names, and can only be told of.
        ExitCode::from(self.number())
    }

    /// As shells say it.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Found => 1,
            Self::Misused => 64,
            Self::Refused => 75,
            Self::TooLate => 124,
            Self::Failed => 125,
            Self::Child(code) => code,
            Self::Signal(number) => u8::try_from(number.saturating_add(128)).unwrap_or(u8::MAX),
        }
    }
}

/// Why a command could not do what it was to do.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) hint: Option<String>,
}

impl Failure {
    pub(crate) fn misused(message: impl fmt::Display) -> Self {
        Self::of(Code::Misused, message)
    }

    pub(crate) fn failed(message: impl fmt::Display) -> Self {
        Self::of(Code::Failed, message)
    }

    pub(crate) fn of(code: Code, message: impl fmt::Display) -> Self {
        Self {
            code,
            message: message.to_string(),
            hint: None,
        }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let code = match error {
            Error::Request(RequestError::Ended) => Code::Found,
            Error::Limit(_)
            | Error::Definition { .. }
            | Error::Request(_)
            | Error::UnknownLimit { .. }
            | Error::NeverFits { .. }
            | Error::IdTaken { .. }
            | Error::Conflict { .. }
            | Error::OtherKind { .. }
            | Error::Finer { .. }
            | Error::InUse { .. } => Code::Misused,
            Error::TooLate { .. } => Code::TooLate,
            _ => Code::Failed,
        };
        let hint = match error {
            Error::UnknownLimit { .. } => Some("`quotalite limits list` shows what is defined"),
            Error::InUse { .. } => Some("`--force` removes it all the same"),
            Error::OlderSchema { found: 0, .. } => {
                Some("nothing was ever defined in it: `quotalite limits set KEY RATES` does that")
            }
            Error::OlderSchema { .. } => {
                Some("any command that writes does that; programs with the older version then fail")
            }
            Error::NewerSchema { .. } => Some("install the version that has written it"),
            Error::Io { file, source, .. } => hint_for(file, source),
            Error::Sqlite { .. } | Error::Damaged { .. } => {
                Some("`quotalite doctor` looks at what may be wrong")
            }
            _ => None,
        };
        let failure = Self::of(code, error);
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

/// What to do about a file that cannot be opened.
fn hint_for(file: &Path, source: &io::Error) -> Option<&'static str> {
    let has_directory = file.parent().is_none_or(Path::exists);
    match source.kind() {
        io::ErrorKind::NotFound if !has_directory => {
            Some("its directory is not there: make that first, or name another with `--db`")
        }
        io::ErrorKind::NotFound if !file.exists() => Some(
            "`quotalite limits set KEY RATES` makes a file where one can be made; `--db` or QUOTALITE_DB says which",
        ),
        io::ErrorKind::PermissionDenied if has_directory && !file.exists() => {
            Some("this user may make no file in its directory")
        }
        io::ErrorKind::PermissionDenied => Some("use it as the user that it belongs to"),
        _ => None,
    }
}

impl From<LimitsFileError> for Failure {
    fn from(error: LimitsFileError) -> Self {
        match error {
            LimitsFileError::Limiter(error) => error.into(),
            error => Self::misused(error),
        }
    }
}

/// Only printing fails like this: files are named by what works with them.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            // Whoever reads has seen enough.
            return Self::of(Code::Done, "");
        }
        Self::failed(format_args!("printing: {error}"))
    }
}

#[derive(Args, Debug)]
pub(crate) struct SharedArgs {
    /// The file that the limits are in
    #[arg(long, global = true, env = "QUOTALITE_DB", value_name = "FILE", value_parser = OsStringValueParser::new().map(PathBuf::from), value_hint = ValueHint::FilePath)]
    db: Option<PathBuf>,
    /// Print JSON, in the shapes that docs/cli.md describes
    #[arg(long, global = true)]
    json: bool,
    /// When to use colours
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    color: When,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum When {
    /// On a terminal, unless `NO_COLOR` is set
    Auto,
    Always,
    Never,
}

/// How this call of the program was set up.
#[derive(Debug)]
pub(crate) struct Shell {
    db: Option<PathBuf>,
    pub(crate) json: bool,
}

impl Shell {
    pub(crate) fn new(shared: SharedArgs) -> Self {
        match shared.color {
            When::Auto => {}
            When::Always => anstream::ColorChoice::Always.write_global(),
            When::Never => anstream::ColorChoice::Never.write_global(),
        }
        Self {
            // As if it were not set: a variable that is empty stands in nobody's way who needs no file.
            db: shared.db.filter(|db| !db.as_os_str().is_empty()),
            json: shared.json,
        }
    }

    /// The file.
    pub(crate) fn db(&self) -> Result<&Path, Failure> {
        self.db.as_deref().ok_or_else(|| {
            Failure::misused("which file?").hint("name it with `--db FILE`, or set QUOTALITE_DB")
        })
    }

    /// The file, to look at.
    pub(crate) fn inspector(&self) -> Result<Inspector, Failure> {
        Ok(Inspector::open(self.db()?)?)
    }

    /// The file, to change what is in it; it has to be there.
    pub(crate) fn limiter(&self) -> Result<Limiter, Failure> {
        Ok(Limiter::builder(self.db()?).create(false).open()?)
    }

    /// The file, which is made if it is not there.
    pub(crate) fn new_limiter(&self) -> Result<Limiter, Failure> {
        Ok(Limiter::open(self.db()?)?)
    }

    /// Prints one answer: as JSON if that is wanted, else as `show` writes it.
    pub(crate) fn print<T: Serialize>(
        &self,
        answer: &T,
        show: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), Failure> {
        match self.hand_over(answer, show) {
            // Whoever reads has seen enough, and the answer is what it is.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            printed => Ok(printed?),
        }
    }

    /// The same for what nobody else can tell again: that nobody reads it is an error, too.
    pub(crate) fn hand_over<T: Serialize>(
        &self,
        answer: &T,
        show: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut out = io::BufWriter::new(anstream::stdout().lock());
        let printed = if self.json {
            serde_json::to_string(answer)
                .map_err(io::Error::from)
                .and_then(|json| writeln!(out, "{}", show::escaped(json)))
        } else {
            show(&mut Plain(&mut out))
        };
        let printed = printed.and_then(|()| out.flush());
        if printed.is_err() {
            // Dropping it would try again.
            let _ = out.into_parts();
        }
        printed
    }

    /// Says something beside the answer, to people only.
    pub(crate) fn remark(&self, text: impl fmt::Display) {
        if !self.json && io::stderr().is_terminal() {
            let _ = writeln!(Plain(anstream::stderr()), "{text}");
        }
    }

    /// Says that something is not quite as was asked for.
    pub(crate) fn warn(text: impl fmt::Display) {
        // If nobody can be told, it is so all the same.
        let _ = writeln!(Plain(anstream::stderr()), "{text}");
    }

    /// Asks for a yes, unless it was given.
    pub(crate) fn confirm(question: impl fmt::Display, yes: bool) -> Result<(), Failure> {
        if yes {
            return Ok(());
        }
        let no = || Failure::misused("not done").hint("`--yes` does it without a question");
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Err(no());
        }
        write!(Plain(anstream::stderr()), "{question} [y/N] ")?;
        let mut answer = String::new();
        io::stdin().read_line(&mut answer)?;
        match answer.trim() {
            "y" | "Y" | "yes" => Ok(()),
            _ => Err(no()),
        }
    }
}

impl Failure {
    /// Says why it did not work, and ends.
    pub(crate) fn tell(&self) -> ExitCode {
        if !self.message.is_empty() {
            let red = anstyle::AnsiColor::Red.on_default().bold();
            let hint = self.hint.iter().map(|hint| format!("\n  {hint}"));
            let hint = hint.collect::<String>();
            // Where nobody can be told, the exit code says it.
            let _ = writeln!(
                Plain(anstream::stderr()),
                "{red}quotalite:{red:#} {}{hint}",
                self.message
            );
        }
        self.code.end()
    }
}

/// Sleeps for so long, unless whoever was to read what is printed goes away: then it is true at once, and there is no use in
/// going on.
pub(crate) fn reader_leaves_within(time: Duration) -> bool {
    let until = Instant::now() + time;
    let out = io::stdout();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // It counts in milliseconds, and what is cut off would be spent in turning round.
        let timeout = PollTimeout::try_from(left + Duration::from_micros(999));
        let mut pipe = [PollFd::new(out.as_fd(), PollFlags::empty())];
        let polled = poll(&mut pipe, timeout.unwrap_or(PollTimeout::MAX));
        let told = pipe[0].revents().unwrap_or(PollFlags::empty());
        if polled.is_ok() && told.intersects(PollFlags::POLLERR | PollFlags::POLLHUP) {
            return true;
        }
        if left.is_zero() {
            return false;
        }
        if !told.is_empty() || polled.is_err_and(|error| error != Errno::EINTR) {
            // It tells nothing of who reads, however often it is asked.
            thread::sleep(left);
        }
    }
}

/// What was wrong with the arguments, or the help that was asked for.
pub(crate) fn misused(error: &clap::Error) -> ExitCode {
    // If nobody reads it, there is nobody to tell.
    let _ = error.print();
    if error.kind() == ErrorKind::UnknownArgument && runs_without_dashes() {
        let _ = writeln!(
            anstream::stderr(),
            "\nThe command of `run` comes behind `--`: quotalite run --limit KEY -- COMMAND"
        );
    }
    if error.use_stderr() {
        Code::Misused.end()
    } else {
        Code::Done.end()
    }
}

fn runs_without_dashes() -> bool {
    let arguments: Vec<_> = std::env::args_os().collect();
    let has = |wanted: &str| arguments.iter().any(|argument| argument == wanted);
    has("run") && !has("--")
}
