//! The worker processes of one subject, as their parent sees them.

use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::round::{Sample, Span};
use crate::subjects::Subject;
use crate::work::Work;
use crate::{Failure, stop};

/// The first argument of a worker process.
pub const WORKER: &str = "--be-worker";

/// What a worker says when it has its file open.
const READY: &str = "ready";

const ENDED_EARLY: &str = "a worker has ended too early";

/// How long a worker may take to prepare its file, and to answer after a round.
const PREPARES_WITHIN: Duration = Duration::from_mins(15);
const ANSWERS_WITHIN: Duration = Duration::from_mins(1);

pub struct Crew {
    workers: Vec<Worker>,
    answers: Receiver<Option<String>>,
}

struct Worker {
    process: Child,
    to: ChildStdin,
}

impl Crew {
    /// Starts all workers at once.
    pub fn start(subject: &Subject, directory: &Path) -> Result<Self, Failure> {
        let (sender, answers) = mpsc::channel();
        let mut workers = Vec::new();
        for _ in 0..subject.processes {
            workers.push(Worker::start(subject, directory, &sender)?);
        }
        Ok(Self { workers, answers })
    }

    /// Waits until all of them have the file open.
    pub fn wait_until_ready(&self) -> Result<(), Failure> {
        for _ in &self.workers {
            if self.answer(PREPARES_WITHIN)? != READY {
                return Err("a worker spoke too early".into());
            }
        }
        Ok(())
    }

    /// Lets all of them work for this long, at the same time.
    pub fn round(&mut self, length: Duration) -> Result<Vec<Sample>, Failure> {
        let span = Span::of(length, self.workers.len())?;
        for worker in &mut self.workers {
            let told = worker.to.write_all(format!("{span}\n").as_bytes());
            told.map_err(|_| ENDED_EARLY)?;
        }
        let samples = self.workers.iter();
        samples
            .map(|_| Sample::parse(&self.answer(length + ANSWERS_WITHIN)?))
            .collect()
    }

    fn answer(&self, within: Duration) -> Result<String, Failure> {
        let deadline = Instant::now() + within;
        loop {
            match self.answers.recv_timeout(Duration::from_millis(100)) {
                Ok(Some(line)) => return Ok(line),
                Err(RecvTimeoutError::Timeout) if stop::is_wanted() => {
                    return Err("interrupted".into());
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Ok(None) | Err(RecvTimeoutError::Disconnected) => {
                    return Err(ENDED_EARLY.into());
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(format!("a worker has not answered within {within:?}").into());
                }
            }
        }
    }
}

impl Worker {
    fn start(
        subject: &Subject,
        directory: &Path,
        answers: &Sender<Option<String>>,
    ) -> Result<Self, Failure> {
        let mut process = Command::new(std::env::current_exe()?)
            .arg(WORKER)
            .arg(directory.join(format!("{}.db", subject.id)))
            .arg(subject.calls.to_string())
            .arg(subject.threads.to_string())
            .arg(subject.size.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let pipes = (process.stdin.take(), process.stdout.take());
        let (Some(to), Some(from)) = pipes else {
            return Err("a worker without pipes".into());
        };
        let answers = answers.clone();
        thread::spawn(move || listen(from, &answers));
        Ok(Self { process, to })
    }
}

impl Drop for Worker {
    /// No worker outlives its parent.
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Passes on what a worker says, and that it has ended.
fn listen(from: ChildStdout, answers: &Sender<Option<String>>) {
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        if answers.send(Some(line)).is_err() {
            return;
        }
    }
    let _ = answers.send(None);
}

/// In the worker: a round for each line that comes in, until its parent is gone.
pub fn be_worker(arguments: &[String]) -> Result<(), Failure> {
    let [file, calls, threads, size] = arguments else {
        return Err("a worker is started by the program itself".into());
    };
    let (calls, threads) = (calls.parse()?, threads.parse()?);
    let mut work = Work::prepare(Path::new(file), calls, size.parse()?)?;
    say(READY)?;
    for line in io::stdin().lines() {
        let sample = work.round(Span::parse(&line?)?, calls, threads)?;
        say(&sample.to_string())?;
    }
    Ok(())
}

fn say(line: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes())?;
    Ok(out.flush()?)
}
