//! The table of all limits.

use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::style::Style;
use ratatui::text::Span;
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState};
use unicode_width::UnicodeWidthStr;

use super::state::State;
use super::view::{BOLD, DIM, Palette, SELECTED, notes, sparkline};
use crate::show::{self, plain};
use crate::status::{Gauge, Standing};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Key,
    Limit,
    Bar,
    Used,
    Available,
    MoreIn,
    History,
    Notes,
}

/// In their order. What a limit is called, what is available of it, and why it lets nobody in never goes.
const COLUMNS: [(Column, show::Column); 8] = [
    (Column::Key, show::Column::key("KEY")),
    (Column::Limit, show::Column::left("LIMIT", 2).cut_to(14)),
    (Column::Bar, show::Column::left("", 4)),
    (Column::Used, show::Column::right("USED", 1)),
    (Column::Available, show::Column::right("AVAILABLE", 0)),
    (Column::MoreIn, show::Column::left("MORE IN", 3)),
    (Column::History, show::Column::left("LATELY", 5)),
    (Column::Notes, show::Column::left("", 0).cut_to(14)),
];

/// Where a part is named.
const LIMIT: usize = 1;

/// How long bars are, and how much is shown of the past.
const DRAWN: usize = 10;

/// Between two columns.
const GAP: u16 = 1;

/// A text, and how it looks.
type Text = (String, Style);

pub(super) fn draw_limits(frame: &mut Frame<'_>, area: Rect, state: &State, palette: Palette) {
    let shown = state.shown();
    if shown.is_empty() {
        let nothing = if state.seen.is_some() { "no keys" } else { "" };
        return frame.render_widget(Paragraph::new(Span::styled(nothing, DIM)), area);
    }
    let selected = state.selected(&shown);
    let mut rows: Vec<(bool, Vec<Text>)> = Vec::new();
    for (at, limit) in shown.iter().enumerate() {
        for position in 0..limit.parts.len().max(1) {
            let part = limit.parts.get(position);
            let text = |(column, _)| text(column, limit, (part, position == 0), state, palette);
            rows.push((at == selected, COLUMNS.map(text).to_vec()));
        }
    }
    let widest = |at: usize| {
        let texts = rows.iter().map(|(_, texts)| texts[at].0.width());
        // Columns do not come and go while somebody looks, but for what has no title.
        texts.max().unwrap_or(0).max(COLUMNS[at].1.title.len())
    };
    let widest: Vec<usize> = (0..COLUMNS.len()).map(widest).collect();
    let room = (usize::from(area.width), usize::from(GAP));
    let columns = show::layout(&COLUMNS.map(|(_, column)| column), &widest, room);
    let fitted = |at: usize, width: usize, text: &str| {
        let text = show::cut(text, width);
        let padding = " ".repeat(width.saturating_sub(text.width()));
        if COLUMNS[at].1.is_right {
            padding + &text
        } else {
            text
        }
    };
    let titles = columns.iter();
    let titles = titles.map(|(at, width)| Cell::from(fitted(*at, *width, COLUMNS[*at].1.title)));
    let selected_row = rows.iter().position(|(is_selected, _)| *is_selected);
    let names_parts = columns
        .iter()
        .any(|(at, _)| COLUMNS[*at].0 == Column::Limit);
    let table_rows = rows.iter().map(|(is_selected, texts)| {
        let cells = columns.iter().map(|(at, width)| {
            let (text, style) = &texts[*at];
            if !names_parts && COLUMNS[*at].0 == Column::Key && text.is_empty() {
                // Else nothing would tell one part of a limit from the other.
                let (name, _) = &texts[LIMIT];
                return Cell::from(fitted(*at, *width, &format!("  {name}"))).style(DIM);
            }
            Cell::from(fitted(*at, *width, text)).style(*style)
        });
        let style = if *is_selected { SELECTED } else { Style::new() };
        Row::new(cells.collect::<Vec<_>>()).style(style)
    });
    let widths = columns.iter();
    let widths = widths.map(|(_, width)| u16::try_from(*width).unwrap_or(u16::MAX));
    let table = Table::new(table_rows, widths.map(Constraint::Length))
        .header(Row::new(titles).style(DIM))
        .column_spacing(GAP);
    let mut position = TableState::default().with_selected(selected_row);
    frame.render_stateful_widget(table, area, &mut position);
}

fn text(
    column: Column,
    limit: &Standing,
    (part, is_first): (Option<&Gauge>, bool),
    state: &State,
    palette: Palette,
) -> Text {
    let text = |text: &str| (plain(text).into_owned(), Style::new());
    match (column, part) {
        (Column::Key, _) if is_first => (plain(&limit.key).into_owned(), BOLD),
        (Column::Limit, Some(part)) => text(&part.name),
        (Column::Limit, None) => text("breaker"),
        (Column::Bar, Some(part)) => {
            let bar = show::bar(part.used, part.capacity, DRAWN);
            (bar, palette.of_share(part.used_thousandths()))
        }
        (Column::Used, Some(part)) => {
            let used = show::number(part.used);
            (used, palette.of_share(part.used_thousandths()))
        }
        (Column::Used, None) => text(&show::number(limit.permits)),
        (Column::Available, Some(part)) => text(&show::number(part.available)),
        (Column::MoreIn, Some(part)) => {
            let more = part.next_release_in_s.map(show::seconds);
            text(&more.unwrap_or_default())
        }
        (Column::History, _) if is_first => text(&sparkline(state, &limit.key, DRAWN)),
        (Column::Notes, _) if is_first => {
            let notes = notes(limit, palette);
            (notes.content.into_owned(), notes.style)
        }
        _ => text(""),
    }
}
