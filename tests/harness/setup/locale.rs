//! The locale of a Spilo database: `en_US.utf-8`.
//!
//! C.UTF-8, which every machine has, is not sufficient: it sorts by code point, never changes its
//! order and has no collation version, so the programs' collation checks could not be tested.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::{Directories, tools};

/// None if the machine has the locale, otherwise a directory for LOCPATH.
pub(super) fn en_us(directories: &Directories) -> Result<Option<PathBuf>> {
    let known = Command::new("locale")
        .arg("-a")
        .stderr(Stdio::null())
        .output();
    if known.is_ok_and(|output| {
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .any(|line| line == "en_US.utf8")
    }) {
        return Ok(None);
    }
    let directory = directories.cache.join("locale");
    // glibc looks for this normalised spelling of the codeset.
    let finished = directory.join("en_US.utf8");
    if !finished.join("LC_COLLATE").is_file() {
        make(&directory, &finished)?;
    }
    Ok(Some(directory))
}

fn make(directory: &std::path::Path, finished: &std::path::Path) -> Result<()> {
    let localedef = tools::need("localedef")?;
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    let unfinished = directory.join("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).context("removing an unfinished locale")?;
    }
    let mut command = Command::new(localedef);
    command
        .args(["--no-archive", "-i", "en_US", "-f", "UTF-8"])
        .arg(&unfinished);
    let output = command.output().context("starting localedef")?;
    if !unfinished.join("LC_COLLATE").is_file() {
        let message = String::from_utf8_lossy(&output.stderr).replace('\n', " ");
        bail!(
            "the locale en_US.UTF-8 is missing and cannot be made ({}); {}",
            message.trim(),
            tools::HINT
        );
    }
    if finished.exists() {
        fs::remove_dir_all(finished).context("removing an unfinished locale")?;
    }
    super::python::open(&unfinished)?;
    fs::rename(&unfinished, finished).context("putting the locale into place")
}
