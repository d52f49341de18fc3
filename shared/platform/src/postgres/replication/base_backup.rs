//! BASE_BACKUP: the data directory as one archive, then its manifest, in one stream of messages.

use std::time::Duration;

use bytes::{Buf as _, Bytes};
use postgres_protocol::message::backend::Message;
use tokio::time::timeout;

use super::{
    Row, ServerError, Walsender,
    wire::{Failure, unexpected},
};
use job::error::{Context as _, Error, Result};
use protocol::wal::{Lsn, Timeline};

/// Longest time of the checkpoint before the backup, which writes all dirty pages.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(900);
/// Longest time without a message. The server reads and sends without pauses, so a longer silence
/// means that its disk or the network does not respond.
const SILENCE: Duration = Duration::from_secs(120);
/// feature_not_supported and syntax_error: the server was built without the requested compression
/// (bbsink_zstd_new in basebackup_zstd.c; parse_compress_specification in src/common/compression.c
/// by parse_basebackup_options in basebackup.c).
const NOT_BUILT_IN: [&str; 2] = ["0A000", "42601"];
/// invalid_parameter_value: the server's zstd library was built without threads
/// (bbsink_zstd_begin_backup in basebackup_zstd.c).
const NO_WORKERS: &str = "22023";
/// data_corrupted: the backup has failed because of a page with a wrong checksum.
const DATA_CORRUPTED: &str = "XX001";
const DAMAGED: &str = "back up another member, whose page may be intact, and compare the two \
    before anything is deleted; pg_amcheck and pg_checksums show more";

/// How the server compresses the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// zstd: fast, with the best ratio for its time.
    Zstd,
    /// lz4: faster, with a lower ratio.
    Lz4,
    /// gzip: supported by every server.
    Gzip,
    /// No compression.
    None,
}

/// A requested compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompressionRequest {
    /// Compression of the archive.
    pub compression: Compression,
    /// Number of threads that compress while the walsender reads and sends; with 0 the walsender
    /// does all of it.
    pub workers: u8,
}

/// The compressions to request, in this order, until the server accepts one.
pub const BY_SERVER: [CompressionRequest; 5] = [
    request(Compression::Zstd, 1),
    request(Compression::Zstd, 0),
    request(Compression::Lz4, 0),
    request(Compression::Gzip, 0),
    UNCOMPRESSED,
];
/// Request for an archive without compression.
pub const UNCOMPRESSED: CompressionRequest = request(Compression::None, 0);

const fn request(compression: Compression, workers: u8) -> CompressionRequest {
    CompressionRequest {
        compression,
        workers,
    }
}

impl CompressionRequest {
    /// Returns true when the error means that the server does not support this compression.
    fn is_refused_by(self, error: &ServerError) -> bool {
        (NOT_BUILT_IN.contains(&error.code.as_str()) && self.compression != Compression::None)
            || (error.code == NO_WORKERS && self.workers > 0)
    }
}

impl Compression {
    /// The name in PostgreSQL's option COMPRESSION.
    pub fn word(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Gzip => "gzip",
            Self::None => "none",
        }
    }

    /// The suffix of the file name after `base.tar`.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Zstd => ".zst",
            Self::Lz4 => ".lz4",
            Self::Gzip => ".gz",
            Self::None => "",
        }
    }
}

/// What the server reports at the beginning of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupStart {
    /// Position at which recovery of the backup begins.
    pub start: Lsn,
    /// Timeline of `start`.
    pub timeline: Timeline,
    /// Directories of tablespaces other than pg_default and pg_global.
    pub tablespaces: Vec<String>,
    /// Estimated size of the files in bytes; they may grow during the backup.
    pub bytes: u64,
    /// Compression of the archive.
    pub compression: Compression,
}

/// One message of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// An archive with this name begins, for example `base.tar.zst`.
    Archive(String),
    /// The manifest begins.
    Manifest,
    /// Content of the archive or the manifest that has begun.
    Data(Bytes),
    /// Number of bytes of the data directory that the server has read.
    Progress(u64),
}

/// A running base backup.
pub struct BaseBackup {
    walsender: Walsender,
    warnings: Vec<String>,
}

impl Walsender {
    /// Begins a base backup with the first of the `requested` compressions that the server
    /// supports. The backup does not contain its WAL ([`super::wal`] explains why).
    ///
    /// # Errors
    /// Transient when its checkpoint takes longer than 15 min, or the server supports none of the
    /// compressions.
    pub async fn base_backup(
        mut self,
        label: &str,
        requested: &[CompressionRequest],
    ) -> Result<(BaseBackup, BackupStart)> {
        for &request in requested {
            match timeout(CHECKPOINT_TIMEOUT, self.begin(label, request)).await {
                Err(_) => {
                    return Err(Error::transient(
                        "the checkpoint before the backup did not end within 15 min",
                    ));
                }
                Ok(Ok(begun)) => {
                    let backup = BaseBackup {
                        walsender: self,
                        warnings: Vec::new(),
                    };
                    return Ok((backup, begun));
                }
                // The server refuses before it begins anything.
                Ok(Err(Failure::Server(error))) if request.is_refused_by(&error) => {
                    self.wire.until_ready().await.map_err(Error::from)?;
                }
                Ok(Err(failure)) => {
                    return Err(Error::from(failure)).context("beginning the base backup");
                }
            }
        }
        Err(Error::transient(
            "the server supports none of the requested compressions",
        ))
    }

    async fn begin(
        &mut self,
        label: &str,
        request: CompressionRequest,
    ) -> Result<BackupStart, Failure> {
        self.wire.query(&command(label, request)).await?;
        let position = self.result_set().await?;
        let tablespaces = self.result_set().await?;
        let Message::CopyOutResponse(_) = self.wire.next().await? else {
            return Err(unexpected().into());
        };
        let (start, timeline) = position_of(&position)?;
        Ok(BackupStart {
            start,
            timeline,
            tablespaces: tablespaces.iter().filter_map(|row| row.text(1)).collect(),
            bytes: tablespaces
                .iter()
                .filter_map(|row| row.parsed::<u64>(2))
                .sum::<u64>()
                * 1024,
            compression: request.compression,
        })
    }

    /// Reads the rows of one result set; another one may follow.
    async fn result_set(&mut self) -> Result<Vec<Row>, Failure> {
        let mut rows = Vec::new();
        loop {
            match self.wire.next().await? {
                Message::RowDescription(_) => {}
                Message::DataRow(row) => rows.push(Row::new(&row)?),
                Message::CommandComplete(_) => return Ok(rows),
                _ => return Err(unexpected().into()),
            }
        }
    }
}

/// The command. Everything is verified by the manifest; the server does not wait for its archiver,
/// because the WAL is streamed separately.
fn command(label: &str, request: CompressionRequest) -> String {
    let label = label.replace('\'', "''");
    let compressed = match (request.compression, request.workers) {
        (Compression::None, _) => String::new(),
        (other, 0) => format!(", COMPRESSION '{}'", other.word()),
        (other, workers) => format!(
            ", COMPRESSION '{}', COMPRESSION_DETAIL 'workers={workers}'",
            other.word()
        ),
    };
    format!(
        "BASE_BACKUP (LABEL '{label}', PROGRESS, CHECKPOINT 'fast', WAIT 0, MANIFEST 'yes', \
         MANIFEST_CHECKSUMS 'CRC32C'{compressed})"
    )
}

fn position_of(rows: &[Row]) -> Result<(Lsn, Timeline)> {
    let read = |row: &Row| Some((row.parsed(0)?, Timeline(row.parsed(1)?)));
    rows.first()
        .and_then(read)
        .ok_or_else(|| Error::transient("the answer to BASE_BACKUP cannot be read"))
}

/// What the server reports at the end of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupEnd {
    /// Position that recovery must reach.
    pub end: Lsn,
    /// Timeline of `end`.
    pub timeline: Timeline,
}

impl BaseBackup {
    /// Returns the next part; None after the last one. Cancellation-safe: no data is lost when the
    /// future is dropped.
    ///
    /// # Errors
    /// Unsafe when the server has found a damaged page; Transient when the connection has failed.
    pub async fn next(&mut self) -> Result<Option<Part>> {
        let message = self.message().await.map_err(failed)?;
        for notice in self.walsender.wire.take_notices() {
            if is_damage(&notice) {
                return Err(damaged(&notice));
            }
            self.warnings.push(notice.message);
        }
        match message {
            Message::CopyData(body) => part(body.into_bytes()).map(Some),
            Message::CopyDone => Ok(None),
            _ => Err(unexpected()),
        }
    }

    /// Returns the server's warnings since the last call.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// Reads the end of the backup, after the last part.
    ///
    /// # Errors
    /// Unsafe when the server has found a damaged page; Transient when the backup has failed for
    /// another reason.
    pub async fn end(mut self) -> Result<BackupEnd> {
        let ended = async {
            let position = timeout(SILENCE, self.walsender.result_set())
                .await
                .map_err(silent)??;
            // The server reports damaged pages only at the end.
            loop {
                match self.message().await? {
                    Message::CommandComplete(_) => {}
                    Message::ReadyForQuery(_) => return Ok(position),
                    _ => return Err(unexpected().into()),
                }
            }
        };
        let (end, timeline) = position_of(&ended.await.map_err(failed)?)?;
        self.walsender.close().await;
        Ok(BackupEnd { end, timeline })
    }

    async fn message(&mut self) -> Result<Message, Failure> {
        timeout(SILENCE, self.walsender.wire.next())
            .await
            .map_err(silent)?
    }
}

fn silent(_: tokio::time::error::Elapsed) -> Failure {
    Error::transient(format!(
        "the server has sent nothing for {} s",
        SILENCE.as_secs()
    ))
    .into()
}

/// The server verifies each page that it reads; it warns of a wrong one and continues.
fn is_damage(notice: &ServerError) -> bool {
    notice.severity == "WARNING" && notice.message.contains("checksum verification failed")
}

fn damaged(reported: &ServerError) -> Error {
    Error::manual_intervention(format!(
        "the server has found a damaged page: {}",
        reported.message
    ))
    .hint(DAMAGED)
}

fn failed(failure: Failure) -> Error {
    match failure {
        Failure::Server(error) if error.code == DATA_CORRUPTED => damaged(&error),
        other => other.into(),
    }
}

/// Parses the body of a CopyData message: a byte for the kind, then the data.
fn part(mut body: Bytes) -> Result<Part> {
    let unknown =
        || Error::transient("the server sent a part of a backup of a kind that is not known");
    if body.is_empty() {
        return Err(unknown());
    }
    match body.get_u8() {
        b'd' => Ok(Part::Data(body)),
        b'p' => body
            .try_get_u64()
            .map(Part::Progress)
            .map_err(|_| unknown()),
        b'm' => Ok(Part::Manifest),
        b'n' => {
            let name = body.split(|byte| *byte == 0).next().unwrap_or_default();
            Ok(Part::Archive(String::from_utf8_lossy(name).into_owned()))
        }
        _ => Err(unknown()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use job::error::ErrorKind;

    #[test]
    fn a_label_cannot_end_the_command() {
        assert_eq!(
            command("it's", request(Compression::Zstd, 0)),
            "BASE_BACKUP (LABEL 'it''s', PROGRESS, CHECKPOINT 'fast', WAIT 0, MANIFEST 'yes', \
             MANIFEST_CHECKSUMS 'CRC32C', COMPRESSION 'zstd')"
        );
        assert!(
            command("a", BY_SERVER[0])
                .ends_with(", COMPRESSION 'zstd', COMPRESSION_DETAIL 'workers=1')")
        );
        assert!(!command("a", UNCOMPRESSED).contains("COMPRESSION"));
    }

    #[test]
    fn an_unsupported_compression_is_replaced_by_the_next() {
        let refused = |request: CompressionRequest, code: &str| {
            let code = code.into();
            request.is_refused_by(&ServerError {
                code,
                ..ServerError::default()
            })
        };
        let [threads, alone, ..] = BY_SERVER;
        for not_built_in in NOT_BUILT_IN {
            assert!(refused(threads, not_built_in) && refused(alone, not_built_in));
            assert!(!refused(UNCOMPRESSED, not_built_in));
        }
        assert!(refused(threads, NO_WORKERS) && !refused(alone, NO_WORKERS));
        assert!(
            !refused(threads, "53300"),
            "too_many_connections is not about the compression"
        );
    }

    #[test]
    fn the_first_byte_of_a_message_is_the_kind_of_part() {
        let read = |bytes: &'static [u8]| part(Bytes::from_static(bytes));
        assert_eq!(
            read(b"nbase.tar.zst\0\0").unwrap(),
            Part::Archive("base.tar.zst".into())
        );
        assert_eq!(read(b"m").unwrap(), Part::Manifest);
        assert_eq!(
            read(b"dabc").unwrap(),
            Part::Data(Bytes::from_static(b"abc"))
        );
        assert_eq!(read(b"p\0\0\0\0\0\x01\0\0").unwrap(), Part::Progress(65536));
        for broken in [&b""[..], b"x", b"p\0"] {
            assert!(read(broken).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn a_damaged_page_requires_manual_intervention_and_another_warning_does_not() {
        let notice = |message: &str| ServerError {
            severity: "WARNING".into(),
            message: message.into(),
            ..ServerError::default()
        };
        let damage = notice(
            "checksum verification failed in file \"./base/5/16385\", block 3: calculated 1A2B but \
             expected 3C4D",
        );
        assert!(is_damage(&damage));
        assert_eq!(damaged(&damage).kind(), ErrorKind::Unsafe);
        assert!(!is_damage(&notice("skipping special file \"./socket\"")));
        let failure = ServerError {
            code: DATA_CORRUPTED.into(),
            ..ServerError::default()
        };
        assert_eq!(failed(Failure::Server(failure)).kind(), ErrorKind::Unsafe);
    }
}
