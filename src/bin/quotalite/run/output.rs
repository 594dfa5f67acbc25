//! What a command writes, passed on and looked at.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::thread::{self, JoinHandle};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::spawn::PosixSpawnFileActions;
use regex::bytes::Regex;

/// How much of a line is looked at as one.
const LONGEST_LINE: usize = 64 * 1024;

/// How much is still passed on after the command has ended: no less than a pipe can hold, and not for ever what a daemon writes
/// that has inherited it.
const MOST_AFTER_THE_END: usize = 1024 * 1024;

/// Two threads that pass on what a command writes, as it comes.
#[derive(Debug)]
pub(super) struct Output {
    threads: [JoinHandle<bool>; 2],
    /// Closed when the command has ended: a daemon that it has left behind may keep its pipes open.
    until_ended: PipeWriter,
}

/// What the command writes into. Once it was started, nobody else keeps it open.
#[derive(Debug)]
pub(super) struct Ends {
    stdout: PipeWriter,
    stderr: PipeWriter,
}

impl Ends {
    pub(super) fn attach(&self, actions: &mut PosixSpawnFileActions) -> nix::Result<()> {
        actions.add_dup2(self.stdout.as_raw_fd(), io::stdout().as_raw_fd())?;
        actions.add_dup2(self.stderr.as_raw_fd(), io::stderr().as_raw_fd())
    }
}

impl Output {
    pub(super) fn open(pattern: &Regex) -> io::Result<(Self, Ends)> {
        let (ended, until_ended) = io::pipe()?;
        let pass_on = |to: BorrowedFd<'_>| -> io::Result<(JoinHandle<bool>, PipeWriter)> {
            let (from, end) = io::pipe()?;
            let mut stream = Stream {
                from,
                to: File::from(to.try_clone_to_owned()?),
                ended: ended.try_clone()?,
                lines: Lines::new(pattern),
            };
            let thread = thread::Builder::new().spawn(move || stream.pass_on())?;
            Ok((thread, end))
        };
        let (out, stdout) = pass_on(io::stdout().as_fd())?;
        let (err, stderr) = pass_on(io::stderr().as_fd())?;
        let output = Self {
            threads: [out, err],
            until_ended,
        };
        Ok((output, Ends { stdout, stderr }))
    }

    /// Passes on what is left. True if a line matched.
    pub(super) fn end(self) -> bool {
        drop(self.until_ended);
        let found = self.threads.map(|thread| thread.join().unwrap_or(false));
        found.contains(&true)
    }
}

#[derive(Debug)]
struct Stream {
    from: PipeReader,
    to: File,
    ended: PipeReader,
    lines: Lines,
}

impl Stream {
    /// Goes on until nothing more comes, or nobody reads it any more: then the command learns of that as its pipe is
    /// closed, too.
    fn pass_on(&mut self) -> bool {
        let mut chunk = vec![0; LONGEST_LINE];
        let mut left = MOST_AFTER_THE_END;
        while let Some(has_ended) = self.has_more() {
            let Ok(length @ 1..) = self.from.read(&mut chunk) else {
                break;
            };
            self.lines.read(&chunk[..length]);
            if self.write(&chunk[..length]).is_err() {
                break;
            }
            if has_ended {
                left = left.saturating_sub(length);
            }
            if left == 0 {
                break;
            }
        }
        self.lines.end()
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.to.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => bytes = &bytes[length..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Somebody who shares it does not want to wait for whoever reads.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut to = [PollFd::new(self.to.as_fd(), PollFlags::POLLOUT)];
                    poll(&mut to, PollTimeout::NONE)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits until there is something to read, and says whether the command has ended by then. Nothing if it has, and there
    /// is nothing.
    fn has_more(&self) -> Option<bool> {
        let mut pipes =
            [&self.from, &self.ended].map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
        poll(&mut pipes, PollTimeout::NONE).ok()?;
        let [from, ended] = pipes.map(|pipe| pipe.any().unwrap_or(true));
        from.then_some(ended)
    }
}

/// Looks for a line that matches.
#[derive(Debug)]
struct Lines {
    pattern: Regex,
    line: Vec<u8>,
    found: bool,
}

impl Lines {
    fn new(pattern: &Regex) -> Self {
        Self {
            pattern: pattern.clone(),
            line: Vec::new(),
            found: false,
        }
    }

    fn read(&mut self, mut bytes: &[u8]) {
        while !self.found && !bytes.is_empty() {
            let room = &bytes[..bytes.len().min(LONGEST_LINE - self.line.len())];
            let end = room.iter().position(|byte| *byte == b'\n');
            let taken = end.unwrap_or(room.len());
            self.line.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken + usize::from(end.is_some())..];
            if end.is_some() || self.line.len() == LONGEST_LINE {
                self.look();
            }
        }
    }

    fn look(&mut self) {
        let line = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
        self.found = self.found || self.pattern.is_match(line);
        self.line.clear();
    }

    /// No more comes: the last line may have no newline.
    fn end(&mut self) -> bool {
        if !self.line.is_empty() {
            self.look();
        }
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(pattern: &str, chunks: &[&[u8]]) -> bool {
        let mut lines = Lines::new(&Regex::new(pattern).unwrap());
        for chunk in chunks {
            lines.read(chunk);
        }
        lines.end()
    }

    #[test]
    fn lines_are_found_however_they_are_cut() {
        for (pattern, chunks, is_found) in [
            ("429", &[b"HTTP 429\n" as &[u8]] as &[&[u8]], true),
            ("429", &[b"HTTP 4", b"29\nmore"], true),
            ("429", &[b"no newline: 429"], true),
            ("429", &[b"4\n29\n"], false),
            ("^limit$", &[b"limit\r\n"], true),
            ("^limit$", &[b"the limit\n", b"lim", b"it"], true),
            ("^limit$", &[b"no limit\n"], false),
            ("limit", &[b"\xff\xfe limit \xff\n"], true),
            ("^$", &[b"a\n\nb\n"], true),
            ("^$", &[b"a\n"], false),
            ("limit", &[], false),
        ] {
            assert_eq!(found(pattern, chunks), is_found, "{pattern}: {chunks:?}");
        }
    }

    #[test]
    fn endless_lines_take_no_more_room() {
        let mut lines = Lines::new(&Regex::new("needle").unwrap());
        for _ in 0..100 {
            lines.read(&[b'x'; 5_000]);
            assert!(lines.line.len() < LONGEST_LINE);
        }
        lines.read(b"needle");
        assert!(lines.end());
    }
}
