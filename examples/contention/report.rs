//! What people read.

use std::fmt::Write as _;
use std::time::Duration;

use crate::figures::{Aim, Figure, Row};

/// The table of all subjects, and the figures that count.
pub fn text(rows: &[Row<'_>], figures: &[Figure]) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    let mut group = "";
    write!(out, "{:<36} {:>11} {:>7}", "", "calls/s", "/ raw")?;
    writeln!(
        out,
        " {:>9} {:>9} {:>9} {:>9} {:>8} {:>9}",
        "p50", "p99", "p99.9", "worst", "max/min", "CPU/call"
    )?;
    for row in rows {
        if row.subject.group != group {
            group = row.subject.group;
            writeln!(out, "{group}")?;
        }
        let label = &row.subject.label;
        write!(
            out,
            "  {label:<34} {:>11} {:>7.2}",
            grouped_f64(row.per_second),
            row.to_raw
        )?;
        for time in [row.p50, row.p99, row.p999, row.worst] {
            write!(out, " {:>9}", short(time))?;
        }
        let crowd = row.subject.processes * row.subject.threads > 1;
        let spread = if crowd {
            format!("{:.2}", row.spread)
        } else {
            "-".to_owned()
        };
        writeln!(out, " {spread:>8} {:>9}", format!("{:.1} µs", row.cpu_us))?;
    }
    writeln!(
        out,
        "\n{:<16} {:>8}   {:<10} {:<4} meaning",
        "", "", "aim", "met"
    )?;
    for figure in figures {
        let value = figure
            .value
            .map_or("-".to_owned(), |value| format!("{value:.2}"));
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
            "{:<16} {value:>8}   {aim:<10} {met:<4} {}",
            figure.key, figure.meaning
        )?;
    }
    Ok(out)
}

/// A number with its thousands apart.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position) % 3 == 0 {
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
    let digits = match number {
        ..10.0 => 2,
        10.0..100.0 => 1,
        _ => 0,
    };
    format!("{number:.digits$} {unit}")
}
