//! Tests of the page.

use std::{fs, path::Path};

use super::{super::example::*, *};

#[test]
fn the_page_says_pass_and_is_self_contained() {
    let page = page(&passed()).unwrap();
    assert!(
        page.contains("<title>PASS – cutover rehearsal mastodon-postgresql → database</title>")
    );
    assert!(page.contains(r#"<body class="pass">"#));
    let outside = page.replace("http://www.w3.org/2000/svg", "");
    for foreign in [
        "<script", "<link", "<img", "http:", "https:", "url(", "@import",
    ] {
        assert!(!outside.contains(foreign), "{foreign}");
    }
}

#[test]
fn a_failure_cannot_be_missed() {
    let page = page(&failed()).unwrap();
    assert!(page.contains("<title>FAIL – "));
    assert!(page.contains(r#"<body class="fail">"#));
    assert!(page.contains(r#"<p class="word">FAIL</p>"#));
    assert!(page.contains("<li>3 of 4,812 acknowledged writes lost</li>"));
    assert!(page.contains("<code>mastodon-sidekiq-federation-1 #211</code>"));
    assert!(page.contains("<details open"));
    assert!(!page.contains("PASS"));
}

#[test]
fn foreign_text_is_escaped() {
    let evil = "<script>alert('x') & \"y\"</script>".to_owned();
    let mut report = failed();
    report.names.source_cluster = evil.clone();
    report.names.namespace = evil.clone();
    report.steps[4].name = evil.clone();
    report.marks[1].name = evil.clone();
    report.verdict.lost[0].client = evil.clone();
    let gap = report.verdict.gap.unwrap();
    report.verdict.gap_by_client.insert(evil.clone(), gap);
    report.unmanaged.as_mut().unwrap().name = evil.clone();
    report.receipt.insert(evil.clone(), evil.clone());
    report.programs[0].name = evil.clone();
    report.programs[0].lines.push(evil.clone());
    report.broken = Some(evil);
    let page = page(&report).unwrap();
    assert!(!page.contains("<script"));
    assert!(
        page.matches("&lt;script&gt;").count() >= 12,
        "{}",
        page.matches("&lt;script&gt;").count()
    );
}

#[test]
fn many_broken_rows_are_counted_not_listed() {
    let mut report = failed();
    let key = report.verdict.lost[0].clone();
    report.verdict.lost = vec![key; 1_300];
    let page = page(&report).unwrap();
    assert!(page.contains("and 1,288 more"));
}

#[test]
fn an_empty_report_is_a_page_that_fails() {
    let page = page(&Report::default()).unwrap();
    assert!(
        page.contains(r#"<p class="word">FAIL</p>"#)
            && page.contains("no write was acknowledged, so nothing is verified")
    );
    assert!(!page.contains("NaN") && !page.contains("inf%"));
    assert!(
        !page.contains('✓') && page.contains("no acknowledged write was judged"),
        "no check mark is shown"
    );
}

/// The files stay in the target directory, to inspect changes of the page.
#[test]
fn the_examples_are_written_as_files() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/rehearse/example");
    fs::create_dir_all(&folder).unwrap();
    for (name, report) in [
        ("pass", passed()),
        ("fail", failed()),
        ("odd", odd()),
        ("empty", Report::default()),
    ] {
        let file = folder.join(format!("{name}.html"));
        fs::write(&file, page(&report).unwrap()).unwrap();
        assert!(fs::read_to_string(&file).unwrap().ends_with("</html>"));
    }
}
