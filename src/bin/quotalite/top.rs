//! A live view of how limits stand: `top`.

mod detail;
mod list;
mod state;
mod view;

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use crossterm::event::{self, Event, KeyEventKind};
use crossterm::{cursor, execute};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use quotalite::{Error, Inspector};

use self::detail::Detail;
use self::state::{Seen, State, Then};
use self::view::Palette;
use crate::disposition::end_by;
use crate::shell::{Code, Failure, Shell};
use crate::status::Status;

/// A live view: sort, filter, and look into a limit
///
/// It only reads, once a second. With more than 1000 keys that match, it shows the first of them.
///
/// Keys: arrows, `PageUp`, `PageDown`, Home and End select a limit, and scroll what is looked into; Enter looks into a limit, and
/// Esc comes back; `/` filters by a part of the key; `s` sorts by key, by what is used, by who waits; `p` stands still; `?` tells the keys; `q` quits.
#[derive(Args, Debug)]
pub(crate) struct TopArgs {
    /// Only keys that match: `*` is one or more characters
    #[arg(default_value = "*", hide_default_value = true)]
    pattern: String,
    /// How long to wait before the next look
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = crate::ask::duration)]
    every: Duration,
}

/// For how long a terminal is waited for that is to be put back.
const RESTORING: Duration = Duration::from_millis(500);

/// More than anybody looks through, and few enough to be read at once.
const MOST: usize = 1_000;

/// However often is asked for: a look takes some milliseconds with many keys.
const SHORTEST: Duration = Duration::from_millis(50);

pub(crate) fn top(shell: &Shell, args: &TopArgs) -> Result<Code, Failure> {
    if shell.json {
        return Err(Failure::misused("`top` is for people").hint("`status --json` is for programs"));
    }
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() || is_dumb {
        return Err(
            Failure::misused("`top` needs a terminal").hint("`quotalite status` needs none")
        );
    }
    let inspector = shell.inspector()?;
    let palette = match anstream::AutoStream::choice(&io::stdout()) {
        anstream::ColorChoice::Never => Palette::plain(),
        _ => Palette::coloured(),
    };
    let mut state = State::new(inspector.file().display().to_string());
    restore_at_the_end().map_err(|error| Failure::failed(format_args!("signals: {error}")))?;
    let mut terminal = ratatui::try_init().map_err(on_the_terminal)?;
    let result = show(&mut terminal, &inspector, args, &mut state, palette);
    let restored = ratatui::try_restore().map_err(on_the_terminal);
    if restored.is_err() {
        // It has hung up. Dropping it would say so on that very terminal, and panic.
        std::mem::forget(terminal);
    }
    result?;
    restored?;
    Ok(Code::Done)
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` gives")]
fn on_the_terminal(error: io::Error) -> Failure {
    Failure::failed(format_args!("the terminal: {error}"))
}

/// A signal that ends this process is taken by a thread that puts the terminal back first. A panic does so by itself.
fn restore_at_the_end() -> nix::Result<()> {
    let ends: SigSet = [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT]
        .into_iter()
        .collect();
    ends.thread_block()?;
    thread::spawn(move || {
        if let Ok(signal) = ends.wait() {
            let (tell, is_restored) = channel();
            thread::spawn(move || {
                // It may have hung up. Otherwise it would have been told to show its cursor when it is dropped, which it is not.
                let _ = ratatui::try_restore();
                let _ = execute!(io::stdout(), cursor::Show);
                let _ = tell.send(());
            });
            // One that takes nothing any more holds up whoever writes to it.
            let _ = is_restored.recv_timeout(RESTORING);
            end_by(signal);
        }
    });
    Ok(())
}

fn show(
    terminal: &mut ratatui::DefaultTerminal,
    inspector: &Inspector,
    args: &TopArgs,
    state: &mut State,
    palette: Palette,
) -> Result<(), Failure> {
    let mut looks_at = Instant::now();
    let mut is_drawn = false;
    loop {
        if Instant::now() >= looks_at {
            if !state.is_still() {
                let seen = look(inspector, args, state.opened());
                state.saw(seen.map_err(|error| Failure::from(error).message));
            }
            looks_at = Instant::now() + args.every.max(SHORTEST);
            is_drawn = false;
        }
        if !is_drawn {
            terminal
                .draw(|frame| view::draw(frame, state, palette))
                .map_err(on_the_terminal)?;
            is_drawn = true;
        }
        let left = looks_at.saturating_duration_since(Instant::now());
        if has_hung_up().map_err(on_the_terminal)? {
            let gone = io::Error::from(io::ErrorKind::UnexpectedEof);
            return Err(on_the_terminal(gone));
        }
        // Without any time, it would not even look.
        let left = left.clamp(Duration::from_millis(1), SHORTEST);
        if !event::poll(left).map_err(on_the_terminal)? {
            continue;
        }
        // A key, or another size.
        is_drawn = false;
        let Event::Key(key) = event::read().map_err(on_the_terminal)? else {
            continue;
        };
        if key.kind == KeyEventKind::Release {
            continue;
        }
        match state.press(key) {
            Then::GoOn => {}
            Then::LookAgain => looks_at = Instant::now(),
            Then::Quit => return Ok(()),
        }
    }
}

/// Asked for events of a terminal that has hung up, crossterm would read its end again and again until the time is over.
fn has_hung_up() -> io::Result<bool> {
    let keyboard = io::stdin();
    let mut polled = [PollFd::new(keyboard.as_fd(), PollFlags::empty())];
    match poll(&mut polled, PollTimeout::ZERO) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
    Ok(polled[0]
        .revents()
        .is_some_and(|events| events.intersects(gone)))
}

/// One look at the file, as it is at one moment.
fn look(inspector: &Inspector, args: &TopArgs, opened: Option<&str>) -> Result<Seen, Error> {
    let mut seen = inspector.look(|look| {
        let status = Status::read(look, &args.pattern, MOST)?;
        let detail = match opened {
            // It may be gone by now: then there is nothing to look into.
            Some(key) => match Detail::read(look, key) {
                Err(Error::UnknownLimit { .. }) => None,
                detail => Some(detail?),
            },
            None => None,
        };
        Ok(Seen { status, detail })
    })?;
    if let Some(detail) = &mut seen.detail {
        detail.find_heirs(inspector);
    }
    Ok(seen)
}
