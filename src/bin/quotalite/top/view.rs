//! How `top` looks.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;
use unicode_width::UnicodeWidthStr;

use super::detail::Detail;
use super::list::draw_limits;
use super::state::State;
use crate::show::{self, plain};
use crate::status::Standing;

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

    pub(super) fn of_share(self, thousandths: u16) -> Style {
        match thousandths {
            1_000.. => self.colour(Color::Red),
            800.. => self.colour(Color::Yellow),
            _ => self.colour(Color::Green),
        }
    }
}

pub(super) const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
pub(super) const DIM: Style = Style::new().add_modifier(Modifier::DIM);
pub(super) const SELECTED: Style = Style::new().add_modifier(Modifier::REVERSED);

const HELP: [(&str, &str); 9] = [
    ("up, down, k, j", "select, or scroll"),
    ("PgUp PgDn Home End", "go farther"),
    ("Enter", "look into the limit"),
    ("Esc, Backspace", "come back, show all"),
    ("/", "filter the keys"),
    ("s", "sort in another way"),
    ("p", "stand still, go on"),
    ("?", "this help"),
    ("q, ^C", "quit"),
];

pub(super) fn draw(frame: &mut Frame<'_>, state: &mut State, palette: Palette) {
    let [head, body, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    // Below the titles, or the key.
    state.page = usize::from(body.height).saturating_sub(1).max(1);
    let mut shown = None;
    if state.shows_help {
        frame.render_widget(Paragraph::new(help()), body);
    } else if state.opened().is_some() {
        shown = draw_detail(frame, body, state, palette);
    } else {
        draw_limits(frame, body, state, palette);
    }
    let head_line = header(state, shown, head.width);
    frame.render_widget(Paragraph::new(head_line), head);
    frame.render_widget(Paragraph::new(footer(state, foot.width, palette)), foot);
}

/// The file and how it is looked at, or which lines of how many are shown.
fn header(state: &State, shown: Option<String>, width: u16) -> Line<'static> {
    let mut left = plain(&state.file).into_owned();
    if let Some(seen) = state.seen.as_ref().filter(|_| state.opened().is_none()) {
        let of = if seen.status.is_cut {
            ", the first 1000 shown"
        } else {
            ""
        };
        left = format!("{left}  {}{of}", show::counted(seen.status.keys, "key"));
    }
    let mut right = match (state.opened(), shown) {
        (Some(_), shown) => shown.unwrap_or_default(),
        (None, _) if state.filter.is_empty() => format!("by {}", state.sort.name()),
        (None, _) => format!("/{}  by {}", state.filter, state.sort.name()),
    };
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

/// The keys that matter most come first where not all of them fit.
const KEYS: [&str; 3] = [
    "Enter look into  / filter  s sort  p stand still  ? help  q quit",
    "Enter open  / filter  ? help  q quit",
    "? help  q quit",
];
const KEYS_INSIDE: [&str; 3] = [
    "Up Down PgUp PgDn scroll  Esc back  p stand still  ? help  q quit",
    "Up Down scroll  Esc back  ? help  q quit",
    "Esc back  ? help",
];

fn footer(state: &State, width: u16, palette: Palette) -> Line<'static> {
    if state.is_typing {
        return Line::from(format!(
            "/{}_   Enter keeps it, Esc shows all",
            state.filter
        ));
    }
    if let Some(error) = &state.error {
        return Line::from(Span::styled(
            plain(error).into_owned(),
            palette.colour(Color::Red).patch(BOLD),
        ));
    }
    let keys = if state.opened().is_some() {
        KEYS_INSIDE
    } else {
        KEYS
    };
    let fits = |keys: &&str| keys.width() <= usize::from(width);
    let keys = keys.into_iter().find(fits).unwrap_or(keys[2]);
    Line::from(Span::styled(keys, DIM))
}

fn help() -> Vec<Line<'static>> {
    let line = |(keys, what): (&'static str, &'static str)| {
        Line::from(vec![
            Span::styled(format!("{keys:<19} "), BOLD),
            Span::raw(what),
        ])
    };
    HELP.into_iter().map(line).collect()
}

pub(super) fn notes(limit: &Standing, palette: Palette) -> Span<'static> {
    let style = if limit.is_blocked() {
        palette.colour(Color::Red).patch(BOLD)
    } else {
        Style::new()
    };
    Span::styled(plain(&limit.notes().0).into_owned(), style)
}

/// The last looks, the youngest to the right.
pub(super) fn sparkline(state: &State, key: &str, width: usize) -> String {
    let levels = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let level = |thousandths: u16| levels[usize::from(thousandths.min(1_000)).div_ceil(125)];
    let line: Vec<char> = state.history(key).rev().take(width).map(level).collect();
    line.into_iter().rev().collect()
}

/// Returns which lines are shown, if not all of them are.
fn draw_detail(
    frame: &mut Frame<'_>,
    area: Rect,
    state: &mut State,
    palette: Palette,
) -> Option<String> {
    let detail = state.seen.as_ref().and_then(|seen| seen.detail.as_ref());
    let is_opened = |detail: &&Detail| state.opened() == Some(&*detail.standing.key);
    let Some(detail) = detail.filter(is_opened) else {
        frame.render_widget(Paragraph::new(Span::styled("…", DIM)), area);
        return None;
    };
    let [head, body] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
    let columns = usize::from(area.width);
    let key = show::cut(&plain(&detail.standing.key), columns);
    let title = Line::from(vec![
        Span::styled(key, BOLD),
        Span::raw("  "),
        notes(&detail.standing, palette),
    ]);
    frame.render_widget(Paragraph::new(title), head);
    let lines = lines(state, detail, columns, palette);
    let (count, fit) = (lines.len(), usize::from(body.height));
    let first = state.scrolled.min(count.saturating_sub(fit));
    let shown: Vec<_> = lines.into_iter().skip(first).take(fit).collect();
    let last = first + shown.len();
    frame.render_widget(Paragraph::new(shown), body);
    state.scrolled = first;
    (last - first < count).then(|| format!("lines {}-{last} of {count}", first + 1))
}

/// All there is to see of a limit, below its key.
fn lines(state: &State, detail: &Detail, columns: usize, palette: Palette) -> Vec<Line<'static>> {
    let limit = &detail.standing;
    let wrapped = |text: &str| show::wrapped(&plain(text), columns, 4);
    let mut lines: Vec<Line<'static>> = Vec::new();
    lines.extend(wrapped(&limit.definition).into_iter().map(Line::from));
    for text in &detail.state {
        let style = palette.colour(Color::Yellow);
        lines.extend(
            wrapped(text)
                .into_iter()
                .map(|line| Line::styled(line, style)),
        );
    }
    lines.extend(gauges(state, limit, columns, palette));
    for section in &detail.sections {
        if section.count == 0 {
            continue;
        }
        lines.push(Line::default());
        let title = format!("{} ({})", section.title, show::number(section.count as u64));
        lines.push(Line::styled(title, DIM));
        for line in show::aligned(&section.rows) {
            lines.extend(wrapped(&format!("  {line}")).into_iter().map(Line::from));
        }
        let untold = section.count - section.rows.len();
        if untold > 0 {
            lines.push(Line::from(format!("  and {untold} more")));
        }
    }
    lines
}

/// A line for each part of a limit, and one for what it has used lately.
fn gauges(state: &State, limit: &Standing, columns: usize, palette: Palette) -> Vec<Line<'static>> {
    const LATELY: &str = "lately";
    const BAR: usize = 20;
    let names = limit.parts.iter().map(|part| part.name.width());
    let longest = names.chain([LATELY.len()]).max().unwrap_or(0);
    let name_width = longest.min(columns.saturating_sub(2));
    let texts: Vec<_> = limit
        .parts
        .iter()
        .map(|part| {
            let more = part.next_release_in_s.map(show::seconds);
            let more = more.map(|more| format!("more in {more}"));
            vec![
                format!("{} used", show::number(part.used)),
                format!("{} available", show::number(part.available)),
                more.unwrap_or_default(),
            ]
        })
        .collect();
    let texts = show::aligned(&texts);
    let longest = texts.iter().map(|text| text.width()).max().unwrap_or(0);
    let needed = name_width + 4 + longest;
    // What is in it comes before how it looks.
    let has_bar = needed + BAR + 2 <= columns;
    let mut lines = Vec::new();
    for (part, text) in limit.parts.iter().zip(texts) {
        let style = palette.of_share(part.used_thousandths());
        let name = show::cut(&plain(&part.name), name_width);
        let name = format!("  {name:<name_width$}  ");
        if needed > columns {
            lines.push(Line::from(name));
            let below = show::wrapped(&format!("    {text}"), columns, 4);
            lines.extend(below.into_iter().map(|line| Line::styled(line, style)));
            continue;
        }
        let mut line = Line::from(name);
        if has_bar {
            let bar = show::bar(part.used, part.capacity, BAR);
            line.push_span(Span::styled(format!("{bar}  "), style));
        }
        line.push_span(Span::raw(text));
        lines.push(line);
    }
    let room = columns.saturating_sub(name_width + 4);
    let lately = sparkline(state, &limit.key, room);
    lines.push(Line::from(format!("  {LATELY:<name_width$}  {lately}")));
    lines
}

#[cfg(test)]
mod tests {
    use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
    use quotalite::{Backoff, Inspector, Limit, Limiter, MINUTE};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

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

    fn draw_at(state: &mut State, width: u16, height: u16) -> String {
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
        draw_at(&mut state, 80, 24);
        state.saw(Ok(seen.next().unwrap()));
        let wide = draw_at(&mut state, 200, 60);
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
        let narrow = draw_at(&mut state, 40, 12);
        // Where no column says which part of a limit it is, the key's does.
        for part in ["calls", "  100/h", "AVAILABLE", "q quit"] {
            assert!(narrow.contains(part), "{part}: {narrow}");
        }
        press(&mut state, "j\n");
        state.saw(Ok(seen.next().unwrap()));
        let detail = draw_at(&mut state, 80, 24);
        let pid = format!("process {}", std::process::id());
        for part in [
            "gpu  1 permit",
            "2 slots",
            "PERMITS (1)",
            &pid,
            "CHANGES",
            "created  2 slots  by ",
        ] {
            assert!(detail.contains(part), "{part}: {detail}");
        }
        for (width, height) in [(1, 1), (2, 3), (10, 2), (39, 1), (300, 100)] {
            draw_at(&mut state, width, height);
            press(&mut state, "?");
            draw_at(&mut state, width, height);
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
        assert!(draw_at(&mut state, 60, 10).contains("gone"));
        seen.next();
        state.saw(Ok(seen.next().unwrap()));
        assert!(!draw_at(&mut state, 60, 10).contains("gone"));
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
