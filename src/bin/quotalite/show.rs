//! How things look on a terminal.

mod plain;
mod table;

use std::io::{self, IsTerminal};
use std::time::{Duration, SystemTime};

use anstyle::{AnsiColor, Style};
use jiff::fmt::friendly::{Designator, SpanPrinter};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Unit, Zoned};
use quotalite::Look;
use quotalite::Timestamp;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

pub(crate) use self::plain::{Plain, escaped, plain};
pub(crate) use self::table::{Cell, Column, Table, layout};

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

/// A length of time that is printed for programs, as one.
pub(crate) fn from_seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

/// A length of time that is printed for programs, for people.
pub(crate) fn seconds(seconds: f64) -> String {
    duration(from_seconds(seconds))
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

/// A text in lines of at most so many columns, broken where there is a space if there is one. What follows the first line is
/// indented.
pub(crate) fn wrapped(text: &str, columns: usize, indent: usize) -> Vec<String> {
    let columns = columns.max(indent + 2);
    let mut lines = Vec::new();
    let mut rest = text;
    loop {
        let indent = if lines.is_empty() { 0 } else { indent };
        let room = columns - indent;
        let line = |text: &str| " ".repeat(indent) + text;
        if rest.width() <= room {
            lines.push(line(rest));
            return lines;
        }
        let mut fits = 0;
        let mut left = room;
        for (at, character) in rest.char_indices() {
            let width = character.width().unwrap_or(0);
            if width > left {
                break;
            }
            left -= width;
            fits = at + character.len_utf8();
        }
        // The space that ends a line need not fit.
        let end = rest[..fits].trim_end().len();
        let broken = if rest[fits..].starts_with(' ') {
            end
        } else {
            let start = rest.len() - rest.trim_start().len();
            let space = rest[..fits].rfind(' ').filter(|at| *at > start);
            space.map_or(fits, |at| rest[..at].trim_end().len())
        };
        lines.push(line(&rest[..broken]));
        rest = rest[broken..].trim_start();
    }
}

/// Rows as lines, with their columns two spaces apart.
pub(crate) fn aligned(rows: &[Vec<String>]) -> Vec<String> {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.width().max(*width);
        }
    }
    let line = |row: &Vec<String>| {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths).filter(|(_, width)| **width > 0) {
            line.push_str(cell);
            line.push_str(&" ".repeat(width - cell.width() + table::GAP));
        }
        line.truncate(line.trim_end().len());
        line
    };
    rows.iter().map(line).collect()
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
    fn long_lines_go_on_below_with_nothing_lost() {
        for (text, columns, lines) in [
            ("short", 10, &["short"][..]),
            ("", 10, &[""]),
            ("one two three", 8, &["one two", "  three"]),
            ("one two three", 7, &["one two", "  three"]),
            ("  one  two", 6, &["  one", "  two"]),
            ("unbroken", 5, &["unbro", "  ken"]),
            ("鍵鍵鍵", 4, &["鍵鍵", "  鍵"]),
            ("abc", 0, &["abc"]),
        ] {
            assert_eq!(wrapped(text, columns, 2), lines, "{text:?} in {columns}");
        }
        let text = "held for 3s  1 gpu  expires in 54m 9s  id a-very-long-id-without-a-space";
        for columns in 0..80 {
            let lines = wrapped(text, columns, 4);
            let told: String = lines.concat().split_whitespace().collect();
            assert_eq!(told, text.split_whitespace().collect::<String>());
            assert!(lines.iter().all(|line| line.width() <= columns.max(6)));
        }
    }

    #[test]
    fn rows_are_aligned_without_what_none_of_them_has() {
        let rows = [["a", "", "1"], ["long", "", ""], ["鍵", "", "22"]];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(aligned(&rows), ["a     1", "long", "鍵    22"]);
    }
}
