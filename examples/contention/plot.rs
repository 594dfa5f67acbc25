//! The same figures as a picture: throughput and times of calls by how many call at once.

use std::error::Error;
use std::ops::Range;
use std::path::Path;

use plotters::chart::{ChartBuilder, SeriesLabelPosition};
use plotters::coord::Shift;
use plotters::coord::combinators::IntoLogRange;
use plotters::element::{Circle, PathElement};
use plotters::prelude::{DrawingArea, IntoDrawingArea, SVGBackend};
use plotters::series::LineSeries;
use plotters::style::{BLACK, Color, RGBColor, ShapeStyle, WHITE};

use crate::Failure;
use crate::records::Row;
use crate::subjects::Calls;

const SIZE: (u32, u32) = (1_100, 800);
const FONT: &str = "sans-serif";
const COLORS: [RGBColor; 4] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(90, 90, 90),
];

const MOST_CALLERS_LOG2: f64 = 5.0;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A line in a panel: for each number of callers, a figure.
struct Line {
    label: &'static str,
    points: Vec<(f64, f64)>,
}

struct Panel {
    title: String,
    lines: Vec<Line>,
    format: fn(&f64) -> String,
}

/// Above, the throughput relative to the baseline; below, the times of calls that are granted. Left threads, right
/// processes.
pub fn draw(path: &Path, rows: &[Row<'_>]) -> Result<(), Failure> {
    let crowds = ["threads", "processes"];
    let above = crowds.map(|crowd| throughput(rows, crowd));
    let below = crowds.map(|crowd| times(rows, crowd));
    let failed = |error: Box<dyn Error>| format!("{}: {error}", path.display());
    draw_panels(path, &[above, below]).map_err(|error| failed(error).into())
}

fn throughput(rows: &[Row<'_>], crowd: &str) -> Panel {
    let line = |(calls, label)| Line {
        label,
        points: points(rows, crowd, calls, |row| row.to_raw),
    };
    let mut lines: Vec<Line> = [
        (Calls::Granted, "granted"),
        (Calls::Mixed, "mixed"),
        (Calls::Refused, "refused"),
    ]
    .map(line)
    .into();
    lines.push(Line {
        label: "raw, one process",
        points: vec![(0.0, 1.0), (MOST_CALLERS_LOG2, 1.0)],
    });
    Panel {
        title: format!("{crowd}: throughput / raw"),
        lines,
        format: |ratio| format!("{ratio}"),
    }
}

fn times(rows: &[Row<'_>], crowd: &str) -> Panel {
    let line = |label, time: fn(&Row<'_>) -> std::time::Duration| Line {
        label,
        points: points(rows, crowd, Calls::Granted, |row| {
            time(row).as_secs_f64() * 1e6
        }),
    };
    Panel {
        title: format!("{crowd}: time of a granted call"),
        lines: vec![
            line("p50", |row| row.p50),
            line("p99", |row| row.p99),
            line("p99.9", |row| row.p999),
            line("worst", |row| row.worst),
        ],
        format: |micros| match micros {
            ..1e3 => format!("{micros} µs"),
            1e3..1e6 => format!("{} ms", micros / 1e3),
            _ => format!("{} s", micros / 1e6),
        },
    }
}

fn points(
    rows: &[Row<'_>],
    crowd: &str,
    calls: Calls,
    figure: impl Fn(&Row<'_>) -> f64,
) -> Vec<(f64, f64)> {
    let mut points = Vec::new();
    for row in rows {
        let subject = row.subject;
        if subject.calls == calls && subject.id.starts_with(crowd) {
            let callers = u32::try_from(subject.callers()).unwrap_or(u32::MAX);
            points.push((f64::from(callers).log2(), figure(row)));
        }
    }
    points
}

fn draw_panels(path: &Path, panels: &[[Panel; 2]; 2]) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    for (row, panels) in root.split_evenly((2, 1)).iter().zip(panels) {
        // Panels beside each other have the same scale.
        let scale = scale(panels.iter().flat_map(|panel| &panel.lines));
        for (area, panel) in row.split_evenly((1, 2)).iter().zip(panels) {
            draw_panel(area, panel, scale.clone())?;
        }
    }
    root.present()?;
    Ok(())
}

/// Whole decades, and two more above for the legend.
fn scale<'a>(lines: impl Iterator<Item = &'a Line>) -> Range<f64> {
    let values = lines.flat_map(|line| line.points.iter().map(|point| point.1));
    let (least, most) = values.fold((f64::MAX, f64::MIN_POSITIVE), |(least, most), value| {
        (least.min(value), most.max(value))
    });
    let decade = |value: f64| 10_f64.powf(value.max(1e-3).log10().floor());
    decade(least)..decade(most) * 1_000.0
}

fn draw_panel(area: &Area<'_>, panel: &Panel, scale: Range<f64>) -> Result<(), Box<dyn Error>> {
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, (FONT, 20))
        .margin(12)
        .x_label_area_size(45)
        .y_label_area_size(65)
        .build_cartesian_2d(0.0..MOST_CALLERS_LOG2, scale.log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_labels(6)
        .x_label_formatter(&|log| format!("{}", log.exp2()))
        .y_label_formatter(&panel.format)
        .x_desc("callers")
        .label_style((FONT, 16))
        .draw()?;
    for (line, color) in panel.lines.iter().zip(COLORS) {
        let style = ShapeStyle::from(color).stroke_width(2);
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), style))?
            .label(line.label)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], style));
        chart.draw_series(
            line.points
                .iter()
                .map(|point| Circle::new(*point, 3, color.filled())),
        )?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.2))
        .label_font((FONT, 16))
        .draw()?;
    Ok(())
}
