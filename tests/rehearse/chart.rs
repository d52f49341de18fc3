//! The chart of the cutover as SVG: one row per step, and below it on the same axis the
//! acknowledged writes.
//!
//! A step of 50 ms and one of 3 s stand side by side, so every step has a row of its own: no label
//! can meet another. A screen that is narrower than the chart scrolls it.

mod palette;
mod rows;
mod window;

use anyhow::Result;
use harness::ledger::{Bucket, Gap};
use plotters::{
    coord::{Shift, types::RangedCoordf64, types::RangedCoordu32},
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::report::{Report, numbers};
pub use palette::style;
use window::Window;

// Measures in pixels.
const WIDTH: u32 = 1080;
/// Left of the axis: names of the rows and numbers of the axis.
const LEFT: u32 = 210;
const RIGHT: u32 = 16;
/// Height of a mark's line of text.
const MARK: u32 = 17;
const ROW: u32 = 21;
/// Between the rows and the writes: the words `source` and `target`.
const BAND: u32 = 34;
const PLOT: u32 = 210;
/// Below the axis: its numbers and what they mean.
const FOOT: u32 = 44;
const X_LABELS: usize = 14;

type Root<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Writes<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordu32>>;

/// The drawing area and what all parts of the chart need.
struct Canvas<'a> {
    root: Root<'a>,
    window: Window,
    /// Top of the rows, and of the writes' plot.
    rows_top: i32,
    plot_top: i32,
}

impl Canvas<'_> {
    /// The x coordinate of an instant, limited to the axis.
    fn x(&self, seconds: f64) -> i32 {
        let (left, right) = (f64::from(self.left()), f64::from(self.right()));
        let share = (seconds - self.window.from) / (self.window.to - self.window.from);
        (left + share.clamp(0.0, 1.0) * (right - left)).round() as i32
    }

    fn left(&self) -> i32 {
        LEFT as i32
    }

    fn right(&self) -> i32 {
        (WIDTH - RIGHT) as i32
    }

    fn plot_bottom(&self) -> i32 {
        self.plot_top + PLOT as i32
    }

    fn text(&self, text: &str, (x, y): (i32, i32), side: HPos, color: RGBColor) -> Result<()> {
        let style = palette::font()
            .color(&color)
            .pos(Pos::new(side, VPos::Center));
        Ok(self.root.draw(&Text::new(text.to_owned(), (x, y), style))?)
    }

    fn line(&self, from: (i32, i32), to: (i32, i32), color: impl Into<ShapeStyle>) -> Result<()> {
        Ok(self.root.draw(&PathElement::new(vec![from, to], color))?)
    }

    fn block(&self, from: (i32, i32), to: (i32, i32), color: impl Color) -> Result<()> {
        Ok(self
            .root
            .draw(&Rectangle::new([from, to], color.filled()))?)
    }
}

/// Draws the chart; the colours are those of [`style`].
///
/// # Errors
/// The drawing library's.
pub fn draw(report: &Report) -> Result<String> {
    let rows = rows::from_report(report);
    let rows_top = MARK * report.marks.len() as u32 + 6;
    let plot_top = rows_top + ROW * rows.len() as u32 + BAND;
    let mut svg = String::new();
    {
        let size = (WIDTH, plot_top + PLOT + FOOT);
        let canvas = Canvas {
            root: SVGBackend::with_string(&mut svg, size).into_drawing_area(),
            window: Window::for_report(report),
            rows_top: rows_top as i32,
            plot_top: plot_top as i32,
        };
        shade(&canvas, report)?;
        writes(&canvas, report)?;
        mark_lines(&canvas, report)?;
        rows::draw(&canvas, &rows)?;
        mark_texts(&canvas, report)?;
        waits(&canvas, report)?;
        canvas.root.present()?;
    }
    Ok(svg)
}

/// All intervals without a write that are shown, the cutover's first.
fn gaps(report: &Report) -> impl Iterator<Item = &Gap> {
    report.verdict.gap.iter().chain(&report.verdict.later_gaps)
}

fn shade(canvas: &Canvas, report: &Report) -> Result<()> {
    for gap in gaps(report) {
        let (from, to) = (
            canvas.x(canvas.window.position(gap.from)),
            canvas.x(canvas.window.position(gap.to)),
        );
        canvas.block(
            (from, canvas.rows_top),
            (to, canvas.plot_bottom()),
            palette::WAIT.mix(0.12),
        )?;
    }
    Ok(())
}

fn writes(canvas: &Canvas, report: &Report) -> Result<()> {
    let (_, lower) = canvas.root.split_vertically(canvas.plot_top);
    let peak = report
        .series
        .iter()
        .map(|bucket| bucket.source + bucket.target)
        .max()
        .unwrap_or(0);
    let mut chart = ChartBuilder::on(&lower)
        .margin_right(RIGHT)
        .set_label_area_size(LabelAreaPosition::Left, LEFT)
        .set_label_area_size(LabelAreaPosition::Bottom, FOOT)
        .build_cartesian_2d(
            canvas.window.from..canvas.window.to,
            0..(peak + peak / 12).max(4),
        )?;
    let label = palette::font().color(&palette::MUTED);
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(palette::GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(palette::MUTED)
        .x_labels(X_LABELS)
        .y_labels(5)
        .label_style(label.clone())
        .x_label_formatter(&|seconds| numbers::tick(*seconds))
        .x_desc(if report.block.is_some() {
            "seconds since the block"
        } else {
            "seconds since the start"
        })
        .axis_desc_style(label)
        .draw()?;
    // Stacked: the source's area covers its share of the sum.
    area(&mut chart, canvas, report, palette::TARGET, |bucket| {
        bucket.source + bucket.target
    })?;
    area(&mut chart, canvas, report, palette::SOURCE, |bucket| {
        bucket.source
    })?;
    if let Some(width) = report.slice_width() {
        let lines = [
            "acknowledged".to_owned(),
            format!("writes per {}", numbers::ms(width)),
        ];
        for (line, y) in lines.iter().zip((canvas.plot_top + 8..).step_by(16)) {
            canvas.text(line, (0, y), HPos::Left, palette::TEXT)?;
        }
    }
    if peak == 0 {
        let middle = (
            (canvas.left() + canvas.right()) / 2,
            canvas.plot_top + PLOT as i32 / 2,
        );
        canvas.text(
            "no write was acknowledged",
            middle,
            HPos::Center,
            palette::WAIT,
        )?;
    }
    Ok(())
}

/// A filled histogram without gaps between slices.
fn area(
    chart: &mut Writes,
    canvas: &Canvas,
    report: &Report,
    color: RGBColor,
    count: fn(&Bucket) -> u32,
) -> Result<()> {
    let Some(width) = report.slice_width() else {
        return Ok(());
    };
    let window = &canvas.window;
    let points = report.series.iter().flat_map(|bucket| {
        let (from, to) = (
            window.position(bucket.start),
            window.position(bucket.start + width),
        );
        let count = count(bucket);
        let seen = to > window.from && from < window.to;
        seen.then(|| [(from.max(window.from), count), (to.min(window.to), count)])
            .into_iter()
            .flatten()
    });
    chart.draw_series(AreaSeries::new(points, 0, color))?;
    Ok(())
}

/// A vertical line for each mark, below its text.
fn mark_lines(canvas: &Canvas, report: &Report) -> Result<()> {
    for (mark, top) in report.marks.iter().zip((0..).step_by(MARK as usize)) {
        let x = canvas.x(canvas.window.position(mark.at));
        canvas.line((x, top), (x, canvas.plot_bottom()), palette::TEXT.mix(0.75))?;
    }
    Ok(())
}

/// The instants, an own line of text each: a later one lies lower, so that no line crosses the
/// words of an earlier one.
fn mark_texts(canvas: &Canvas, report: &Report) -> Result<()> {
    let step = MARK;
    for (mark, y) in report
        .marks
        .iter()
        .zip((step as i32 / 2..).step_by(step as usize))
    {
        let seconds = canvas.window.position(mark.at);
        let x = canvas.x(seconds);
        let text = format!("{}  {}", mark.name, numbers::signed_seconds(seconds));
        let fits = x + palette::text_width(&text) + 6 <= WIDTH as i32;
        let (at, side) = if fits {
            (x + 6, HPos::Left)
        } else {
            (x - 6, HPos::Right)
        };
        canvas.text(&text, (at, y), side, palette::TEXT)?;
    }
    Ok(())
}

/// Labels each interval without a write with its length.
fn waits(canvas: &Canvas, report: &Report) -> Result<()> {
    let band = canvas.plot_top - BAND as i32 / 2;
    if let Some(gap) = &report.verdict.gap {
        let (from, to) = (
            canvas.x(canvas.window.position(gap.from)),
            canvas.x(canvas.window.position(gap.to)),
        );
        // Left of the block's line, if there is one.
        let from = report.block.map_or(from, |block| {
            from.min(canvas.x(canvas.window.position(block)))
        });
        canvas.text("source", (from - 6, band), HPos::Right, palette::SOURCE)?;
        canvas.text("target", (to + 6, band), HPos::Left, palette::TARGET)?;
    }
    for (number, gap) in gaps(report).enumerate() {
        let (from, to) = (
            canvas.x(canvas.window.position(gap.from)),
            canvas.x(canvas.window.position(gap.to)),
        );
        let y = canvas.plot_top + PLOT as i32 / 2 - 22 * (number as i32 % 4);
        let short = numbers::ms(gap.length());
        let long = format!("{short} without a write");
        let text = if palette::text_width(&long) < to - from {
            long
        } else {
            short
        };
        canvas.line((from, y), (to, y), palette::WAIT)?;
        for end in [from, to] {
            canvas.line((end, y - 5), (end, y + 5), palette::WAIT)?;
        }
        let half = palette::text_width(&text) / 2;
        let middle = ((from + to) / 2).clamp(
            canvas.left() + half,
            (canvas.right() - half).max(canvas.left() + half),
        );
        if 2 * half > to - from {
            canvas.block(
                (middle - half, y - 21),
                (middle + half, y - 3),
                palette::SURFACE.mix(0.85),
            )?;
        }
        canvas.text(&text, (middle, y - 12), HPos::Center, palette::WAIT)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
