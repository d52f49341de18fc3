//! The user that runs the servers: PostgreSQL refuses to run as root.

use std::{
    fs::File,
    io::Write,
    os::unix::fs::{OpenOptionsExt, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, anyhow};

use super::tools;

/// The servers' user.
#[derive(Clone, Debug)]
pub enum ServerUser {
    /// The tests run unprivileged, and the servers as the same user.
    Same,
    /// The tests run as root, and the servers as `nobody`, which exists on every machine and owns
    /// nothing.
    Other {
        /// util-linux's setpriv, which changes the user.
        setpriv: PathBuf,
        /// Numeric user.
        uid: u32,
        /// Numeric group.
        gid: u32,
    },
}

impl ServerUser {
    pub(super) fn choose() -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self::Same);
        }
        let setpriv = tools::need("setpriv")?;
        let passwd = std::fs::read_to_string("/etc/passwd").context("reading /etc/passwd")?;
        let (uid, gid) = ids(&passwd, "nobody")
            .ok_or_else(|| anyhow!("there is no user nobody; add it: adduser --system nobody"))?;
        Ok(Self::Other { setpriv, uid, gid })
    }

    /// A command that runs as this user; setpriv execs, so the process id stays the same.
    pub fn command(&self, program: &Path) -> Command {
        match self {
            Self::Same => Command::new(program),
            Self::Other { setpriv, uid, gid } => {
                let mut command = Command::new(setpriv);
                command.args([format!("--reuid={uid}"), format!("--regid={gid}")]);
                command
                    .args(["--clear-groups", "--inh-caps=-all", "--no-new-privs", "--"])
                    .arg(program);
                command
            }
        }
    }

    /// Changes a file's or directory's owner to this user.
    ///
    /// # Errors
    /// The owner cannot be changed.
    pub fn own(&self, file: &Path) -> Result<()> {
        match self {
            Self::Same => Ok(()),
            Self::Other { uid, gid, .. } => chown(file, Some(*uid), Some(*gid))
                .with_context(|| format!("giving {} to the servers' user", file.display())),
        }
    }

    /// Writes a file that only this user can read.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_private(&self, file: &Path, text: &str) -> Result<()> {
        let open = File::options()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(file);
        open.and_then(|mut open| open.write_all(text.as_bytes()))
            .with_context(|| format!("writing {}", file.display()))?;
        self.own(file)
    }

    /// True if this user can read the file or enter the directory. The kernel decides, as that
    /// user, because a parent directory may be closed.
    pub fn reaches(&self, path: &Path) -> bool {
        let wanted = if path.is_dir() { "-x" } else { "-r" };
        self.succeeds(Command::new("test").arg(wanted).arg(path))
    }

    /// True if the command, run as this user, exits with 0.
    pub(super) fn succeeds(&self, wanted: &Command) -> bool {
        let mut command = self.command(Path::new(wanted.get_program()));
        command
            .args(wanted.get_args())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/");
        command.status().is_ok_and(|status| status.success())
    }
}

/// User and group of a name in the text of /etc/passwd.
fn ids(passwd: &str, name: &str) -> Option<(u32, u32)> {
    let fields: Vec<&str> = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&name))?;
    Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_by_name() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\n\
            nobody:x:65534:65533:nobody:/nonexistent:/usr/sbin/nologin\n";
        assert_eq!(ids(passwd, "nobody"), Some((65534, 65533)));
        assert_eq!(ids(passwd, "absent"), None);
    }
}
