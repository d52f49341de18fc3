//! Replaces a file so that a crash at any moment leaves the whole old one or the whole new one.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown},
    path::Path,
};

/// Writes `text` in place of `file`, with the same mode and owner.
///
/// # Errors
/// The system's; the old file is then still there. A temporary file may remain beside it, which the
/// next run removes.
pub(crate) fn replace(file: &Path, text: &[u8]) -> io::Result<()> {
    // A symbolic link stays one: what it points to is replaced.
    let file = fs::canonicalize(file)?;
    let old = fs::metadata(&file)?;
    let (Some(directory), Some(name)) = (file.parent(), file.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let mut temporary = name.to_owned();
    temporary.push(".adopt-pgdata");
    let temporary = directory.join(temporary);
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Configuration may hold passwords, so nobody else reads it before it has its own mode.
    let mut new = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    new.write_all(text)?;
    let ours = new.metadata()?;
    if (ours.uid(), ours.gid()) != (old.uid(), old.gid()) {
        fchown(&new, Some(old.uid()), Some(old.gid()))?;
    }
    new.set_permissions(old.permissions())?;
    new.sync_all()?;
    fs::rename(&temporary, &file)?;
    // The rename itself lasts only once the directory is on disk.
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn mode_and_links_are_kept_and_a_leftover_of_a_crash_does_not_matter() {
        let directory =
            std::env::temp_dir().join(format!("adopt-pgdata-replace-{}", std::process::id()));
        fs::create_dir_all(directory.join("elsewhere")).unwrap();
        let (file, link) = (directory.join("elsewhere/a.conf"), directory.join("a.conf"));
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        fs::write(directory.join("elsewhere/a.conf.adopt-pgdata"), "half a fi").unwrap();
        replace(&link, b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o7777,
            0o640
        );
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(
            fs::read_dir(directory.join("elsewhere")).unwrap().count(),
            1
        );
        fs::remove_dir_all(&directory).unwrap();
    }
}
