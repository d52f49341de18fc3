//! The backup manifest: compared with what is in the archive while it is being read, and checked
//! against its own checksum (PostgreSQL documentation, *Backup Manifest Format*).

use std::io::{self, BufReader, Read};

use job::error::{Error, Result};
use openssl::sha::Sha256;
use protocol::wal::{Lsn, SystemIdentifier, Timeline};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use crate::archive::Files;

/// What a manifest says, beyond its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Whose backup it is; from version 2 on, PostgreSQL 17's.
    pub system_identifier: Option<SystemIdentifier>,
    /// How many files it names.
    pub files: u64,
    /// The WAL that a recovery needs.
    pub wal: Vec<WalRange>,
}

/// WAL that a recovery needs, of one timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct WalRange {
    /// The timeline.
    pub timeline: Timeline,
    /// From here.
    #[serde(rename = "Start-LSN")]
    pub start: Lsn,
    /// To here.
    #[serde(rename = "End-LSN")]
    pub end: Lsn,
}

/// Reads a manifest and compares it with the files, in both directions.
///
/// # Errors
/// Unsafe, with the file that differs, or when the manifest itself was changed.
pub fn compare(manifest: impl Read, mut files: Files) -> Result<Manifest> {
    let mut hashed = Hashed::new(manifest);
    let read = {
        let mut reader = serde_json::Deserializer::from_reader(BufReader::new(&mut hashed));
        Whole(&mut files)
            .deserialize(&mut reader)
            .and_then(|whole| reader.end().map(|()| whole))
    };
    // Where in the file it was found says nothing to a person.
    let whole = read.map_err(|error| {
        let said = error.to_string();
        differs(
            said.rsplit_once(" at line ")
                .map_or(said.as_str(), |(words, _)| words),
        )
    })?;
    if !hashed
        .last_line()
        .is_some_and(|(line, hash)| whole.checksum == hash && line.contains(&hash))
    {
        return Err(differs(
            "its own checksum is wrong: it was changed after it was written",
        ));
    }
    match files.left() {
        Some(path) => Err(differs(&format!(
            "{path} is in the archive, and not in the manifest"
        ))),
        None => Ok(whole.manifest),
    }
}

fn differs(what: &str) -> Error {
    Error::contradiction(format!("the backup and its manifest differ: {what}"))
        .hint("this backup is of no use; find out who changed it, remove it, and take another one")
}

struct WholeManifest {
    manifest: Manifest,
    checksum: String,
}

/// Reads the object, comparing files as they come, so that the list is never in memory.
struct Whole<'a>(&'a mut Files);

impl<'de> DeserializeSeed<'de> for Whole<'_> {
    type Value = WholeManifest;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<WholeManifest, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Whole<'_> {
    type Value = WholeManifest;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a backup manifest")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WholeManifest, A::Error> {
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
        Ok(WholeManifest {
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
    /// In place of `path` when that is not UTF-8.
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
            (None, Some(hex)) => from_hex(hex).ok_or("a path cannot be read")?,
            (None, None) => return Err("a file has no path".into()),
        };
        let named = String::from_utf8_lossy(&path).into_owned();
        let Some(seen) = files.take(&path) else {
            return Err(format!("{named} is not in the archive"));
        };
        if seen.bytes != self.size {
            return Err(format!(
                "{named} has {} bytes, and {} in the manifest",
                seen.bytes, self.size
            ));
        }
        // As it lies in the memory of the server: every platform of PostgreSQL's images is
        // little-endian.
        let crc = seen.crc.to_le_bytes();
        match (
            self.algorithm.as_deref(),
            self.checksum.as_deref().and_then(from_hex),
        ) {
            (Some("CRC32C"), Some(wanted)) if wanted == crc => Ok(()),
            (Some("CRC32C"), Some(_)) => {
                Err(format!("{named} has another checksum than in the manifest"))
            }
            (algorithm, _) => Err(format!(
                "{named} has a checksum of the kind {algorithm:?}, not CRC32C"
            )),
        }
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|c| c.to_digit(16).map(|digit| digit as u8))
        .collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    Some(
        digits
            .chunks(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect(),
    )
}

/// Lower-case, as the manifest and sha256sum print it.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hashes all lines but the last one, which holds the hash.
struct Hashed<R> {
    inner: R,
    hash: Sha256,
    /// The last line so far.
    last: Vec<u8>,
}

impl<R: Read> Hashed<R> {
    fn new(inner: R) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
            last: Vec::new(),
        }
    }

    /// The last line, and the hash of all before it.
    fn last_line(self) -> Option<(String, String)> {
        Some((String::from_utf8(self.last).ok()?, hex(&self.hash.finish())))
    }
}

impl<R: Read> Read for &mut Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.last.extend_from_slice(&buffer[..read]);
        // A line end at the very end belongs to the line before it.
        let behind_last = self.last.len().saturating_sub(1);
        if let Some(end) = self.last[..behind_last]
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

    /// As PostgreSQL 17 writes it.
    pub fn manifest(files: &[(&str, &[u8])]) -> String {
        let list: Vec<String> = files
            .iter()
            .map(|(path, content)| {
                let crc = hex(&crc32c::crc32c(content).to_le_bytes());
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
            hex(&openssl::sha::sha256(text.as_bytes()))
        )
    }

    const FILES: [(&str, &[u8]); 2] = [("backup_label", b"START"), ("base/5/1259", b"123456789")];

    fn said(text: &str, archive: &[(&str, &[u8])]) -> String {
        compare(text.as_bytes(), files(archive))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_manifest_that_fits_is_read() {
        let text = manifest(&FILES);
        let read = compare(text.as_bytes(), files(&FILES)).unwrap();
        assert_eq!(read.files, 2);
        assert_eq!(
            read.system_identifier,
            Some(SystemIdentifier(7_500_000_000_000_000_123))
        );
        assert_eq!(read.wal[0].end, "0/2000158".parse().unwrap());
        // However it comes.
        for bytes in [1, 7, 100] {
            let mut hashed = Hashed::new(text.as_bytes());
            let mut buffer = vec![0; bytes];
            while (&mut hashed).read(&mut buffer).unwrap() > 0 {}
            let (line, hash) = hashed.last_line().unwrap();
            assert!(line.contains(&hash), "{bytes}");
        }
    }

    #[test]
    fn each_difference_is_named() {
        let text = manifest(&FILES);
        assert!(said(&text, &FILES[..1]).ends_with("base/5/1259 is not in the archive"));
        assert!(
            said(&text, &[FILES[0], ("base/5/1259", b"12345678X")]).contains("another checksum")
        );
        assert!(said(&text, &[FILES[0], ("base/5/1259", b"1234")]).contains("has 4 bytes, and 9"));
        let more = [FILES[0], FILES[1], ("base/5/1", b"")];
        assert!(said(&text, &more).contains("base/5/1 is in the archive, and not"));
    }

    #[test]
    fn a_manifest_that_was_changed_betrays_itself() {
        let text = manifest(&FILES);
        for (from, to) in [
            ("START-LSN", "Start-LSN"),
            ("0/2000158", "0/2000159"),
            ("2026-01", "2025-01"),
        ] {
            let changed = text.replace(from, to);
            if changed != text {
                assert!(
                    said(&changed, &FILES).contains("its own checksum is wrong"),
                    "{from}"
                );
            }
        }
        assert!(said(&text[..text.len() / 2], &FILES).contains("differ"));
        assert!(said(&format!("{text}\n"), &FILES).contains("its own checksum"));
    }

    #[test]
    fn other_checksums_are_not_taken_for_good() {
        let text = signed(
            manifest(&FILES)
                .replace("CRC32C", "NONE")
                .split("\"Manifest-Checksum\"")
                .next()
                .unwrap(),
        );
        assert!(said(&text, &FILES).contains("not CRC32C"));
    }
}
