//! What people read.

use std::fmt::{self, Write as _};
use std::time::Duration;

use crate::figures::{Aim, Figure};
use crate::records::Row;

/// A loop that has a processor for itself uses more of it than this; the rest of the time it waits for the disk.
const UNDISTURBED: f64 = 0.65;

/// The table of all subjects, and the figures that count. Both depend on the length of a round, and on how much of a
/// processor the baseline was given.
pub fn text(
    rows: &[Row<'_>],
    figures: &[Figure],
    round: Duration,
    raw_processors: f64,
) -> Result<String, fmt::Error> {
    let mut out = String::new();
    write_rows(&mut out, rows)?;
    writeln!(
        out,
        "\ncalls/s, ratios, max/min (between callers) and CPU are medians of rounds, of {round:?} for crowds; p50 to
worst are of all calls. Who waits through a whole round goes on at its end: longer waits do not show.\n"
    )?;
    write_figures(&mut out, figures)?;
    if raw_processors < UNDISTURBED {
        let percent = raw_processors * 100.0;
        writeln!(
            out,
            "\nThe raw loop had {percent:.0} % of a processor: others used this machine, or its disk is slow. Many callers
then get more of it than one, their ratios to raw are too high, and so are the longest calls."
        )?;
    }
    Ok(out)
}

fn write_rows(out: &mut String, rows: &[Row<'_>]) -> fmt::Result {
    let mut group = "";
    write!(out, "{:<36} {:>11} {:>7}", "", "calls/s", "/ raw")?;
    writeln!(
        out,
        " {:>9} {:>9} {:>9} {:>9} {:>8} {:>9}",
        "p50", "p99", "p99.9", "worst", "max/min", "CPU/call"
    )?;
    for row in rows {
        if row.subject.group != group {
            group = &row.subject.group;
            writeln!(out, "{group}")?;
        }
        let label = &row.subject.label;
        write!(
            out,
            "  {label:<34} {:>11} {:>7}",
            grouped_f64(row.per_second),
            digits(row.to_raw)
        )?;
        for time in [row.p50, row.p99, row.p999, row.worst] {
            write!(out, " {:>9}", short(time))?;
        }
        let crowd = row.subject.callers() > 1;
        let spread = if crowd {
            format!("{:.2}", row.spread)
        } else {
            "-".to_owned()
        };
        writeln!(out, " {spread:>8} {:>9}", format!("{:.1} µs", row.cpu_us))?;
    }
    Ok(())
}

fn write_figures(out: &mut String, figures: &[Figure]) -> fmt::Result {
    writeln!(
        out,
        "{:<16} {:>8}   {:<8} {:<4} meaning",
        "figure", "", "aim", "met"
    )?;
    for figure in figures {
        let value = figure
            .value
            .map_or("-".to_owned(), |value| format!("{value:.3}"));
        let aim = match figure.aim {
            Aim::AtLeast(least) => format!(">= {least}"),
            Aim::AtMost(most) => format!("<= {most}"),
        };
        let met = match figure.is_met() {
            Some(true) => "yes",
            Some(false) => "no",
            None => "-",
        };
        writeln!(
            out,
            "{:<16} {value:>8}   {aim:<8} {met:<4} {}",
            figure.key, figure.meaning
        )?;
    }
    Ok(())
}

/// A number with its thousands apart.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a throughput is neither huge nor negative"
)]
fn grouped_f64(number: f64) -> String {
    grouped(number.round() as u64)
}

/// Three digits, as far as they are needed.
fn short(time: Duration) -> String {
    let micros = time.as_secs_f64() * 1e6;
    let (number, unit) = if micros < 1_000.0 {
        (micros, "µs")
    } else {
        (micros / 1e3, "ms")
    };
    format!("{} {unit}", digits(number))
}

fn digits(number: f64) -> String {
    let digits = match number {
        ..0.1 => 4,
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    format!("{number:.digits$}")
}
