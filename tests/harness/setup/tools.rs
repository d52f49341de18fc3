//! Tools that the machine must provide; the error for a missing one names the command that installs
//! it.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Result, anyhow};
use rustix::fs::{Access, access};

/// A tool in PATH.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    // Debian installs servers in /usr/sbin, which is not in every user's PATH.
    env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|directory| directory.join(name))
        .find(|file| is_program(file))
}

/// A tool in PATH, or an error that names the Debian package to install.
pub(super) fn need(name: &str, package: &str) -> Result<PathBuf> {
    find(name).ok_or_else(|| anyhow!("{name} is missing; install it: apt-get install {package}"))
}

/// True if the file exists and this user may execute it.
pub(super) fn is_program(file: &Path) -> bool {
    file.is_file() && access(file, Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_names_its_package() {
        let error = need("no-such-tool", "the-package").unwrap_err();
        assert_eq!(
            error.to_string(),
            "no-such-tool is missing; install it: apt-get install the-package"
        );
    }

    #[test]
    fn a_directory_is_not_a_program() {
        assert!(!is_program(Path::new("/")));
        assert!(is_program(Path::new("/bin/sh")));
    }
}
