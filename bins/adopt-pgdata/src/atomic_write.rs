//! Replaces a file atomically: a crash leaves either the complete old file or the complete new one.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown},
    path::Path,
};

/// Replaces the contents of `file` with `text`, keeping its mode and owner.
///
/// # Errors
/// Those of the file system. The old file is unchanged then. A temporary file may remain beside it;
/// the next run removes it.
pub(crate) fn replace(file: &Path, text: &[u8]) -> io::Result<()> {
    // A symbolic link is kept, and the file that it points to is replaced.
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
    // Configuration may contain passwords, so the file is private until it gets its final mode.
    let mut new = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    new.write_all(text)?;
    let created = new.metadata()?;
    if (created.uid(), created.gid()) != (old.uid(), old.gid()) {
        fchown(&new, Some(old.uid()), Some(old.gid()))?;
    }
    new.set_permissions(old.permissions())?;
    new.sync_all()?;
    fs::rename(&temporary, &file)?;
    // The rename is durable only once the directory is on disk.
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn mode_and_links_are_kept_and_a_leftover_temporary_file_is_replaced() {
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
