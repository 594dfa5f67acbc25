//! Rows under titles.

use std::io::{self, Write};

use anstyle::Style;
use unicode_width::UnicodeWidthStr;

use super::{DIM, cut, plain};

/// One cell of a table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    pub(crate) fn styled(text: impl Into<String>, style: Style) -> Self {
        Self {
            text: plain(&text.into()).into_owned(),
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
    goes: u8,
    /// What it can be cut to before any column goes: so many characters, or so many tenths of the terminal.
    least: usize,
    least_tenths: usize,
}

impl Column {
    pub(crate) const fn left(title: &'static str, goes: u8) -> Self {
        Self {
            title,
            is_right: false,
            goes,
            least: usize::MAX,
            least_tenths: 0,
        }
    }

    pub(crate) const fn right(title: &'static str, goes: u8) -> Self {
        Self {
            is_right: true,
            ..Self::left(title, goes)
        }
    }

    /// What can be cut where it does not fit.
    pub(crate) const fn cut_to(self, least: usize) -> Self {
        Self { least, ..self }
    }

    /// The same for keys, which are told apart by their ends: they are left as much as can be.
    pub(crate) const fn key(title: &'static str) -> Self {
        Self {
            least_tenths: 3,
            ..Self::left(title, 0).cut_to(12)
        }
    }
}

/// Which of these columns are shown, and how wide each is. `widest` is how wide their texts are.
pub(crate) fn layout(
    columns: &[Column],
    widest: &[usize],
    (room, gap): (usize, usize),
) -> Vec<(usize, usize)> {
    let full = |at: usize| widest[at].max(columns[at].title.width());
    let least = |at: usize| {
        let Column {
            least,
            least_tenths,
            ..
        } = columns[at];
        full(at).min(least.max(room.saturating_mul(least_tenths) / 10))
    };
    let mut shown: Vec<(usize, usize)> = (0..columns.len())
        .filter(|at| widest[*at] > 0)
        .map(|at| (at, least(at)))
        .collect();
    let total = |shown: &[(usize, usize)]| {
        let cells: usize = shown.iter().map(|(_, width)| width).sum();
        cells + gap * shown.len().saturating_sub(1)
    };
    let goes = |shown: &[(usize, usize)]| {
        let each = shown.iter().map(|(at, _)| columns[*at].goes);
        let each = each.enumerate().filter(|(_, goes)| *goes > 0);
        each.max_by_key(|(_, goes)| *goes)
            .map(|(position, _)| position)
    };
    while total(&shown) > room
        && let Some(next) = goes(&shown)
    {
        shown.remove(next);
    }
    while total(&shown) > room
        && let Some((_, width)) = shown.iter_mut().max_by_key(|(_, width)| *width)
        && *width > LEAST
    {
        *width -= 1;
    }
    // What is left is for those that are cut, to each as much.
    let mut left = room.saturating_sub(total(&shown));
    loop {
        let before = left;
        for (at, width) in &mut shown {
            if left > 0 && *width < full(*at) {
                *width += 1;
                left -= 1;
            }
        }
        if left == before {
            return shown;
        }
    }
}

/// Rows under titles. Where they do not fit, columns are cut, and left out.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

/// Between two columns.
pub(super) const GAP: usize = 2;

/// No column is cut to less.
const LEAST: usize = 4;

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
    fn layout(&self, room: usize) -> Vec<(usize, usize)> {
        let widest = |at: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(at));
            cells.map(|cell| cell.text.width()).max().unwrap_or(0)
        };
        let widest: Vec<usize> = (0..self.columns.len()).map(widest).collect();
        layout(&self.columns, &widest, (room, GAP))
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

    #[test]
    fn what_can_be_cut_is_cut_before_anything_goes() {
        let mut table = Table::new([
            Column::key("KEY"),
            Column::left("LIMIT", 2).cut_to(6),
            Column::right("USED", 0),
            Column::left("", 1).cut_to(8),
        ]);
        let key = "global:llm:a-provider:a-model:rpm";
        table.row(["short", "10/s", "7", ""].map(Cell::from));
        table.row([key, "1500/calendar day", "1 234", "paused 4m 3s"].map(Cell::from));
        let text = |columns| {
            let mut out = Vec::new();
            table.write(&mut out, columns).unwrap();
            let out = anstream::adapter::strip_bytes(&out).into_vec();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            text(48),
            "\
KEY                LIMIT       USED
short              10/s           7
global:llm:a-pro…  1500/cal…  1 234  paused 4m …
"
        );
        assert_eq!(
            text(36),
            "\
KEY                USED
short                 7
global:llm:a-pr…  1 234  paused 4m …
"
        );
        for columns in 16..100 {
            for line in text(columns).lines() {
                assert!(line.width() <= columns, "{columns}: {line}");
            }
        }
    }

    #[test]
    fn a_cell_is_a_line_that_steers_nothing() {
        let mut table = Table::new([Column::left("BY", 0)]);
        table.row(["evil\u{1b}[2J\nworker"].map(Cell::from));
        let mut out = Vec::new();
        table.write(&mut out, 80).unwrap();
        let out = anstream::adapter::strip_bytes(&out).into_vec();
        assert_eq!(String::from_utf8(out).unwrap(), "BY\nevil?[2J?worker\n");
    }
}
