//! The rows of steps above the chart of writes.

use anyhow::Result;
use plotters::style::{Color as _, RGBColor, text_anchor::HPos};

use super::{Canvas, ROW, palette};
use crate::report::{
    Report,
    budget::Cost,
    numbers::{ms, since},
};

/// The minimum width of a visible bar.
const BAR_WIDTH_MIN: i32 = 3;
/// Half of a bar's height.
const BAR_HALF: i32 = 6;

/// A row of the chart: a step, its time, and its colour.
pub struct Row {
    name: String,
    from: f64,
    to: Option<f64>,
    length: String,
    color: RGBColor,
}

/// The programs' steps, then the target's own work.
pub fn from_report(report: &Report) -> Vec<Row> {
    let zero = report.zero();
    let row = |cost: Cost, color| Row {
        from: since(zero, cost.from),
        to: cost.length.map(|length| since(zero, cost.from + length)),
        length: cost.length.map_or_else(|| "not finished".to_owned(), ms),
        name: cost.name,
        color,
    };
    let target = report.target_budget().into_iter().map(|mut cost| {
        cost.name = format!("target: {}", cost.name);
        cost
    });
    let mut rows: Vec<Row> = report
        .budget()
        .into_iter()
        .map(|cost| row(cost, palette::STEP))
        .collect();
    rows.extend(target.map(|cost| row(cost, palette::TARGET)));
    rows
}

/// Draws all rows.
pub fn draw(canvas: &Canvas, rows: &[Row]) -> Result<()> {
    let height = ROW as i32;
    for (number, row) in rows.iter().enumerate() {
        let top = canvas.rows_top + height * number as i32;
        canvas.line(
            (0, top + height),
            (canvas.right(), top + height),
            palette::GRID,
        )?;
        let middle = top + height / 2;
        canvas.text(
            &truncated(&row.name, 31),
            (0, middle),
            HPos::Left,
            palette::TEXT,
        )?;
        bar(canvas, row, middle)?;
    }
    Ok(())
}

fn bar(canvas: &Canvas, row: &Row, middle: i32) -> Result<()> {
    let window = &canvas.window;
    if row.to.is_some_and(|to| to < window.from) {
        return canvas.text(
            &format!("‹ {}", row.length),
            (canvas.left() + 4, middle),
            HPos::Left,
            palette::MUTED,
        );
    }
    if row.from > window.to {
        return canvas.text(
            &format!("{} ›", row.length),
            (canvas.right(), middle),
            HPos::Right,
            palette::MUTED,
        );
    }
    let from = canvas.x(row.from);
    let to = canvas
        .x(row.to.unwrap_or(window.to))
        .max(from + BAR_WIDTH_MIN);
    let strength = if row.to.is_some() { 1.0 } else { 0.4 };
    canvas.block(
        (from, middle - BAR_HALF),
        (to, middle + BAR_HALF),
        row.color.mix(strength),
    )?;
    let width = palette::text_width(&row.length) + 6;
    let (x, side) = if to + width <= canvas.right() {
        (to + 6, HPos::Left)
    } else if from - width >= canvas.left() {
        (from - 6, HPos::Right)
    } else {
        (to - 6, HPos::Right)
    };
    canvas.text(&row.length, (x, middle), side, palette::MUTED)
}

/// Truncates a name; the table below has it in full.
fn truncated(name: &str, characters_max: usize) -> String {
    if name.chars().count() <= characters_max {
        return name.to_owned();
    }
    name.chars().take(characters_max - 1).chain(['…']).collect()
}
