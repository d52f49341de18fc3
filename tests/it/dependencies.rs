//! What the crates may depend on: the lists are the promise that `docs/architecture.md` describes.

use std::{collections::BTreeSet, process::Command};

use crate::words::checkout;

/// All that the pure crate may name, directly or by another crate: data, dates, and names of
/// variants. No Kubernetes, TLS, asynchronous runtime or database client.
const OF_PROTOCOL: [&str; 18] = [
    "heck",
    "itoa",
    "jiff",
    "jiff-core",
    "jiff-static",
    "memchr",
    "portable-atomic",
    "portable-atomic-util",
    "proc-macro2",
    "protocol",
    "quote",
    "serde",
    "serde_core",
    "serde_derive",
    "serde_json",
    "strum",
    "strum_macros",
    "zmij",
];

/// Crates that macros bring along at build time.
const OF_MACROS: [&str; 3] = ["syn", "unicode-ident", "version_check"];

fn tree(package: &str) -> BTreeSet<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(checkout())
        .args(["tree", "--locked", "--offline", "--package", package])
        .args([
            "--edges",
            "normal,build",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ])
        .output()
        .expect("starting cargo");
    assert!(
        output.status.success(),
        "cargo tree: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let lines = String::from_utf8(output.stdout).expect("text");
    let names = lines.lines().filter_map(|line| line.split(' ').next());
    names
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_protocol_depends_on_data_alone() {
    let allowed: BTreeSet<&str> = OF_PROTOCOL.into_iter().chain(OF_MACROS).collect();
    let unexpected: Vec<String> = tree("protocol")
        .into_iter()
        .filter(|name| !allowed.contains(name.as_str()))
        .collect();
    assert!(
        unexpected.is_empty(),
        "shared/protocol must stay pure, and now also depends on {unexpected:?}"
    );
}

#[test]
fn arrows_between_the_crates_run_one_way() {
    const ORDER: [&str; 4] = ["protocol", "job", "platform", "cutover"];
    for (position, crate_name) in ORDER.into_iter().enumerate() {
        let above = &ORDER[position + 1..];
        let found = tree(crate_name);
        let wrong: Vec<&&str> = above.iter().filter(|name| found.contains(**name)).collect();
        assert!(
            wrong.is_empty(),
            "{crate_name} must not depend on {wrong:?}"
        );
    }
}
