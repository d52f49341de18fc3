//! Tools that the machine itself must bring. tests/prerequisites.sh has the list of all of them and
//! of their packages; an error names the command that runs it.

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

/// What installs whatever is missing, or names it.
pub(super) const HINT: &str = "`make prerequisites` installs what is missing, or names the command";

/// A tool in PATH.
///
/// # Errors
/// It is missing; the text names the command that installs it.
pub(super) fn need(name: &str) -> Result<PathBuf> {
    find(name).ok_or_else(|| anyhow!("{name} is missing; {HINT}"))
}

/// True if the file exists and this user may execute it.
pub(super) fn is_program(file: &Path) -> bool {
    file.is_file() && access(file, Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_names_the_command_that_installs_it() {
        let error = need("no-such-tool").unwrap_err();
        assert_eq!(
            error.to_string(),
            "no-such-tool is missing; `make prerequisites` installs what is missing, or names the \
            command"
        );
    }

    #[test]
    fn a_directory_is_not_a_program() {
        assert!(!is_program(Path::new("/")));
        assert!(is_program(Path::new("/bin/sh")));
    }
}
