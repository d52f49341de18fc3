//! PostgreSQL's backup manifest (PostgreSQL documentation, *Backup Manifest Format*): compared with
//! the files of the archive while it is read, and checked against its own checksum.

use std::io::{self, BufReader, Read};

use job::error::{Error, Result};
use openssl::sha::Sha256;
use platform::hex;
use protocol::wal::{Lsn, SystemIdentifier, Timeline};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use crate::archive::Files;

/// The content of a manifest, without its list of files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// System identifier of the server. In manifests of version 2, which PostgreSQL 17 introduced.
    pub system_identifier: Option<SystemIdentifier>,
    /// Number of files that it lists.
    pub files: u64,
    /// The WAL that a recovery needs.
    pub wal: Vec<WalRange>,
}

/// WAL of one timeline that a recovery needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct WalRange {
    /// The timeline.
    pub timeline: Timeline,
    /// Where recovery begins.
    #[serde(rename = "Start-LSN")]
    pub start: Lsn,
    /// What recovery must reach.
    #[serde(rename = "End-LSN")]
    pub end: Lsn,
}

/// Reads a manifest and compares it with the files. A file that only one of them has is an error,
/// too.
///
/// # Errors
/// Unsafe if a file differs, or if the manifest itself was changed.
pub fn compare(manifest: impl Read, mut files: Files) -> Result<Manifest> {
    let mut hashed = HashingReader::new(manifest);
    let read = {
        let mut reader = serde_json::Deserializer::from_reader(BufReader::new(&mut hashed));
        ManifestSeed(&mut files)
            .deserialize(&mut reader)
            .and_then(|signed| reader.end().map(|()| signed))
    };
    // The position in the file that serde adds does not help the user.
    let signed = read.map_err(|error| {
        let message = error.to_string();
        differs(
            message
                .rsplit_once(" at line ")
                .map_or(message.as_str(), |(problem, _)| problem),
        )
    })?;
    if !hashed
        .last_line()
        .is_some_and(|(line, hash)| signed.checksum == hash && line.contains(&hash))
    {
        return Err(differs(
            "its own checksum is wrong: it was changed after it was written",
        ));
    }
    match files.first_remaining() {
        Some(path) => Err(differs(&format!(
            "{path} is in the archive, and not in the manifest"
        ))),
        None => Ok(signed.manifest),
    }
}

fn differs(problem: &str) -> Error {
    Error::manual_intervention(format!("the backup and its manifest differ: {problem}")).hint(
        "this backup cannot be used; find out what changed it, remove it, and take another one",
    )
}

struct SignedManifest {
    manifest: Manifest,
    checksum: String,
}

/// Reads the manifest's object and compares files as they are read, so that the whole list is never
/// in memory.
struct ManifestSeed<'a>(&'a mut Files);

impl<'de> DeserializeSeed<'de> for ManifestSeed<'_> {
    type Value = SignedManifest;
    fn deserialize<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<SignedManifest, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ManifestSeed<'_> {
    type Value = SignedManifest;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a backup manifest")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SignedManifest, A::Error> {
        let (mut system_identifier, mut files, mut wal, mut checksum) =
            (None, None, Vec::new(), None);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "System-Identifier" => {
                    system_identifier = Some(SystemIdentifier(map.next_value()?))
                }
                "Files" => files = Some(map.next_value_seed(FileList(self.0))?),
                "WAL-Ranges" => wal = map.next_value()?,
                "Manifest-Checksum" => checksum = Some(map.next_value()?),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(SignedManifest {
            manifest: Manifest {
                system_identifier,
                files: files.ok_or_else(|| A::Error::missing_field("Files"))?,
                wal,
            },
            checksum: checksum.ok_or_else(|| A::Error::missing_field("Manifest-Checksum"))?,
        })
    }
}

struct FileList<'a>(&'a mut Files);

impl<'de> DeserializeSeed<'de> for FileList<'_> {
    type Value = u64;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<u64, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for FileList<'_> {
    type Value = u64;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of files")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<u64, A::Error> {
        let mut count = 0;
        while let Some(file) = list.next_element::<File>()? {
            file.compare(self.0).map_err(A::Error::custom)?;
            count += 1;
        }
        Ok(count)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct File {
    path: Option<String>,
    /// Hexadecimal, in place of `path` if that is not UTF-8.
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    size: u64,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    checksum: Option<String>,
}

impl File {
    fn compare(&self, files: &mut Files) -> Result<(), String> {
        let path = match (&self.path, &self.encoded_path) {
            (Some(path), _) => path.clone().into_bytes(),
            (None, Some(encoded)) => hex::decode(encoded).ok_or("a path cannot be decoded")?,
            (None, None) => return Err("a file has no path".into()),
        };
        let name = String::from_utf8_lossy(&path).into_owned();
        let Some(file) = files.take(&path) else {
            return Err(format!("{name} is not in the archive"));
        };
        if file.bytes != self.size {
            return Err(format!(
                "{name} has {} bytes, and {} in the manifest",
                file.bytes, self.size
            ));
        }
        // The manifest has the bytes in the server's byte order: little-endian on every platform
        // that PostgreSQL images exist for.
        let crc = file.crc.to_le_bytes();
        match (
            self.algorithm.as_deref(),
            self.checksum.as_deref().and_then(hex::decode),
        ) {
            (Some("CRC32C"), Some(expected)) if expected == crc => Ok(()),
            (Some("CRC32C"), Some(_)) => {
                Err(format!("{name} has another checksum than in the manifest"))
            }
            (algorithm, _) => Err(format!(
                "{name} has a checksum of the kind {algorithm:?}, not CRC32C"
            )),
        }
    }
}

/// Hashes all lines except the last one, which holds the hash.
struct HashingReader<R> {
    inner: R,
    hash: Sha256,
    /// The last line that has been read, or its beginning.
    last: Vec<u8>,
}

impl<R: Read> HashingReader<R> {
    fn new(inner: R) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
            last: Vec::new(),
        }
    }

    /// The last line, and the hash of all lines before it.
    fn last_line(self) -> Option<(String, String)> {
        let hash = hex::encode(&self.hash.finish());
        Some((String::from_utf8(self.last).ok()?, hash))
    }
}

impl<R: Read> Read for &mut HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.last.extend_from_slice(&buffer[..read]);
        // A newline at the very end belongs to the last line.
        let before_end = self.last.len().saturating_sub(1);
        if let Some(end) = self.last[..before_end]
            .iter()
            .rposition(|byte| *byte == b'\n')
        {
            self.hash.update(&self.last[..=end]);
            self.last.drain(..=end);
        }
        Ok(read)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::archive::tests::files;

    /// A manifest in the form that PostgreSQL 17 writes.
    pub fn manifest(files: &[(&str, &[u8])]) -> String {
        let list: Vec<String> = files
            .iter()
            .map(|(path, content)| {
                let crc = hex::encode(&crc32c::crc32c(content).to_le_bytes());
                format!(
                    "{{ \"Path\": \"{path}\", \"Size\": {}, \"Last-Modified\": \"2026-01-01 \
                    00:00:00 GMT\", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{crc}\" \
                    }}",
                    content.len()
                )
            })
            .collect();
        signed(&format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": \
             7500000000000000123,\n\"Files\": [\n{}],\n\"WAL-Ranges\": [\n{{ \"Timeline\": 1, \
             \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000158\" }}\n],\n",
            list.join(",\n")
        ))
    }

    fn signed(text: &str) -> String {
        format!(
            "{text}\"Manifest-Checksum\": \"{}\"}}\n",
            hex::encode(&openssl::sha::sha256(text.as_bytes()))
        )
    }

    const FILES: [(&str, &[u8]); 2] = [("backup_label", b"START"), ("base/5/1259", b"123456789")];

    fn error_of(text: &str, archive: &[(&str, &[u8])]) -> String {
        compare(text.as_bytes(), files(archive))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_matching_manifest_is_read() {
        let text = manifest(&FILES);
        let read = compare(text.as_bytes(), files(&FILES)).unwrap();
        assert_eq!(read.files, 2);
        assert_eq!(
            read.system_identifier,
            Some(SystemIdentifier(7_500_000_000_000_000_123))
        );
        assert_eq!(read.wal[0].end, "0/2000158".parse().unwrap());
        // In chunks of any size.
        for bytes in [1, 7, 100] {
            let mut hashed = HashingReader::new(text.as_bytes());
            let mut buffer = vec![0; bytes];
            while (&mut hashed).read(&mut buffer).unwrap() > 0 {}
            let (line, hash) = hashed.last_line().unwrap();
            assert!(line.contains(&hash), "{bytes}");
        }
    }

    #[test]
    fn each_difference_is_named() {
        let text = manifest(&FILES);
        assert!(error_of(&text, &FILES[..1]).ends_with("base/5/1259 is not in the archive"));
        assert!(
            error_of(&text, &[FILES[0], ("base/5/1259", b"12345678X")])
                .contains("another checksum")
        );
        assert!(
            error_of(&text, &[FILES[0], ("base/5/1259", b"1234")]).contains("has 4 bytes, and 9")
        );
        let more = [FILES[0], FILES[1], ("base/5/1", b"")];
        assert!(error_of(&text, &more).contains("base/5/1 is in the archive, and not"));
    }

    #[test]
    fn a_changed_manifest_fails_its_own_checksum() {
        let text = manifest(&FILES);
        for (from, to) in [
            ("START-LSN", "Start-LSN"),
            ("0/2000158", "0/2000159"),
            ("2026-01", "2025-01"),
        ] {
            let changed = text.replace(from, to);
            if changed != text {
                assert!(
                    error_of(&changed, &FILES).contains("its own checksum is wrong"),
                    "{from}"
                );
            }
        }
        assert!(error_of(&text[..text.len() / 2], &FILES).contains("differ"));
        assert!(error_of(&format!("{text}\n"), &FILES).contains("its own checksum"));
    }

    #[test]
    fn checksums_of_another_algorithm_are_rejected() {
        let text = signed(
            manifest(&FILES)
                .replace("CRC32C", "NONE")
                .split("\"Manifest-Checksum\"")
                .next()
                .unwrap(),
        );
        assert!(error_of(&text, &FILES).contains("not CRC32C"));
    }
}
