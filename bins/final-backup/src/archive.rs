//! Reads a base backup's archive while it is streamed, and computes a checksum of each file in it.

use std::{
    collections::HashMap,
    fs,
    io::{self, BufRead, ErrorKind, Read},
    path::Path,
};

use flate2::bufread::MultiGzDecoder;
use job::error::{Context as _, Error, Result};
use lz4_flex::frame::FrameDecoder;
use platform::postgres::replication::base_backup::Compression;
use tar::{Archive, EntryType};

const BUFFER_BYTES: usize = 64 * 1024;

/// Size and checksum of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSum {
    /// Size in bytes.
    pub bytes: u64,
    /// CRC-32C of the content.
    pub crc: u32,
}

/// Files by their path in the data directory.
#[derive(Debug, Default)]
pub struct Files(HashMap<Box<[u8]>, FileSum>);

impl Files {
    /// Removes a file from the list and returns it.
    pub fn take(&mut self, path: &[u8]) -> Option<FileSum> {
        self.0.remove(path)
    }

    /// The first of the files that have not been taken.
    pub fn first_remaining(&self) -> Option<String> {
        self.0
            .keys()
            .min()
            .map(|path| String::from_utf8_lossy(path).into_owned())
    }

    /// Size of all files in bytes.
    pub fn bytes(&self) -> u64 {
        self.0.values().map(|file| file.bytes).sum()
    }

    /// Reads all files of a directory except those in pg_wal, which a backup manifest does not
    /// list.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn in_directory(root: &Path) -> Result<Self> {
        let mut files = Self::default();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).context(format!("listing {}", folder.display()))? {
                let path = entry?.path();
                let relative = path.strip_prefix(root).unwrap_or(&path);
                if path.is_dir() {
                    if relative != Path::new("pg_wal") {
                        folders.push(path);
                    }
                    continue;
                }
                let read = fs::File::open(&path).and_then(checksum);
                let sum = read.context(format!("reading {} back", relative.display()))?;
                files
                    .0
                    .insert(relative.as_os_str().as_encoded_bytes().into(), sum);
            }
        }
        Ok(files)
    }
}

/// Reads an archive to its end, and unpacks it if `unpack` names a directory. Then the checksums
/// are 0, because the files on disk are read again ([`Files::in_directory`]).
///
/// # Errors
/// Unsafe if it is not a valid archive; Refused if the directory cannot be written to.
pub fn read_archive<'a>(
    archive: impl BufRead + 'a,
    compression: Compression,
    unpack: Option<&Path>,
) -> Result<Files> {
    let read: Box<dyn Read + 'a> = match compression {
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(archive)?),
        Compression::Lz4 => Box::new(FrameDecoder::new(archive)),
        Compression::Gzip => Box::new(MultiGzDecoder::new(archive)),
        Compression::None => Box::new(archive),
    };
    entries(read, unpack).map_err(|error| match error.downcast::<Error>() {
        // The stream's own error, such as that it was cut off.
        Ok(error) => error,
        Err(error) => match error.kind() {
            ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::PermissionDenied
            | ErrorKind::ReadOnlyFilesystem => Error::refused("unpacking the backup")
                .caused_by(error)
                .hint(
                    "the scratch volume must be writable, and large enough; or set VERIFY=stream",
                ),
            _ => Error::manual_intervention("the archive cannot be read back").caused_by(error),
        },
    })
}

fn entries(read: Box<dyn Read + '_>, unpack: Option<&Path>) -> io::Result<Files> {
    let mut archive = Archive::new(read);
    archive.set_preserve_mtime(false);
    let mut files = Files::default();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path: Box<[u8]> = entry
            .path_bytes()
            .strip_prefix(b"./")
            .unwrap_or(&entry.path_bytes())
            .into();
        if entry.header().entry_type() != EntryType::Regular {
            if let Some(root) = unpack {
                entry.unpack_in(root)?;
            }
            continue;
        }
        let sum = match unpack {
            Some(root) => {
                let bytes = entry.size();
                entry.unpack_in(root)?;
                FileSum { bytes, crc: 0 }
            }
            None => checksum(&mut entry)?,
        };
        if files.0.insert(path.clone(), sum).is_some() {
            let duplicate = format!("{} is in the archive twice", String::from_utf8_lossy(&path));
            return Err(io::Error::new(ErrorKind::InvalidData, duplicate));
        }
    }
    // Read on to the end of the stream, so that the compression's own checksum is verified.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(files)
}

fn checksum(mut file: impl Read) -> io::Result<FileSum> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut sum = FileSum { bytes: 0, crc: 0 };
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(sum),
            read => {
                sum.bytes += read as u64;
                sum.crc = crc32c::crc32c_append(sum.crc, &buffer[..read]);
            }
        }
    }
}

#[cfg(test)]
pub mod tests {
    use std::io::Write as _;

    use super::*;

    pub fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o600);
            builder.append_data(&mut header, path, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    pub fn files(content: &[(&str, &[u8])]) -> Files {
        read_archive(archive(content).as_slice(), Compression::None, None).unwrap()
    }

    const FILES: [(&str, &[u8]); 2] = [("global/1", b"123456789"), ("base/5/empty", b"")];
    /// The check value of CRC-32C.
    const CHECK: FileSum = FileSum {
        bytes: 9,
        crc: 0xE306_9283,
    };

    fn compressed(compression: Compression) -> Vec<u8> {
        let plain = archive(&FILES);
        match compression {
            Compression::None => plain,
            Compression::Zstd => zstd::stream::encode_all(plain.as_slice(), 3).unwrap(),
            Compression::Lz4 => {
                let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
                encoder.write_all(&plain).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Gzip => {
                let mut encoder =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&plain).unwrap();
                encoder.finish().unwrap()
            }
        }
    }

    const ALL: [Compression; 4] = [
        Compression::None,
        Compression::Zstd,
        Compression::Lz4,
        Compression::Gzip,
    ];

    #[test]
    fn every_compression_is_read_and_files_get_checksums() {
        for compression in ALL {
            let mut files =
                read_archive(compressed(compression).as_slice(), compression, None).unwrap();
            assert_eq!(files.bytes(), 9);
            assert_eq!(files.take(b"global/1"), Some(CHECK), "{compression:?}");
            assert_eq!(
                files.take(b"base/5/empty"),
                Some(FileSum { bytes: 0, crc: 0 })
            );
            assert_eq!(files.first_remaining(), None);
        }
    }

    #[test]
    fn a_truncated_archive_is_rejected() {
        for compression in ALL {
            let whole = compressed(compression);
            let truncated = &whole[..whole.len().min(1500) - 9];
            assert!(
                read_archive(truncated, compression, None).is_err(),
                "{compression:?}"
            );
        }
    }

    #[test]
    fn unpacked_files_are_read_again_from_disk() {
        let folder = tempfile::tempdir().unwrap();
        let packed = archive(&[FILES[0], ("pg_wal/0", b"wal")]);
        read_archive(packed.as_slice(), Compression::None, Some(folder.path())).unwrap();
        let mut files = Files::in_directory(folder.path()).unwrap();
        assert_eq!(files.take(b"global/1"), Some(CHECK));
        assert_eq!(
            files.first_remaining(),
            None,
            "the manifest does not list pg_wal"
        );
    }
}
