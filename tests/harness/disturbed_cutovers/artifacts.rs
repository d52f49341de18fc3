//! What is kept of a cut that has broken a promise: all logs, no data.

use std::{fs, path::Path};

use anyhow::{Context, Result};

/// Directories in which no log lies.
const DATA: [&str; 3] = ["etcd", "data", "programs"];

/// Copies every log below a directory.
pub(super) fn logs(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let path = entry?.path();
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        if path.is_dir() && !DATA.contains(&name.as_str()) {
            logs(&path, &to.join(&name))?;
        } else if path.is_file() && is_log(&name) {
            fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
            fs::copy(&path, to.join(&name))
                .with_context(|| format!("copying {}", path.display()))?;
        }
    }
    Ok(())
}

/// The API server's audit log is too long, and tells nothing that the others do not.
fn is_log(name: &str) -> bool {
    let of_postgres = name.starts_with("postgres") && name.ends_with(".csv");
    name == "log"
        || of_postgres
        || name.ends_with(".out")
        || name.ends_with(".log") && name != "audit.log"
}
