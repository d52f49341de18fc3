//! Keeps the logs of a cutover that broke a promise; data is not kept.

use std::{fs, path::Path};

use anyhow::{Context, Result};

/// Directories without logs.
const DATA: [&str; 3] = ["etcd", "data", "programs"];

/// Copies all logs below a directory.
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

/// True for logs, except the API server's audit log, which is long and adds nothing.
fn is_log(name: &str) -> bool {
    let is_postgres_log = name.starts_with("postgres") && name.ends_with(".csv");
    name == "log"
        || is_postgres_log
        || name.ends_with(".out")
        || name.ends_with(".log") && name != "audit.log"
}
