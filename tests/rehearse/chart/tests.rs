//! Tests of the chart.

use std::time::Duration;

use super::*;
use crate::report::{
    Mark,
    example::{at, failed, odd, passed},
};

#[test]
fn every_step_and_every_mark_is_named() {
    let report = passed();
    let svg = draw(&report).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    for step in &report.steps {
        assert!(svg.contains(&step.name), "{}", step.name);
    }
    for words in [
        "DOWNTIME BEGINS  +0.00 s",
        "POINT OF NO RETURN  +0.61 s",
        "DOWNTIME ENDS  +4.41 s",
        "target: promoting",
    ] {
        assert!(svg.contains(words), "{words}");
    }
    assert!(svg.contains("3,680 ms"));
}

#[test]
fn a_step_that_is_over_before_the_axis_begins_is_named_all_the_same() {
    let svg = draw(&passed()).unwrap();
    assert!(
        svg.contains("‹ 1,400 ms"),
        "the check before the block lies outside"
    );
}

#[test]
fn the_style_sheet_has_a_rule_for_every_colour() {
    let style = style();
    for svg in [passed(), failed(), odd(), Report::default()]
        .iter()
        .map(|report| draw(report).unwrap())
    {
        for attribute in ["fill=\"#", "stroke=\"#"] {
            for (position, _) in svg.match_indices(attribute) {
                let rule = format!("[{}", &svg[position..position + attribute.len() + 7]);
                assert!(style.contains(&rule), "{rule}");
            }
        }
    }
}

#[test]
fn without_writes_it_says_so() {
    let svg = draw(&Report::default()).unwrap();
    assert!(svg.contains("no write was acknowledged"));
    assert!(!svg.contains("NaN"));
}

#[test]
fn the_axis_shows_the_cutover_with_a_margin() {
    let report = passed();
    let window = Window::for_report(&report);
    assert!(
        (window.from + 1.1025).abs() < 1e-9 && (window.to - 5.5125).abs() < 1e-9,
        "{window:?}"
    );
    assert_eq!(window.position(at(9_500)), 1.5);
}

#[test]
fn without_a_block_the_whole_run_is_shown() {
    let report = Report {
        series: passed().series,
        ..Report::default()
    };
    let window = Window::for_report(&report);
    assert_eq!((window.from, window.to), (0.0, 19.9));
    assert_eq!(Window::for_report(&Report::default()).to, 1.0);
}

#[test]
fn a_mark_near_the_right_edge_is_written_to_the_left() {
    let mut report = passed();
    report.marks = vec![Mark {
        name: "A".repeat(120),
        at: at(12_000),
    }];
    let svg = draw(&report).unwrap();
    let text = svg
        .split("<text")
        .find(|element| element.contains("AAAA"))
        .unwrap();
    assert!(text.contains(r#"text-anchor="end""#), "{text}");
}

#[test]
fn writes_of_both_sides_in_one_slice_are_stacked() {
    let slice = |start, source, target| Bucket {
        start: Duration::from_millis(start),
        source,
        target,
    };
    let report = Report {
        series: vec![slice(0, 10, 0), slice(100, 10, 10), slice(200, 0, 10)],
        ..Report::default()
    };
    let svg = draw(&report).unwrap();
    let highest = |color: &str| {
        let areas = svg
            .split("<polygon")
            .filter(|element| element.contains(color));
        let points =
            areas.filter_map(|element| element.split("points=\"").nth(1)?.split('"').next());
        let heights = points.flat_map(|points| {
            points
                .split_whitespace()
                .filter_map(|point| point.split(',').nth(1)?.parse::<i32>().ok())
        });
        heights.min().unwrap()
    };
    assert!(
        highest("#1F6FC4") < highest("#B45F06"),
        "the sum is higher than the source's part"
    );
}
