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
mod raw;
mod report;
mod round;
mod subjects;
mod work;

use std::error::Error;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::crew::Crew;
use crate::figures::{Record, Records, Row};
use crate::subjects::{RAW, Subject};

const HELP: &str = "\
Measures threads and processes that share the limits of one file.

usage: cargo run --release --example contention -- [options]

  --quick        20 seconds instead of three minutes, with ledgers of at most a million charges
  --json FILE    write all figures to FILE
  --dir PATH     make the files in a new directory in PATH (defaults to the temporary directory)
  --help         this text

The exit status is 0 whatever the figures are, 2 if something failed.
";

type Failure = Box<dyn Error + Send + Sync>;

/// No run has more rounds.
const MOST_ROUNDS: usize = 11;

/// The baseline is measured anew before so many other subjects.
const PER_BASELINE: usize = 6;

struct Options {
    quick: bool,
    json: Option<PathBuf>,
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
    length: Duration::from_millis(60),
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
        dir: std::env::temp_dir(),
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("quick") => options.quick = true,
            Long("json") => options.json = Some(parser.value()?.into()),
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
    print!("{}", report::text(&rows, &figures)?);
    if let Some(path) = &options.json {
        let object = figures::to_json(&figures, &rows, about(&scale, began.elapsed()));
        fs::write(path, format!("{object:#}\n")).map_err(|error| in_file(path, &error))?;
    }
    Ok(())
}

/// What was done, for those who read the JSON alone.
fn about(scale: &Scale, took: Duration) -> Map<String, Value> {
    let mut about = Map::new();
    about.insert("rounds".to_owned(), json!(scale.rounds));
    about.insert("round_ms".to_owned(), json!(scale.length.as_millis()));
    about.insert("most_charges".to_owned(), json!(scale.most));
    about.insert("took_s".to_owned(), json!(took.as_secs_f64()));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    about.insert("cores".to_owned(), json!(cores));
    about
}

fn in_file(path: &Path, error: &io::Error) -> Failure {
    format!("{}: {error}", path.display()).into()
}

/// All subjects in turns, on new files.
fn measure(subjects: &[Subject], scale: &Scale, dir: &Path) -> Result<Records, Failure> {
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
    let mut records = Records::new();
    for round in 1..=scale.rounds {
        progress(&format!("round {round} of {}", scale.rounds));
        for few in others.chunks_mut(PER_BASELINE) {
            let samples = baseline.1.round(scale.length)?;
            let raw = record(&mut records, RAW).add(&samples, None);
            for (subject, crew) in few {
                let samples = crew.round(scale.length)?;
                record(&mut records, &subject.id).add(&samples, Some(raw));
            }
        }
    }
    progress("");
    Ok(records)
}

fn record<'a>(records: &'a mut Records, id: &str) -> &'a mut Record {
    records.entry(id.to_owned()).or_default()
}

/// Says what goes on, where somebody can see it.
fn progress(text: &str) {
    if io::stderr().is_terminal() {
        eprint!("\r\x1b[K{text}");
        let _ = io::stderr().flush();
    }
}
