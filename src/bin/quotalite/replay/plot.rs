//! Load over time, against what a definition allows, in the characters of a terminal.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use anstyle::Style;
use quotalite::Limit;
use serde::Serialize;
use unicode_width::UnicodeWidthStr;

use super::rerun::{Charge, Fate, Rerun};
use super::window_of;
use crate::show::{self, DIM, GOOD, WARN};

/// How many columns programs are told of.
pub(super) const COLUMNS_TOLD: usize = 60;

/// No column is shorter.
const SHORTEST: Duration = Duration::from_millis(1);

/// How high the load is drawn, and what is delayed, in lines.
const LOAD_LINES: usize = 8;
const DELAYED_LINES: usize = 2;

/// What was charged, column by column.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) columns: Vec<Bar>,
    /// How long a column is.
    pub(super) span: Duration,
    /// The most that the definition lets through in one, roughly: where it is shorter than a window, the whole window's.
    pub(super) capacity: u64,
    /// What the wall clock showed at the beginning and at the end.
    pub(super) walls: [SystemTime; 2],
}

/// A column: what was asked for in it, in the limit's unit.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Bar {
    pub(super) from: String,
    pub(super) amount: u64,
    /// Of that, what would have been refused if nobody waited.
    pub(super) refused: u64,
    /// Of that, what would have been admitted later if everybody waited in line.
    pub(super) delayed: u64,
}

/// How many columns are drawn where a line may be so wide.
pub(super) fn columns_in(width: usize) -> usize {
    width.saturating_sub(LABEL + 1).clamp(8, 120)
}

/// How wide the numbers at the side are.
const LABEL: usize = 11;

impl Series {
    pub(super) fn new(
        (charges, wall): (&[Charge], SystemTime),
        limit: &Limit,
        rerun: &Rerun,
        count: usize,
    ) -> Self {
        let count = count.max(1);
        let ends = charges.first().zip(charges.last());
        let lasted = ends.map_or(Duration::ZERO, |(first, last)| {
            last.at.saturating_duration_since(first.at)
        });
        let parts = u32::try_from(count).unwrap_or(u32::MAX);
        // One more, so that the last charge is in the last column.
        let span = (lasted / parts + Duration::from_nanos(1)).max(SHORTEST);
        let mut columns: Vec<Bar> = (0..parts)
            .map(|column| Bar {
                from: show::rfc3339(wall + span * column),
                amount: 0,
                refused: 0,
                delayed: 0,
            })
            .collect();
        let fates = rerun.now.iter().zip(&rerun.in_line);
        for (charge, (now, in_line)) in charges.iter().zip(fates) {
            let since = ends.map_or(Duration::ZERO, |(first, _)| {
                charge.at.saturating_duration_since(first.at)
            });
            let column = since.as_nanos() / span.as_nanos();
            let column = usize::try_from(column).unwrap_or(usize::MAX).min(count - 1);
            let bar = &mut columns[column];
            let add = |sum: &mut u64| *sum = sum.saturating_add(charge.amount);
            add(&mut bar.amount);
            if *now == Fate::Refused {
                add(&mut bar.refused);
            }
            if matches!(in_line, Fate::Delayed(_)) {
                add(&mut bar.delayed);
            }
        }
        Self {
            columns,
            span,
            capacity: capacity_in(limit, span),
            walls: [wall, wall + span * parts],
        }
    }

    /// What the height of the picture stands for: the capacity is seen, unless all that was charged is far below it.
    pub(super) fn top(&self) -> u64 {
        let amounts = self.columns.iter().map(|bar| bar.amount);
        let most = amounts.max().unwrap_or(0).max(1);
        if self.capacity <= most.saturating_mul(3) {
            most.max(self.capacity)
        } else {
            most
        }
    }

    /// What one column stands for, and what the definition allows in it.
    pub(super) fn caption(&self, unit: Option<&str>) -> String {
        let span = show::duration(rounded(self.span));
        let capacity = show::number(self.capacity);
        let unit = unit.map(|unit| format!(" {unit}")).unwrap_or_default();
        format!("charged in each {span}, of at most about {capacity}{unit}")
    }

    pub(super) fn write(
        &self,
        out: &mut dyn Write,
        unit: Option<&str>,
        width: usize,
    ) -> io::Result<()> {
        let top = self.top();
        writeln!(out, "{DIM}{}{DIM:#}", show::cut(&self.caption(unit), width))?;
        let line_of_capacity = (self.capacity <= top)
            .then(|| eighths(self.capacity, top, LOAD_LINES).saturating_sub(1) / 8);
        for line in (0..LOAD_LINES).rev() {
            let is_capacity = line_of_capacity == Some(line);
            let label = match line {
                _ if is_capacity => show::number(self.capacity),
                _ if line + 1 == LOAD_LINES => show::number(top),
                0 => "0".to_owned(),
                _ => String::new(),
            };
            write_label(out, &label, if is_capacity { '┤' } else { '│' })?;
            let cells = self.columns.iter().map(|bar| {
                let style = if bar.amount > self.capacity {
                    WARN
                } else {
                    GOOD
                };
                match block(bar.amount, top, LOAD_LINES, line) {
                    ' ' if is_capacity => ('┄', DIM),
                    block => (block, style),
                }
            });
            write_cells(out, cells)?;
        }
        let most = self.columns.iter().map(|bar| bar.delayed).max();
        if let Some(most) = most.filter(|most| *most > 0) {
            for line in (0..DELAYED_LINES).rev() {
                let is_first = line + 1 == DELAYED_LINES;
                let label = if is_first {
                    &*show::number(most)
                } else {
                    "delayed"
                };
                write_label(out, label, '│')?;
                let bars = self.columns.iter();
                let cells = bars.map(|bar| (block(bar.delayed, most, DELAYED_LINES, line), WARN));
                write_cells(out, cells)?;
            }
        }
        let [first, last] = self.walls.map(show::time);
        let room = self.columns.len();
        let gap = room.saturating_sub(first.width() + last.width());
        let times = if gap == 0 {
            show::cut(&first, room)
        } else {
            format!("{first}{}{last}", " ".repeat(gap))
        };
        writeln!(out, "{DIM}{:LABEL$} {times}{DIM:#}", "")
    }
}

/// To a millisecond, or a thousandth where that is longer.
fn rounded(span: Duration) -> Duration {
    let step = (span.as_millis() / 1_000).max(1);
    let millis = (span.as_millis() / step) * step;
    Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX).max(1))
}

/// Numbers that would be too wide are cut: a table has them whole.
fn write_label(out: &mut dyn Write, label: &str, edge: char) -> io::Result<()> {
    let label = show::cut(label, LABEL);
    let padding = " ".repeat(LABEL - label.width().min(LABEL));
    write!(out, "{DIM}{padding}{label}{edge}{DIM:#}")
}

fn write_cells(out: &mut dyn Write, cells: impl Iterator<Item = (char, Style)>) -> io::Result<()> {
    let mut cells: Vec<(char, Style)> = cells.collect();
    let drawn = cells.iter().rposition(|(cell, _)| *cell != ' ');
    cells.truncate(drawn.map_or(0, |last| last + 1));
    for run in cells.chunk_by(|(_, a), (_, b)| a == b) {
        let text: String = run.iter().map(|(cell, _)| cell).collect();
        let style = run[0].1;
        write!(out, "{style}{text}{style:#}")?;
    }
    writeln!(out)
}

/// What of a column lies in one line of the picture, the lowest of which is 0.
fn block(amount: u64, top: u64, lines: usize, line: usize) -> char {
    const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let in_line = eighths(amount, top, lines).saturating_sub(line * 8);
    BLOCKS[in_line.min(8)]
}

/// How high an amount is drawn: whatever there is can be seen.
fn eighths(amount: u64, top: u64, lines: usize) -> usize {
    let most = lines as u128 * 8;
    let high = u128::from(amount) * most / u128::from(top.max(1));
    let high = usize::try_from(high.min(most)).unwrap_or(0);
    if amount > 0 { high.max(1) } else { 0 }
}

/// The most that a limit lets through in so long a time, roughly.
fn capacity_in(limit: &Limit, span: Duration) -> u64 {
    let even = |amount: u64, per: Duration| {
        let longer = span.max(per).as_nanos();
        let even = u128::from(amount) * longer / per.as_nanos().max(1);
        u64::try_from(even).unwrap_or(u64::MAX)
    };
    let rates = limit.rates().iter();
    let rates = rates.map(|rate| even(rate.capacity(), window_of(rate.window()) + limit.pad()));
    let bucket = limit.bucket().map(|bucket| {
        let refilled =
            u128::from(bucket.refill()) * span.as_nanos() / bucket.per().as_nanos().max(1);
        let refilled = u64::try_from(refilled).unwrap_or(u64::MAX);
        bucket.burst().max(refilled)
    });
    rates.chain(bucket).min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use quotalite::Timestamp;

    use super::*;

    /// A second of 10 requests, a quiet one, and a second of 5; then 3 delayed.
    fn series(count: usize) -> Series {
        let start = SystemTime::UNIX_EPOCH + Duration::from_hours(500_000);
        let charge = |ms: i64| Charge {
            at: Timestamp::from_nanos(ms * 1_000_000),
            amount: 1,
        };
        let charges: Vec<Charge> = (0..10)
            .map(|n| n * 100)
            .chain((0..5).map(|n| 2_000 + n * 249))
            .map(charge)
            .collect();
        let fate = |n: usize| match n {
            7..10 => Fate::Delayed(Duration::from_secs(1)),
            _ => Fate::Admitted,
        };
        let refused = |n: usize| match n {
            5..10 => Fate::Refused,
            _ => Fate::Admitted,
        };
        let rerun = Rerun {
            now: (0..15).map(refused).collect(),
            in_line: (0..15).map(fate).collect(),
        };
        let limit = Limit::new("k").per_second(5).build().unwrap();
        Series::new((&charges, start), &limit, &rerun, count)
    }

    fn drawn(series: &Series, width: usize) -> String {
        let mut out = Vec::new();
        series.write(&mut out, Some("calls"), width).unwrap();
        String::from_utf8(anstream::adapter::strip_bytes(&out).into_vec()).unwrap()
    }

    #[test]
    fn columns_hold_what_was_charged_in_them() {
        let series = series(3);
        let amounts: Vec<[u64; 3]> = series
            .columns
            .iter()
            .map(|bar| [bar.amount, bar.refused, bar.delayed])
            .collect();
        assert_eq!(amounts, [[10, 5, 3], [0, 0, 0], [5, 0, 0]]);
        assert_eq!((series.capacity, series.top()), (5, 10));
        assert_eq!(series.columns[0].from, "2027-01-15T08:00:00.000000Z");
    }

    #[test]
    fn the_picture_shows_load_capacity_and_delays() {
        let text = drawn(&series(3), 40);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..11],
            [
                "charged in each 998ms, of at most about…",
                "         10│█",
                "           │█",
                "           │█",
                "           │█",
                "          5┤█┄█",
                "           │█ █",
                "           │█ █",
                "          0│█ █",
                "          3│█",
                "    delayed│█",
            ]
        );
        assert_eq!(lines.len(), 12);
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for width in 20..200 {
            let text = drawn(&series(columns_in(width)), width);
            for line in text.lines() {
                assert!(line.width() <= width, "{width}: {line}");
            }
        }
    }

    #[test]
    fn a_capacity_far_above_is_told_and_not_drawn() {
        let mut series = series(3);
        series.capacity = 31;
        assert_eq!(series.top(), 10);
        assert!(!drawn(&series, 80).contains('┄'));
        series.capacity = 30;
        assert_eq!(series.top(), 30);
        assert!(drawn(&series, 80).contains('┄'));
    }

    #[test]
    fn the_largest_numbers_are_drawn() {
        let charges = [0, 1, i64::MAX].map(|ns| Charge {
            at: Timestamp::from_nanos(ns),
            amount: u64::MAX,
        });
        let rerun = Rerun {
            now: vec![Fate::Never; 3],
            in_line: vec![Fate::Never; 3],
        };
        let limit = Limit::new("k").burst(1).refill(1, quotalite::DAY);
        let limit = limit.build().unwrap();
        let series = Series::new((&charges, SystemTime::UNIX_EPOCH), &limit, &rerun, 10);
        assert_eq!(series.top(), u64::MAX);
        assert_eq!(drawn(&series, 60).lines().count(), 10);
    }
}
