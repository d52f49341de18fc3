//! Runs init containers that were added to the instance's pod, with the pod's mounts translated to
//! this machine's directories.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Container;
use tokio::time::timeout;

use super::volume::Volume;
use crate::setup::Setup;

/// Limit for an init container.
const LIMIT: Duration = Duration::from_secs(60);

/// The directories of a pod's volumes on this machine, by volume name.
pub type Mounts<'a> = [(&'a str, PathBuf)];

/// Runs one init container to its end. Its program is found by name in `programs`; paths below its
/// mounts are translated in arguments and environment; it inherits nothing else from this machine's
/// environment.
///
/// # Errors
/// The program is missing, the container has no command (an image's entry point is unknown here),
/// or the exit code is not 0; the error holds the output.
pub async fn run(
    setup: &'static Setup,
    programs: &Path,
    volume: &Volume,
    container: &Container,
    mounts: &Mounts<'_>,
) -> Result<String> {
    let name = &container.name;
    let words: Vec<&String> = container
        .command
        .iter()
        .flatten()
        .chain(container.args.iter().flatten())
        .collect();
    let Some((program, arguments)) = words.split_first().filter(|_| container.command.is_some())
    else {
        bail!("init container {name}: no command, and the image's entry point is unknown here");
    };
    let file = Path::new(program)
        .file_name()
        .and_then(std::ffi::OsStr::to_str)
        .unwrap_or_default();
    let built = programs.join(file);
    let copy = volume.program(&built, file).with_context(|| {
        format!("init container {name}: build {file} first (cargo build -p {file})")
    })?;
    let translate = |text: &str| translated(text, container, mounts);
    let mut command = setup.user.command(&copy);
    command.args(arguments.iter().map(|argument| translate(argument)));
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("TERMINATION_LOG", volume.path("termination-log"));
    for variable in container.env.iter().flatten() {
        command.env(
            &variable.name,
            translate(variable.value.as_deref().unwrap_or_default()),
        );
    }
    command.current_dir("/").stdin(Stdio::null());
    let running = tokio::process::Command::from(command)
        .kill_on_drop(true)
        .output();
    let output = timeout(LIMIT, running)
        .await
        .with_context(|| format!("init container {name} did not end"))??;
    let output_text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    if !output.status.success() {
        bail!(
            "init container {name}: {}: {}",
            output.status,
            output_text.trim()
        );
    }
    Ok(output_text)
}

/// Replaces the paths of the container's mounts; the longest path is tried first.
fn translated(text: &str, container: &Container, mounts: &Mounts<'_>) -> String {
    let mut places: Vec<(&str, &Path)> = container
        .volume_mounts
        .iter()
        .flatten()
        .filter_map(|mount| {
            Some((
                mount.mount_path.trim_end_matches('/'),
                mounts
                    .iter()
                    .find(|(name, _)| *name == mount.name)?
                    .1
                    .as_path(),
            ))
        })
        .collect();
    places.sort_by_key(|(mount, _)| std::cmp::Reverse(mount.len()));
    let at_boundary = |mount: &str| {
        let (before, after) = text.split_once(mount)?;
        (after.is_empty() || after.starts_with('/')).then(|| (before.to_owned(), after.to_owned()))
    };
    for (mount, directory) in places {
        if let Some((before, after)) = at_boundary(mount) {
            return format!("{before}{}{after}", directory.display());
        }
    }
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_below_a_mount_are_translated_and_others_are_not() {
        let container: Container = serde_json::from_value(json!({
            "name": "c",
            "volumeMounts": [
                {"name": "pgdata", "mountPath": "/var/lib/postgresql/data"},
                {"name": "other", "mountPath": "/x"}
            ],
        }))
        .unwrap();
        let mounts = [("pgdata", PathBuf::from("/run/database-1/data"))];
        let at = |text: &str| translated(text, &container, &mounts);
        assert_eq!(
            at("/var/lib/postgresql/data/pgdata"),
            "/run/database-1/data/pgdata"
        );
        assert_eq!(
            at("--pgdata=/var/lib/postgresql/data"),
            "--pgdata=/run/database-1/data"
        );
        assert_eq!(
            at("/var/lib/postgresql/database"),
            "/var/lib/postgresql/database"
        );
        assert_eq!(at("/x/y"), "/x/y");
    }
}
