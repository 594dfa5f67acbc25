//! The parent: starts the workers, hands out jobs, kills one worker, and shows how it goes.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use quotalite::{Limit, Limiter, Timestamp};

use crate::audit::{Booked, as_f64};
use crate::worker::{Grant, Line, patiently};
use crate::{Failure, Job, Options};

/// The first argument of a worker process.
pub const WORKER: &str = "--be-worker";

/// How long a run may last beyond its plan before it is given up, on a machine that is very busy.
const PATIENCE: Duration = Duration::from_mins(1);

/// What came of a run.
pub struct Run {
    pub workers: Vec<Worker>,
    pub took: Duration,
    /// How often each job was counted as done.
    pub done: Vec<usize>,
    /// Jobs that were handed out a second time.
    pub again: usize,
    /// How many workers were killed.
    pub kills: usize,
    /// What the killed worker had booked when it was killed.
    pub booked: Option<Booked>,
}

/// A worker process, as its parent sees it.
pub struct Worker {
    child: Child,
    to: Option<ChildStdin>,
    in_hand: Option<usize>,
    /// Whether all that it said has been heard.
    heard: bool,
    pub fate: Fate,
    /// Whether it was there from the beginning.
    pub founder: bool,
    pub grants: Vec<Grant>,
    /// The limit and rate by which it was told that the run ends first.
    pub refused: Option<(String, String)>,
    pub done: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Runs,
    Finished,
    Killed,
    Failed,
}

enum Event {
    Said(usize, Line),
    Babbled(usize, String),
    Ended(usize),
}

struct Team<'a> {
    limiter: &'a Limiter,
    db: &'a Path,
    /// For workers with prompts of their own: when to turn to long ones, and when to end.
    times: (Timestamp, Timestamp),
    call: Duration,
    jobs: Option<&'a [Job]>,
    queue: VecDeque<usize>,
    sender: Sender<Event>,
    start: Instant,
    kill_after: Duration,
    run: Run,
}

pub fn run(
    limiter: &Limiter,
    db: &Path,
    limits: &[Limit],
    jobs: Option<&[Job]>,
    options: &Options,
) -> Result<Run, Failure> {
    let (sender, events) = mpsc::channel();
    let length = Duration::from_secs(options.seconds.into());
    let now = limiter.now()?;
    let after = |time| {
        now.checked_add(time)
            .ok_or("the clock shows a time beyond 2262")
    };
    let job_count = jobs.map_or(0, <[Job]>::len);
    let mut team = Team {
        limiter,
        db,
        times: (after(length * 2 / 5)?, after(length)?),
        call: call_time(&limits[0], options.workers),
        jobs,
        queue: (0..job_count).collect(),
        sender,
        start: Instant::now(),
        kill_after: length / 2,
        run: Run {
            workers: Vec::new(),
            took: Duration::ZERO,
            done: vec![0; job_count],
            again: 0,
            kills: 0,
            booked: None,
        },
    };
    for _ in 0..options.workers {
        team.start(true)?;
    }
    let progress = Progress::new(limits);
    while team.run.workers.iter().any(|worker| !worker.heard) {
        match events.recv_timeout(Duration::from_millis(50)) {
            Ok(event) => team.take(event)?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if jobs.is_none() && team.start.elapsed() >= team.kill_after {
            team.kill(options.workers / 2)?;
        }
        if team.start.elapsed() > length + PATIENCE {
            return Err(
                format!("the workers did not end {PATIENCE:?} after they should have").into(),
            );
        }
        progress.show(&team);
    }
    progress.clear();
    team.run.took = team.start.elapsed();
    Ok(team.run)
}

/// Calls so short that the workers could make twice as many as the limit admits: they have to wait.
fn call_time(requests: &Limit, workers: usize) -> Duration {
    let per_second = as_f64(requests.rates()[0].capacity());
    let call = as_f64(workers as u64) / per_second / 2.0;
    Duration::from_secs_f64(call.min(0.2))
}

impl Team<'_> {
    fn start(&mut self, founder: bool) -> Result<(), Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg(WORKER)
            .arg(self.db)
            .arg(self.call.as_micros().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if self.jobs.is_none() {
            let (turn, end) = self.times;
            command
                .arg(turn.as_nanos().to_string())
                .arg(end.as_nanos().to_string());
        }
        let mut child = command.spawn()?;
        let index = self.run.workers.len();
        if let Some(stdout) = child.stdout.take() {
            let sender = self.sender.clone();
            thread::spawn(move || listen(index, stdout, &sender));
        }
        let to = child.stdin.take();
        self.run.workers.push(Worker {
            child,
            to,
            in_hand: None,
            heard: false,
            fate: Fate::Runs,
            founder,
            grants: Vec::new(),
            refused: None,
            done: 0,
        });
        self.hand_out(index);
        Ok(())
    }

    /// Hands the next job to a worker; if there is none, the end of its input tells it to end.
    fn hand_out(&mut self, index: usize) {
        let worker = &mut self.run.workers[index];
        worker.in_hand = None;
        if worker.fate != Fate::Runs {
            return;
        }
        let next = self
            .jobs
            .and_then(|jobs| self.queue.pop_front().map(|job| (job, &jobs[job])));
        worker.in_hand = next.map(|(job, _)| job);
        let Some((number, job)) = next else {
            worker.to = None;
            return;
        };
        if let Some(to) = &mut worker.to {
            // If the worker is dead, its end is reported next, and the job goes to another.
            let _ = to.write_all(format!("{number}\t{}\t{}\n", job.tokens, job.payload).as_bytes());
        }
    }

    fn take(&mut self, event: Event) -> Result<(), Failure> {
        match event {
            Event::Said(index, Line::Grant(grant)) => {
                self.run.workers[index].grants.push(grant);
                // A worker that has a permit is killed in the middle of its call.
                let done: usize = self.run.done.iter().sum();
                if self.jobs.is_some_and(|jobs| done >= jobs.len() / 3) {
                    self.kill(index)?;
                }
            }
            Event::Said(index, Line::Refused { key, rate }) => {
                self.run.workers[index].refused = Some((key, rate));
            }
            Event::Said(index, Line::Done { job }) => {
                if let Some(count) = self.run.done.get_mut(job) {
                    *count += 1;
                }
                self.run.workers[index].done += 1;
                self.hand_out(index);
            }
            Event::Babbled(index, line) => {
                return Err(format!("worker {} said {line:?}", index + 1).into());
            }
            Event::Ended(index) => self.ended(index)?,
        }
        Ok(())
    }

    /// A worker's pipe has ended, and all that it said is known: a job that it had in hand without
    /// saying that it was done goes to another. It may have been called; it was not counted.
    fn ended(&mut self, index: usize) -> Result<(), Failure> {
        let worker = &mut self.run.workers[index];
        let status = worker.child.wait()?;
        worker.heard = true;
        if let Some(job) = worker.in_hand.take() {
            self.queue.push_front(job);
            self.run.again += 1;
        }
        if worker.fate == Fate::Killed {
            return self.start(false);
        }
        worker.fate = if status.success() {
            Fate::Finished
        } else {
            Fate::Failed
        };
        Ok(())
    }

    /// Kills a worker, once in a run, with a signal that it cannot catch.
    fn kill(&mut self, index: usize) -> Result<(), Failure> {
        let worker = &mut self.run.workers[index];
        if self.run.kills > 0 || worker.fate != Fate::Runs {
            return Ok(());
        }
        worker.child.kill()?;
        worker.child.wait()?;
        worker.fate = Fate::Killed;
        let now = patiently(|| self.limiter.now())?.as_nanos();
        self.run.kills += 1;
        self.run.booked = Booked::by(self.db, worker.child.id(), now)?;
        Ok(())
    }
}

impl Drop for Worker {
    /// No worker outlives its parent.
    fn drop(&mut self) {
        if self.fate == Fate::Runs {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Passes on what a worker says. A line without its end was cut off and never said.
fn listen(index: usize, stdout: ChildStdout, sender: &Sender<Event>) {
    let mut reader = BufReader::new(stdout);
    let mut text = String::new();
    while reader.read_line(&mut text).is_ok_and(|length| length > 0) && text.ends_with('\n') {
        let event = match Line::parse(&text) {
            Some(line) => Event::Said(index, line),
            None => Event::Babbled(index, text.clone()),
        };
        if sender.send(event).is_err() {
            return;
        }
        text.clear();
    }
    let _ = sender.send(Event::Ended(index));
}

/// A bar for each rate: how full its window is. indicatif draws nothing where there is no terminal.
struct Progress {
    bars: MultiProgress,
    head: ProgressBar,
    rates: Vec<(String, usize, ProgressBar)>,
    shown: std::cell::Cell<Option<Instant>>,
}

impl Progress {
    fn new(limits: &[Limit]) -> Self {
        let style = |template| {
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
        };
        let bars = MultiProgress::new();
        let head = bars.add(ProgressBar::new_spinner().with_style(style("{spinner} {wide_msg}")));
        let mut rates = Vec::new();
        for limit in limits {
            for (position, rate) in limit.rates().iter().enumerate() {
                let bar = bars.add(ProgressBar::new(rate.capacity()));
                bar.set_style(
                    style("  {prefix:26} {bar:30.cyan/dim} {pos:>7} of {len:<7}")
                        .progress_chars("━╸─"),
                );
                bar.set_prefix(format!("{} {rate}", limit.key()));
                rates.push((limit.key().to_owned(), position, bar));
            }
        }
        Self {
            bars,
            head,
            rates,
            shown: std::cell::Cell::new(None),
        }
    }

    fn show(&self, team: &Team<'_>) {
        let recent = |shown: Instant| shown.elapsed() < Duration::from_millis(80);
        if self.bars.is_hidden() || self.shown.get().is_some_and(recent) {
            return;
        }
        self.shown.set(Some(Instant::now()));
        let grants: Vec<String> = team
            .run
            .workers
            .iter()
            .map(|worker| match worker.fate {
                Fate::Killed | Fate::Failed => format!("†{}", worker.grants.len()),
                Fate::Runs | Fate::Finished => worker.grants.len().to_string(),
            })
            .collect();
        self.head.set_message(format!(
            "{:4.1} s, granted: {}",
            team.start.elapsed().as_secs_f64(),
            grants.join(" ")
        ));
        self.head.tick();
        for (key, position, bar) in &self.rates {
            if let Ok(usage) = team.limiter.usage(key) {
                bar.set_position(usage.rates()[*position].used());
            }
        }
    }

    fn clear(&self) {
        // A terminal that went away is no reason to fail.
        let _ = self.bars.clear();
    }
}
