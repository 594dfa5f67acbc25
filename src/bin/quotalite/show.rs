//! How things look on a terminal.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, SystemTime};

use anstyle::{AnsiColor, Style};
use jiff::fmt::friendly::{Designator, SpanPrinter};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Unit, Zoned};
use quotalite::Look;
use quotalite::Timestamp;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
pub(crate) const WARN: Style = AnsiColor::Yellow.on_default();
pub(crate) const BAD: Style = AnsiColor::Red.on_default();
pub(crate) const DIM: Style = Style::new().dimmed();
pub(crate) const BOLD: Style = Style::new().bold();

/// How wide what is printed may be.
pub(crate) fn width() -> usize {
    if !io::stdout().is_terminal() {
        // What goes to a program is not cut.
        return usize::MAX;
    }
    terminal_size::terminal_size().map_or(120, |(width, _)| usize::from(width.0).max(20))
}

/// A length of time for people: as exact as they care.
pub(crate) fn duration(duration: Duration) -> String {
    let unit = if duration < Duration::from_micros(1) {
        Unit::Nanosecond
    } else if duration < Duration::from_millis(1) {
        Unit::Microsecond
    } else if duration < Duration::from_secs(10) {
        Unit::Millisecond
    } else {
        Unit::Second
    };
    let Ok(signed) = SignedDuration::try_from(duration) else {
        return "ages".to_owned();
    };
    let rounded = signed.round(unit).unwrap_or(signed);
    SpanPrinter::new()
        .designator(Designator::Compact)
        .duration_to_string(&rounded)
}

/// A length of time that is printed for programs, for people.
pub(crate) fn from_seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

/// A time of the wall clock for people, here and today.
pub(crate) fn time(wall: SystemTime) -> String {
    let Ok(instant) = jiff::Timestamp::try_from(wall) else {
        return "never".to_owned();
    };
    let zoned = instant.to_zoned(TimeZone::system());
    let is_today = zoned.date() == Zoned::now().date();
    let format = if is_today {
        "%H:%M:%S"
    } else {
        "%Y-%m-%d %H:%M:%S"
    };
    zoned.strftime(format).to_string()
}

/// A time of the wall clock for programs: RFC 3339, in UTC.
pub(crate) fn rfc3339(wall: SystemTime) -> String {
    jiff::Timestamp::try_from(wall)
        .map_or_else(|_| String::new(), |instant| format!("{instant:.6}"))
}

/// An instant of the file for programs.
pub(crate) fn instant(look: &Look<'_>, at: Timestamp) -> String {
    rfc3339(look.wall(at))
}

/// A whole number with its thousands apart.
pub(crate) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// A figure to the whole.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures for people, which are neither negative nor as large"
)]
pub(crate) fn rounded(figure: f64) -> String {
    number(figure.max(0.0).round() as u64)
}

/// `1 slot`, `2 slots`.
pub(crate) fn counted(count: u64, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {what}{plural}", number(count))
}

/// A share as a bar of so many characters.
pub(crate) fn bar(used: u64, capacity: u64, length: usize) -> String {
    let eighths = if capacity == 0 {
        0
    } else {
        let most = length as u128 * 8;
        let part = u128::from(used) * most / u128::from(capacity);
        usize::try_from(part.min(most)).unwrap_or(0)
    };
    let parts = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let mut bar = "█".repeat(eighths / 8);
    if !eighths.is_multiple_of(8) {
        bar.push(parts[eighths % 8]);
    }
    while bar.chars().count() < length {
        bar.push('·');
    }
    bar
}

/// The colour of what is used to this share.
pub(crate) fn colour_of(used: u64, capacity: u64) -> Style {
    let (used, capacity) = (u128::from(used), u128::from(capacity));
    if used >= capacity {
        BAD
    } else if used * 5 >= capacity * 4 {
        WARN
    } else {
        GOOD
    }
}

/// A text of at most so many columns, with what does not fit left out.
pub(crate) fn cut(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let mut cut = String::new();
    let mut left = columns.saturating_sub(1);
    for character in text.chars() {
        let width = character.width().unwrap_or(0);
        if width > left {
            break;
        }
        left -= width;
        cut.push(character);
    }
    cut.push('…');
    cut
}

/// One cell of a table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    pub(crate) fn styled(text: impl Into<String>, style: Style) -> Self {
        Self {
            text: text.into(),
            style,
        }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(text, Style::new())
    }
}

/// How a column is laid out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    pub(crate) title: &'static str,
    pub(crate) is_right: bool,
    /// What goes first where the terminal is narrow; 0 never goes.
    pub(crate) goes: u8,
}

impl Column {
    pub(crate) const fn left(title: &'static str, goes: u8) -> Self {
        Self {
            title,
            is_right: false,
            goes,
        }
    }

    pub(crate) const fn right(title: &'static str, goes: u8) -> Self {
        Self {
            title,
            is_right: true,
            goes,
        }
    }
}

/// Rows under titles. Where they do not fit, columns are left out, and then the first one is cut.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

/// Between two columns.
const GAP: usize = 2;

impl Table {
    pub(crate) fn new(columns: impl Into<Vec<Column>>) -> Self {
        Self {
            columns: columns.into(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn row(&mut self, cells: impl Into<Vec<Cell>>) {
        self.rows.push(cells.into());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(crate) fn into_rows(self) -> Vec<Vec<Cell>> {
        self.rows
    }

    pub(crate) fn write(&self, out: &mut (impl Write + ?Sized), columns: usize) -> io::Result<()> {
        let shown = self.layout(columns);
        let titles: Vec<Cell> = self
            .columns
            .iter()
            .map(|column| Cell::styled(column.title, DIM))
            .collect();
        write_row(out, &titles, &self.columns, &shown)?;
        self.rows
            .iter()
            .try_for_each(|row| write_row(out, row, &self.columns, &shown))
    }

    /// The columns that are shown, and how wide each is.
    fn layout(&self, columns: usize) -> Vec<(usize, usize)> {
        let widest = |position: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(position));
            let cells = cells.map(|cell| cell.text.width()).max();
            cells.map(|cells| cells.max(self.columns[position].title.width()))
        };
        let is_empty = |position: usize| {
            let mut cells = self.rows.iter().filter_map(|row| row.get(position));
            cells.all(|cell| cell.text.is_empty())
        };
        let mut shown: Vec<(usize, usize)> = (0..self.columns.len())
            .filter(|position| !is_empty(*position))
            .filter_map(|position| Some((position, widest(position)?)))
            .collect();
        let total = |shown: &[(usize, usize)]| {
            let cells: usize = shown.iter().map(|(_, width)| width).sum();
            cells + GAP * shown.len().saturating_sub(1)
        };
        while total(&shown) > columns
            && let Some(next) = (0..shown.len())
                .filter(|at| self.columns[shown[*at].0].goes > 0)
                .max_by_key(|at| self.columns[shown[*at].0].goes)
        {
            shown.remove(next);
        }
        let over = total(&shown).saturating_sub(columns);
        if let Some((_, width)) = shown.iter_mut().max_by_key(|(_, width)| *width) {
            *width = width.saturating_sub(over).max(4);
        }
        shown
    }
}

fn write_row(
    out: &mut (impl Write + ?Sized),
    row: &[Cell],
    columns: &[Column],
    shown: &[(usize, usize)],
) -> io::Result<()> {
    let mut line = String::new();
    let is_filled =
        |(at, _): &(usize, usize)| row.get(*at).is_some_and(|cell| !cell.text.is_empty());
    let filled = shown.iter().rposition(is_filled).map_or(0, |last| last + 1);
    let shown = &shown[..filled];
    for (position, (at, width)) in shown.iter().enumerate() {
        let cell = row.get(*at).cloned().unwrap_or_default();
        let text = cut(&cell.text, *width);
        let padding = " ".repeat(width - text.width().min(*width));
        let styled = format!("{style}{text}{style:#}", style = cell.style);
        let is_last = position + 1 == shown.len();
        if columns[*at].is_right {
            line.extend([&*padding, &*styled]);
        } else if is_last {
            line.push_str(&styled);
        } else {
            line.extend([&*styled, &*padding]);
        }
        if !is_last {
            line.push_str(&" ".repeat(GAP));
        }
    }
    writeln!(out, "{line}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_as_exact_as_people_care() {
        for (nanos, text) in [
            (0, "0s"),
            (1_500, "2µs"),
            (210_400_000, "210ms"),
            (1_234_000_000, "1s 234ms"),
            (100_000_000_000, "1m 40s"),
            (7_200_000_000_000, "2h"),
        ] {
            assert_eq!(duration(Duration::from_nanos(nanos)), text);
        }
    }

    #[test]
    fn a_bar_is_always_as_long() {
        for (used, capacity) in [
            (0, 10),
            (3, 10),
            (10, 10),
            (12, 10),
            (1, 0),
            (u64::MAX, u64::MAX),
        ] {
            assert_eq!(
                bar(used, capacity, 10).chars().count(),
                10,
                "{used}/{capacity}"
            );
        }
        assert_eq!(bar(5, 10, 4), "██··");
    }

    #[test]
    fn a_narrow_table_leaves_columns_out_and_cuts_what_is_left() {
        let mut table = Table::new([
            Column::left("KEY", 0),
            Column::right("USED", 0),
            Column::left("NOTES", 2),
            Column::left("RATE", 1),
        ]);
        table.row(vec![
            "openai:requests".into(),
            "7".into(),
            "paused".into(),
            "10/s".into(),
        ]);
        let print = |columns| {
            let mut out = Vec::new();
            table.write(&mut out, columns).unwrap();
            anstream::adapter::strip_bytes(&out).into_vec()
        };
        let text = |columns| String::from_utf8(print(columns)).unwrap();
        assert_eq!(
            text(80),
            "KEY              USED  NOTES   RATE\nopenai:requests     7  paused  10/s\n"
        );
        assert_eq!(
            text(28),
            "KEY              USED  RATE\nopenai:requests     7  10/s\n"
        );
        assert_eq!(text(14), "KEY       USED\nopenai:…     7\n");
        for columns in 12..60 {
            for line in text(columns).lines() {
                assert!(line.width() <= columns, "{columns}: {line}");
            }
        }
    }
}
