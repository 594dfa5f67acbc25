//! How `top` looks.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState};
use unicode_width::UnicodeWidthStr;

use super::state::State;
use crate::show;
use crate::status::{Part, Standing};

/// What things are coloured with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Palette {
    is_coloured: bool,
}

impl Palette {
    pub(super) const fn coloured() -> Self {
        Self { is_coloured: true }
    }

    /// For those who want no colours: bold and reversed letters only.
    pub(super) const fn plain() -> Self {
        Self { is_coloured: false }
    }

    fn colour(self, colour: Color) -> Style {
        if self.is_coloured {
            Style::new().fg(colour)
        } else {
            Style::new()
        }
    }

    fn of_share(self, thousandths: u16) -> Style {
        match thousandths {
            1_000.. => self.colour(Color::Red),
            800.. => self.colour(Color::Yellow),
            _ => self.colour(Color::Green),
        }
    }
}

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const SELECTED: Style = Style::new().add_modifier(Modifier::REVERSED);

const HELP: [(&str, &str); 9] = [
    ("up, down, k, j", "select a limit"),
    ("PageUp, PageDown, Home, End", "go farther"),
    ("Enter", "look into the limit"),
    (
        "Esc, Backspace",
        "come back; Esc also shows all limits again",
    ),
    ("/", "show limits with these letters in their keys"),
    ("s", "sort by key, by what is used, by who waits"),
    ("p", "stand still, and go on"),
    ("?", "this help"),
    ("q, ^C", "quit"),
];

pub(super) fn draw(frame: &mut Frame<'_>, state: &State, palette: Palette) {
    let [head, body, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(header(state, head.width)), head);
    if state.shows_help {
        frame.render_widget(Paragraph::new(help()), body);
    } else if state.opened().is_some() {
        draw_detail(frame, body, state, palette);
    } else {
        draw_limits(frame, body, state, palette);
    }
    frame.render_widget(Paragraph::new(footer(state, palette)), foot);
}

fn header(state: &State, width: u16) -> Line<'static> {
    let mut left = state.file.clone();
    if let Some(seen) = &state.seen {
        let of = if seen.status.is_cut {
            ", the first 1000 shown"
        } else {
            ""
        };
        left = format!("{left}  {}{of}", show::counted(seen.status.keys, "key"));
    }
    let mut right = format!("by {}", state.sort.name());
    if !state.filter.is_empty() {
        right = format!("/{}  {right}", state.filter);
    }
    if state.is_still() {
        right = format!("STANDS STILL  {right}");
    }
    let room = usize::from(width).saturating_sub(right.width() + 2);
    let left = show::cut(&left, room);
    let gap = usize::from(width).saturating_sub(left.width() + right.width());
    Line::from(vec![
        Span::styled(left, BOLD),
        Span::raw(" ".repeat(gap)),
        Span::raw(right),
    ])
}

fn footer(state: &State, palette: Palette) -> Line<'static> {
    if state.is_typing {
        return Line::from(format!(
            "/{}_   Enter keeps it, Esc shows all",
            state.filter
        ));
    }
    if let Some(error) = &state.error {
        return Line::from(Span::styled(
            error.clone(),
            palette.colour(Color::Red).patch(BOLD),
        ));
    }
    let keys = if state.opened().is_some() {
        "Esc back  p stand still  ? help  q quit"
    } else {
        "Enter look into  / filter  s sort  p stand still  ? help  q quit"
    };
    Line::from(Span::styled(keys, DIM))
}

fn help() -> Vec<Line<'static>> {
    let line = |(keys, what): (&'static str, &'static str)| {
        Line::from(vec![
            Span::styled(format!("{keys:<28} "), BOLD),
            Span::raw(what),
        ])
    };
    HELP.into_iter().map(line).collect()
}

/// A column of the table of limits.
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

/// With the narrowest terminal on which each is shown, how wide it is, and its title.
const COLUMNS: [(Column, u16, u16, &str); 8] = [
    (Column::Key, 0, 0, "KEY"),
    (Column::Limit, 70, 20, "LIMIT"),
    (Column::Bar, 100, 10, ""),
    (Column::Used, 0, 9, "USED"),
    (Column::Available, 40, 9, "AVAILABLE"),
    (Column::MoreIn, 60, 11, "MORE IN"),
    (Column::History, 80, 10, "LATELY"),
    (Column::Notes, 50, 14, ""),
];

fn draw_limits(frame: &mut Frame<'_>, area: Rect, state: &State, palette: Palette) {
    let shown = state.shown();
    if shown.is_empty() {
        let nothing = if state.seen.is_some() { "no keys" } else { "" };
        return frame.render_widget(Paragraph::new(Span::styled(nothing, DIM)), area);
    }
    let columns: Vec<_> = COLUMNS
        .into_iter()
        .filter(|(_, narrowest, ..)| area.width >= *narrowest)
        .collect();
    // What keys leave is for notes.
    let longest = shown
        .iter()
        .map(|limit| limit.key.width())
        .max()
        .unwrap_or(0);
    let key_width = u16::try_from(longest)
        .unwrap_or(u16::MAX)
        .clamp(4, (area.width / 5 * 2).max(4));
    let widths = columns.iter().map(|(column, _, width, _)| match column {
        Column::Key => Constraint::Length(key_width),
        Column::Notes => Constraint::Fill(1),
        _ => Constraint::Length(*width),
    });
    let titles = columns.iter().map(|(.., title)| Cell::from(*title));
    let selected = state.selected(&shown);
    let mut rows = Vec::new();
    let mut selected_row = 0;
    for (at, limit) in shown.iter().enumerate() {
        if at == selected {
            selected_row = rows.len();
        }
        for position in 0..limit.parts.len().max(1) {
            let part = limit.parts.get(position);
            let cells = columns.iter().map(|(column, _, width, _)| {
                cell(
                    *column,
                    usize::from(*width),
                    limit,
                    (part, position == 0),
                    state,
                    palette,
                )
            });
            let row = Row::new(cells.collect::<Vec<_>>());
            rows.push(if at == selected {
                row.style(SELECTED)
            } else {
                row
            });
        }
    }
    let table = Table::new(rows, widths)
        .header(Row::new(titles).style(DIM))
        .column_spacing(1);
    let mut position = TableState::default().with_selected(selected_row);
    frame.render_stateful_widget(table, area, &mut position);
}

fn cell(
    column: Column,
    width: usize,
    limit: &Standing,
    (part, is_first): (Option<&Part>, bool),
    state: &State,
    palette: Palette,
) -> Cell<'static> {
    let number = |number: u64| {
        let number = show::number(number);
        Cell::from(format!("{number:>width$}"))
    };
    match (column, part) {
        (Column::Key, _) if is_first => Cell::from(limit.key.clone()).style(BOLD),
        (Column::Limit, Some(part)) => Cell::from(show::cut(&part.name, width)),
        (Column::Limit, None) => Cell::from("breaker"),
        (Column::Bar, Some(part)) => {
            let bar = show::bar(part.used, part.capacity, width);
            Cell::from(bar).style(palette.of_share(part.used_thousandths()))
        }
        (Column::Used, Some(part)) => {
            number(part.used).style(palette.of_share(part.used_thousandths()))
        }
        (Column::Used, None) => number(limit.permits),
        (Column::Available, Some(part)) => number(part.available),
        (Column::MoreIn, Some(part)) => {
            let seconds = part.next_release_in_s.map(show::from_seconds);
            Cell::from(seconds.map(show::duration).unwrap_or_default())
        }
        (Column::History, _) if is_first => Cell::from(sparkline(state, &limit.key, width)),
        (Column::Notes, _) if is_first => Cell::from(notes(limit, palette)),
        // The default spans no column.
        _ => Cell::from(""),
    }
}

fn notes(limit: &Standing, palette: Palette) -> Span<'static> {
    let style = if limit.is_blocked() {
        palette.colour(Color::Red).patch(BOLD)
    } else {
        Style::new()
    };
    Span::styled(limit.notes().0, style)
}

/// The last looks, the youngest to the right.
fn sparkline(state: &State, key: &str, width: usize) -> String {
    let levels = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let level = |thousandths: u16| levels[usize::from(thousandths.min(1_000)).div_ceil(125)];
    let line: Vec<char> = state.history(key).rev().take(width).map(level).collect();
    line.into_iter().rev().collect()
}

fn draw_detail(frame: &mut Frame<'_>, area: Rect, state: &State, palette: Palette) {
    let detail = state.seen.as_ref().and_then(|seen| seen.detail.as_ref());
    let Some(detail) = detail else {
        return frame.render_widget(Paragraph::new(Span::styled("…", DIM)), area);
    };
    let limit = &detail.standing;
    let mut lines = vec![Line::from(vec![
        Span::styled(limit.key.clone(), BOLD),
        Span::raw(format!(": {}  ", limit.definition)),
        notes(limit, palette),
    ])];
    for part in &limit.parts {
        let style = palette.of_share(part.used_thousandths());
        let more = part.next_release_in_s.map(show::from_seconds);
        let more = more.map(|more| format!(", more in {}", show::duration(more)));
        lines.push(Line::from(vec![
            Span::raw(format!("  {:<20} ", show::cut(&part.name, 20))),
            Span::styled(show::bar(part.used, part.capacity, 20), style),
            Span::raw(format!(
                " {} used, {} available{}",
                show::number(part.used),
                show::number(part.available),
                more.unwrap_or_default()
            )),
        ]));
    }
    let lately = sparkline(
        state,
        &limit.key,
        usize::from(area.width).saturating_sub(23),
    );
    lines.push(Line::from(format!("  {:<20} {lately}", "lately")));
    for (title, section) in &detail.sections {
        if section.is_empty() {
            continue;
        }
        lines.push(Line::default());
        lines.push(Line::from(Span::styled(*title, DIM)));
        lines.extend(section.iter().map(|line| Line::from(format!("  {line}"))));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

#[cfg(test)]
mod tests {
    use quotalite::{Backoff, Inspector, Limit, Limiter, MINUTE};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

    use super::*;
    use crate::status::Status;
    use crate::top::detail::Detail;
    use crate::top::state::{Seen, Sort, Then};

    /// What a look at a file with limits of each kind sees.
    fn looks(opened: &[Option<&str>]) -> Vec<Seen> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("limits.db");
        let limiter = Limiter::open(&path).unwrap();
        limiter
            .define(Limit::new("calls").per_minute(10).per_hour(100))
            .unwrap();
        limiter.define(Limit::slots("gpu", 2)).unwrap();
        limiter.define(Limit::new("quiet").per_hour(5)).unwrap();
        let _call = limiter.acquire(("calls", 10)).unwrap();
        let _slot = limiter.acquire("gpu").unwrap();
        limiter.pause("quiet", Backoff::planned(MINUTE)).unwrap();
        let inspector = Inspector::open(&path).unwrap();
        let look = |opened: Option<&str>| {
            let seen = inspector.look(|look| {
                Ok(Seen {
                    status: Status::read(look, "*", 1_000)?,
                    detail: opened.map(|key| Detail::read(look, key)).transpose()?,
                })
            });
            seen.unwrap()
        };
        opened.iter().copied().map(look).collect()
    }

    fn draw_at(state: &State, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal
            .draw(|frame| draw(frame, state, Palette::coloured()))
            .unwrap();
        terminal.backend().to_string()
    }

    fn press(state: &mut State, keys: &str) {
        for key in keys.chars() {
            let code = match key {
                '\n' => KeyCode::Enter,
                '\x1b' => KeyCode::Esc,
                key => KeyCode::Char(key),
            };
            state.press(KeyEvent::new(code, KeyModifiers::NONE));
        }
    }

    fn shown(state: &State) -> Vec<&str> {
        state
            .shown()
            .iter()
            .map(|limit| limit.key.as_str())
            .collect()
    }

    #[test]
    fn it_draws_at_every_size() {
        let mut seen = looks(&[None, Some("gpu")]).into_iter();
        let mut state = State::new("/srv/limits.db".to_owned());
        draw_at(&state, 80, 24);
        state.saw(Ok(seen.next().unwrap()));
        let wide = draw_at(&state, 200, 60);
        for part in [
            "calls", "10/min", "100/h", "2 slots", "1 permit", "paused", "3 keys", "LATELY",
            "q quit",
        ] {
            assert!(wide.contains(part), "{part}: {wide}");
        }
        let columns: Vec<_> = ["10/min", "100/h", "2 slots"]
            .map(|part| wide.find(part))
            .into();
        let starts = columns
            .iter()
            .map(|at| wide[..at.unwrap()].rsplit('\n').next().unwrap().len());
        let starts: std::collections::BTreeSet<_> = starts.collect();
        assert_eq!(starts.len(), 1, "{wide}");
        let narrow = draw_at(&state, 40, 12);
        assert!(
            narrow.contains("calls") && narrow.contains("AVAILABLE"),
            "{narrow}"
        );
        press(&mut state, "j\n");
        state.saw(Ok(seen.next().unwrap()));
        let detail = draw_at(&state, 80, 24);
        let pid = format!("process {}", std::process::id());
        for part in [
            "gpu: 2 slots",
            "PERMITS",
            &pid,
            "CHANGES",
            "created: 2 slots",
        ] {
            assert!(detail.contains(part), "{part}: {detail}");
        }
        for (width, height) in [(1, 1), (2, 3), (10, 2), (39, 1), (300, 100)] {
            draw_at(&state, width, height);
            press(&mut state, "?");
            draw_at(&state, width, height);
            press(&mut state, "?");
        }
    }

    #[test]
    fn keys_select_sort_filter_open_and_quit() {
        let mut seen = looks(&[None, None, Some("quiet"), None]).into_iter();
        let mut state = State::new(String::new());
        press(&mut state, "jk\n\x1bs/x\n");
        state.saw(Ok(seen.next().unwrap()));
        assert_eq!(shown(&state), [""; 0]);
        press(&mut state, "\x1b");
        assert_eq!(
            (state.sort, shown(&state)),
            (Sort::Used, vec!["calls", "gpu", "quiet"])
        );
        press(&mut state, "s");
        assert_eq!(
            (state.sort, shown(&state)),
            (Sort::Waiting, vec!["gpu", "calls", "quiet"])
        );
        // What is selected stays so, wherever it is sorted to.
        press(&mut state, "ss");
        press(&mut state, "jjj");
        assert_eq!(state.selected(&state.shown()), 2);
        press(&mut state, "/u");
        assert_eq!(shown(&state), ["gpu", "quiet"]);
        assert_eq!(state.selected(&state.shown()), 1);
        press(&mut state, "\n\n");
        assert_eq!(state.opened(), Some("quiet"));
        // A failure changes nothing but the last line.
        state.saw(Err("gone".to_owned()));
        assert_eq!(
            (state.opened(), shown(&state)),
            (Some("quiet"), vec!["gpu", "quiet"])
        );
        assert!(draw_at(&state, 60, 10).contains("gone"));
        seen.next();
        state.saw(Ok(seen.next().unwrap()));
        assert!(!draw_at(&state, 60, 10).contains("gone"));
        press(&mut state, "\x1bp");
        assert!(state.is_still() && state.opened().is_none());
        // The limit that is looked into is removed.
        press(&mut state, "\n");
        state.saw(Ok(seen.next().unwrap()));
        assert_eq!(state.opened(), None);
        let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(state.press(control_c), Then::Quit);
        let quit = KeyEvent::new(KeyCode::Char('q'), KeyModifiers::NONE);
        assert_eq!(state.press(quit), Then::Quit);
    }

    #[test]
    fn lately_is_remembered_for_a_minute_of_looks() {
        let mut state = State::new(String::new());
        for seen in looks(&[None; 70]) {
            state.saw(Ok(seen));
        }
        assert_eq!(state.history("calls").count(), 60);
        assert_eq!(sparkline(&state, "calls", 4), "████");
        assert_eq!(sparkline(&state, "gpu", 3), "▄▄▄");
        assert_eq!(sparkline(&state, "quiet", 3), "   ");
        assert_eq!(sparkline(&state, "nobody", 3), "");
    }
}
