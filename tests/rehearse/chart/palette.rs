//! Colours and type of the chart. plotters writes colours into each element, where a style sheet
//! can still override them: every colour is mapped to a custom property of the page's style sheet,
//! which supports light and dark mode.

use std::fmt::Write as _;

use plotters::style::{FontDesc, FontFamily, FontStyle, RGBColor};

/// The page's background.
pub const SURFACE: RGBColor = RGBColor(0xff, 0xff, 0xff);
/// Text.
pub const TEXT: RGBColor = RGBColor(0x1b, 0x24, 0x30);
/// Secondary text, and axes.
pub const MUTED: RGBColor = RGBColor(0x5b, 0x66, 0x75);
/// Grid lines.
pub const GRID: RGBColor = RGBColor(0xdd, 0xe2, 0xe9);
/// The source.
pub const SOURCE: RGBColor = RGBColor(0xb4, 0x5f, 0x06);
/// The target.
pub const TARGET: RGBColor = RGBColor(0x1f, 0x6f, 0xc4);
/// A step of the programs.
pub const STEP: RGBColor = RGBColor(0x6b, 0x77, 0x88);
/// An interval in which clients wait.
pub const WAIT: RGBColor = RGBColor(0x8a, 0x2b, 0x6e);

const NAMES: [(&str, RGBColor); 8] = [
    ("surface", SURFACE),
    ("text", TEXT),
    ("muted", MUTED),
    ("grid", GRID),
    ("source", SOURCE),
    ("target", TARGET),
    ("step", STEP),
    ("wait", WAIT),
];

/// plotters divides sizes by 1.24: this is 12 px.
const SIZE: f64 = 12.0 * 1.24;
/// Approximate widths for a wide sans-serif face of 12 px.
const CAPITAL_WIDTH: f64 = 8.6;
const CHARACTER_WIDTH: f64 = 7.0;

/// The font of all text; the page's style sheet sets the family.
pub fn font() -> FontDesc<'static> {
    FontDesc::new(FontFamily::SansSerif, SIZE, FontStyle::Normal)
}

/// Approximate width of a text in pixels; only the browser knows the exact one.
pub fn text_width(text: &str) -> i32 {
    let capitals = text
        .chars()
        .filter(|character| character.is_uppercase())
        .count();
    let others = text.chars().count() - capitals;
    (capitals as f64 * CAPITAL_WIDTH + others as f64 * CHARACTER_WIDTH).ceil() as i32
}

/// Style rules that map each colour to its custom property.
pub fn style() -> String {
    NAMES.iter().fold(
        String::new(),
        |mut rules, (name, RGBColor(red, green, blue))| {
            for attribute in ["fill", "stroke"] {
                let _ = writeln!(
                    rules,
                    ".chart [{attribute}=\"#{red:02X}{green:02X}{blue:02X}\"] {{ {attribute}: \
                 var(--{name}) }}"
                );
            }
            rules
        },
    )
}
