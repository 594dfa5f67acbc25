//! The same picture as a file that browsers show.

use std::fmt::Write;

use super::Answer;
use super::plot::Series;
use crate::show;

/// How many columns are drawn: each is some pixels wide.
pub(super) const COLUMNS: usize = 210;

const WIDTH: u64 = 960;
const HEIGHT: u64 = 360;
/// Where the load is drawn.
const LEFT: u64 = 90;
const TOP: u64 = 64;
const PLOT_WIDTH: u64 = 840;
const PLOT_HEIGHT: u64 = 220;

/// How many characters of a title are shown.
const LONGEST_TITLE: usize = 100;

const BOTTOM: u64 = TOP + PLOT_HEIGHT;
const RIGHT: u64 = LEFT + PLOT_WIDTH;

const STYLE: &str = "text { font: 13px sans-serif; fill: #444 } .title { font-weight: bold; font-size: 15px; fill: #111 } \
    .load { fill: #5b8db8 } .delayed { fill: #e09b3d } .capacity { stroke: #b33a3a; stroke-width: 1.5; stroke-dasharray: 6 4 } \
    .axis { stroke: #999 } .end { text-anchor: end }";

/// Draws what was charged, what of it would have been delayed, and what the other definition allows.
pub(super) fn draw(answer: &Answer, series: &Series) -> String {
    let mut svg = String::new();
    // Writing to a string does not fail.
    let _ = write_svg(&mut svg, answer, series);
    svg
}

fn write_svg(svg: &mut String, answer: &Answer, series: &Series) -> std::fmt::Result {
    let top = series.top();
    let y = |amount: u64| BOTTOM - height(amount, top);
    writeln!(
        svg,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">"#
    )?;
    writeln!(svg, "<style>{STYLE}</style>")?;
    writeln!(
        svg,
        r##"<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>"##
    )?;
    let title = format!("{}: {}", answer.limit, answer.instead.definition);
    text(svg, (LEFT, 26), "title", &show::cut(&title, LONGEST_TITLE))?;
    let delayed = &answer.instead.delayed;
    let longest = delayed
        .longest_s
        .map(std::time::Duration::try_from_secs_f64);
    let longest = longest.and_then(Result::ok).map(show::duration);
    let longest = longest.map(|longest| format!(", by {longest} at most"));
    let figures = format!(
        "of {} charges, {} would have been refused, or {} delayed{}; {} never fit",
        show::number(answer.charges),
        show::number(answer.instead.refused.count),
        show::number(delayed.of_all.count),
        longest.unwrap_or_default(),
        show::number(answer.instead.never_fit.count),
    );
    text(svg, (LEFT, 46), "", &figures)?;
    let count = series.columns.len().max(1) as u64;
    let x = |column: u64| LEFT + column * PLOT_WIDTH / count;
    for (column, bar) in (0..).zip(&series.columns) {
        if bar.amount == 0 {
            continue;
        }
        let (from, wide) = (x(column), (x(column + 1) - x(column)).max(1));
        rect(svg, "load", (from, wide), height(bar.amount, top))?;
        rect(svg, "delayed", (from, wide), height(bar.delayed, top))?;
    }
    line(svg, "axis", (LEFT, BOTTOM), (RIGHT, BOTTOM))?;
    line(svg, "axis", (LEFT, TOP), (LEFT, BOTTOM))?;
    if series.capacity <= top {
        let at = y(series.capacity);
        line(svg, "capacity", (LEFT, at), (RIGHT, at))?;
    }
    text(svg, (LEFT - 6, TOP + 10), "end", &show::number(top))?;
    text(svg, (LEFT - 6, BOTTOM), "end", "0")?;
    let [first, last] = series.walls.map(show::time);
    text(svg, (LEFT, BOTTOM + 18), "", &first)?;
    text(svg, (RIGHT, BOTTOM + 18), "end", &last)?;
    legend(svg, answer, series)?;
    writeln!(svg, "</svg>")
}

fn legend(svg: &mut String, answer: &Answer, series: &Series) -> std::fmt::Result {
    let at = BOTTOM + 48;
    let caption = series.caption(answer.unit.as_deref());
    writeln!(
        svg,
        r#"<rect class="load" x="{LEFT}" y="{}" width="12" height="12"/>"#,
        at - 11
    )?;
    text(svg, (LEFT + 18, at), "", &caption)?;
    let delayed = LEFT + 470;
    writeln!(
        svg,
        r#"<rect class="delayed" x="{delayed}" y="{}" width="12" height="12"/>"#,
        at - 11
    )?;
    text(svg, (delayed + 18, at), "", "of that, delayed")?;
    let capacity = LEFT + 640;
    line(svg, "capacity", (capacity, at - 5), (capacity + 24, at - 5))?;
    let allowed = if series.capacity <= series.top() {
        "what is allowed, roughly"
    } else {
        "what is allowed: far above"
    };
    text(svg, (capacity + 30, at), "", allowed)
}

/// Whatever there is can be seen.
fn height(amount: u64, top: u64) -> u64 {
    let high = u128::from(amount) * u128::from(PLOT_HEIGHT) / u128::from(top.max(1));
    let high = u64::try_from(high).unwrap_or(PLOT_HEIGHT).min(PLOT_HEIGHT);
    if amount > 0 { high.max(1) } else { 0 }
}

fn rect(svg: &mut String, class: &str, (from, wide): (u64, u64), high: u64) -> std::fmt::Result {
    if high == 0 {
        return Ok(());
    }
    let y = BOTTOM - high;
    writeln!(
        svg,
        r#"<rect class="{class}" x="{from}" y="{y}" width="{wide}" height="{high}"/>"#
    )
}

fn line(svg: &mut String, class: &str, from: (u64, u64), to: (u64, u64)) -> std::fmt::Result {
    let ((x1, y1), (x2, y2)) = (from, to);
    writeln!(
        svg,
        r#"<line class="{class}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>"#
    )
}

fn text(svg: &mut String, (x, y): (u64, u64), class: &str, text: &str) -> std::fmt::Result {
    write!(svg, r#"<text class="{class}" x="{x}" y="{y}">"#)?;
    for character in text.chars() {
        match character {
            '<' => svg.push_str("&lt;"),
            '>' => svg.push_str("&gt;"),
            '&' => svg.push_str("&amp;"),
            // Keys have no control characters, and XML has none of these.
            '\u{fffe}' | '\u{ffff}' => svg.push('\u{fffd}'),
            character => svg.push(character),
        }
    }
    writeln!(svg, "</text>")
}
