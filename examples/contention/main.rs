//! What happens when many call at once: threads and processes that share one file, beside a loop of plain
//! transactions; and what long ledgers and long lines cost.
//!
//! ```sh
//! cargo run --release --example contention
//! cargo run --release --example contention -- --quick --json figures.json --plot figures.svg
//! ```
//!
//! Each subject has worker processes of its own, which are this program started anew. Subjects work in turns, a short
//! round of each after the other, because speeds differ between machines and minutes: what counts are ratios.

mod crew;
mod figures;
mod histogram;
mod ledger;
mod plot;
mod raw;
mod records;
mod report;
mod round;
mod stop;
mod subjects;
mod work;

use std::error::Error;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::crew::Crew;
use crate::records::{Record, Records, Row};
use crate::subjects::{RAW, Subject};

const HELP: &str = "\
Measures threads and processes that share the limits of one file.

usage: cargo run --release --example contention -- [options]

  --quick        20 seconds instead of three minutes, with ledgers of at most a million charges
  --json FILE    write all figures to FILE, as one object
  --plot FILE    draw throughput and times by the number of callers, as SVG
  --dir PATH     make the files in a new directory in PATH (defaults to the temporary directory)
  --help         this text

The exit status is 0 whatever the figures are, 2 if something failed.
";

type Failure = Box<dyn Error + Send + Sync>;

/// No run has more rounds.
const MOST_ROUNDS: usize = 11;

/// A single caller can be measured in a shorter time, and what else the machine does changes less until the next one's
/// turn. So their rounds come in so many parts.
const PARTS: u32 = 4;

/// The baseline is measured anew before so many crowds.
const PER_BASELINE: usize = 6;

struct Options {
    quick: bool,
    json: Option<PathBuf>,
    plot: Option<PathBuf>,
    dir: PathBuf,
}

/// How much is measured.
struct Scale {
    rounds: usize,
    length: Duration,
    /// The size of the largest ledger.
    most: u64,
}

const LONG: Scale = Scale {
    rounds: MOST_ROUNDS,
    length: Duration::from_millis(250),
    most: 10_000_000,
};

const QUICK: Scale = Scale {
    rounds: 4,
    length: Duration::from_millis(80),
    most: 1_000_000,
};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let outcome = if arguments.next().is_some_and(|first| first == crew::WORKER) {
        crew::be_worker(&arguments.collect::<Vec<_>>())
    } else {
        parse_options().and_then(|options| options.map_or(Ok(()), |options| run(&options)))
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("contention: {error}");
            ExitCode::from(2)
        }
    }
}

fn parse_options() -> Result<Option<Options>, Failure> {
    use lexopt::Arg::Long;
    let mut options = Options {
        quick: false,
        json: None,
        plot: None,
        dir: std::env::temp_dir(),
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("quick") => options.quick = true,
            Long("json") => options.json = Some(parser.value()?.into()),
            Long("plot") => options.plot = Some(parser.value()?.into()),
            Long("dir") => options.dir = parser.value()?.into(),
            Long("help") | lexopt::Arg::Short('h') => {
                print!("{HELP}");
                return Ok(None);
            }
            _ => return Err(format!("{}; see --help", argument.unexpected()).into()),
        }
    }
    Ok(Some(options))
}

fn run(options: &Options) -> Result<(), Failure> {
    let scale = if options.quick { QUICK } else { LONG };
    let subjects = subjects::subjects(scale.most);
    let began = Instant::now();
    let records = measure(&subjects, &scale, &options.dir)?;

    let rows: Vec<Row<'_>> = subjects
        .iter()
        .filter_map(|subject| Some(records.get(&subject.id)?.row(subject)))
        .collect();
    let figures = figures::figures(&records, scale.most);
    let raw_processors = records.get(RAW).map_or(0.0, Record::processors);
    print!(
        "{}",
        report::text(&rows, &figures, scale.length, raw_processors)?
    );
    if let Some(path) = &options.json {
        let about = json!({
            "cores": thread::available_parallelism().map_or(0, usize::from),
            "rounds": scale.rounds,
            "round_ms": scale.length.as_millis(),
            "most_charges": scale.most,
            "took_s": began.elapsed().as_secs_f64(),
            "raw_processors": raw_processors,
        });
        let object = figures::to_json(about, &figures, &rows);
        fs::write(path, format!("{object:#}\n")).map_err(|error| in_file(path, &error))?;
    }
    if let Some(path) = &options.plot {
        plot::draw(path, &rows)?;
    }
    Ok(())
}

fn in_file(path: &Path, error: &io::Error) -> Failure {
    format!("{}: {error}", path.display()).into()
}

/// All subjects in turns, on new files.
fn measure(subjects: &[Subject], scale: &Scale, dir: &Path) -> Result<Records, Failure> {
    stop::listen()?;
    let files = tempfile::Builder::new()
        .prefix("quotalite-")
        .tempdir_in(dir)?;
    progress("preparing the files");
    let mut crews = Vec::new();
    for subject in subjects {
        crews.push((subject, Crew::start(subject, files.path())?));
    }
    for (_, crew) in &crews {
        crew.wait_until_ready()?;
    }
    let (baseline, others) = crews.split_first_mut().ok_or("nothing to measure")?;
    let (alone, crowds): (Vec<_>, Vec<_>) = others
        .iter_mut()
        .partition(|(subject, _)| subject.callers() == 1);
    let (mut alone, mut crowds) = (alone, crowds);
    let mut turns = Turns {
        baseline: &mut baseline.1,
        records: Records::new(),
    };
    for round in 1..=scale.rounds {
        progress(&format!("round {round} of {}", scale.rounds));
        for few in crowds.chunks_mut(PER_BASELINE) {
            turns.take(few, scale.length)?;
        }
        for _ in 0..PARTS {
            turns.take(&mut alone, scale.length / PARTS)?;
        }
    }
    progress("");
    Ok(turns.records)
}

struct Turns<'a> {
    baseline: &'a mut Crew,
    records: Records,
}

impl Turns<'_> {
    /// A turn of the baseline, and one of each of these.
    fn take(
        &mut self,
        crews: &mut [&mut (&Subject, Crew)],
        length: Duration,
    ) -> Result<(), Failure> {
        let samples = self.baseline.round(length)?;
        let raw = self.record(RAW).add(&samples, None);
        for (subject, crew) in crews {
            let samples = crew.round(length)?;
            self.record(&subject.id).add(&samples, Some(raw));
        }
        Ok(())
    }

    fn record(&mut self, id: &str) -> &mut Record {
        self.records.entry(id.to_owned()).or_default()
    }
}

/// Says what goes on, where somebody can see it.
fn progress(text: &str) {
    if io::stderr().is_terminal() {
        eprint!("\r\x1b[K{text}");
        let _ = io::stderr().flush();
    }
}
