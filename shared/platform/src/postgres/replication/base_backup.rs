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

/// The checkpoint before it begins: fast, and still as long as the disk needs for all dirty pages.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(900);
/// The server reads without a pause: it is silent for so long only when its disk or the network
/// hangs.
const SILENCE: Duration = Duration::from_secs(120);
/// feature_not_supported: how a server answers that was built without a compression.
const NOT_BUILT_IN: &str = "0A000";
/// invalid_parameter_value: how one answers whose zstd was built without threads
/// (bbsink_zstd_begin_backup in basebackup_zstd.c).
const NO_WORKERS: &str = "22023";
/// data_corrupted: how a backup ends in which a page's checksum was wrong.
const DATA_CORRUPTED: &str = "XX001";
const DAMAGED: &str = "copy from another member, whose page may be whole, and compare the two \
    before anything is deleted; pg_amcheck and pg_checksums tell more";

/// How the server compresses the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Fast, and by far the best ratio for its time.
    Zstd,
    /// Faster, and larger.
    Lz4,
    /// Everywhere.
    Gzip,
    /// The server cannot compress.
    None,
}

/// What a server is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// How it compresses.
    pub compression: Compression,
    /// Threads that compress, beside the walsender that reads and sends meanwhile; 0: that does
    /// both in turn.
    pub workers: u8,
}

/// What a server may have, in the order in which it is asked.
pub const BY_SERVER: [Asked; 5] = [
    asked(Compression::Zstd, 1),
    asked(Compression::Zstd, 0),
    asked(Compression::Lz4, 0),
    asked(Compression::Gzip, 0),
    UNCOMPRESSED,
];
/// The bytes as they are.
pub const UNCOMPRESSED: Asked = asked(Compression::None, 0);

const fn asked(compression: Compression, workers: u8) -> Asked {
    Asked {
        compression,
        workers,
    }
}

impl Asked {
    /// The server cannot do it, and is to be asked for the next.
    fn is_refused_by(self, error: &ServerError) -> bool {
        (error.code == NOT_BUILT_IN && self.compression != Compression::None)
            || (error.code == NO_WORKERS && self.workers > 0)
    }
}

impl Compression {
    /// PostgreSQL's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Gzip => "gzip",
            Self::None => "none",
        }
    }

    /// What follows `base.tar` in the name of the file.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Zstd => ".zst",
            Self::Lz4 => ".lz4",
            Self::Gzip => ".gz",
            Self::None => "",
        }
    }
}

/// What the server says when it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    /// Where a recovery of this backup begins.
    pub start: Lsn,
    /// The timeline of that.
    pub timeline: Timeline,
    /// Directories of tablespaces other than the two that lie in the data directory.
    pub tablespaces: Vec<String>,
    /// Size of everything, as it lies on the server's disk: an estimate, files may grow.
    pub bytes: u64,
    /// How the archive is compressed.
    pub compression: Compression,
}

/// One message of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Another archive begins; its name, for example `base.tar.zst`.
    Archive(String),
    /// The manifest begins.
    Manifest,
    /// Content of what has begun.
    Data(Bytes),
    /// So many bytes of the data directory have been read.
    Progress(u64),
}

/// A base backup under way.
pub struct BaseBackup {
    walsender: Walsender,
    warnings: Vec<String>,
}

impl Walsender {
    /// Begins a base backup with the first of these that the server can do. Its WAL is not in it:
    /// [`super::wal`] says why.
    ///
    /// # Errors
    /// Transient when the server does not come to it.
    pub async fn base_backup(
        mut self,
        label: &str,
        wanted: &[Asked],
    ) -> Result<(BaseBackup, Begun)> {
        for &asked in wanted {
            match timeout(CHECKPOINT_TIMEOUT, self.begin(label, asked)).await {
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
                // Asked before anything has begun: nothing is lost.
                Ok(Err(Failure::Server(error))) if asked.is_refused_by(&error) => {
                    self.wire.until_ready().await.map_err(Error::from)?;
                }
                Ok(Err(failure)) => {
                    return Err(Error::from(failure)).context("beginning the base backup");
                }
            }
        }
        Err(Error::transient(
            "the server has none of the compressions that are wanted",
        ))
    }

    async fn begin(&mut self, label: &str, asked: Asked) -> Result<Begun, Failure> {
        self.wire.query(&command(label, asked)).await?;
        let position = self.result_set().await?;
        let tablespaces = self.result_set().await?;
        let Message::CopyOutResponse(_) = self.wire.next().await? else {
            return Err(unexpected().into());
        };
        let (start, timeline) = position_of(&position)?;
        Ok(Begun {
            start,
            timeline,
            tablespaces: tablespaces.iter().filter_map(|row| row.text(1)).collect(),
            bytes: tablespaces
                .iter()
                .filter_map(|row| row.parsed::<u64>(2))
                .sum::<u64>()
                * 1024,
            compression: asked.compression,
        })
    }

    /// Rows up to the end of their command; more may follow.
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

/// The manifest is what everything is compared with; no wait for the archiver, because the WAL
/// comes by another way.
fn command(label: &str, asked: Asked) -> String {
    let label = label.replace('\'', "''");
    let compressed = match (asked.compression, asked.workers) {
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
        .ok_or_else(|| Error::transient("BASE_BACKUP was answered with something else"))
}

/// How a base backup ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// A recovery must come as far as this.
    pub end: Lsn,
    /// The timeline of that.
    pub timeline: Timeline,
}

impl BaseBackup {
    /// The next part; None after the last one. May be dropped at any moment: nothing is lost.
    ///
    /// # Errors
    /// Unsafe when the server has found a damaged page; Transient when the connection is of no use
    /// any more.
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

    /// What the server has remarked since this was asked before, in its own words.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// The server's last word, after the last part.
    ///
    /// # Errors
    /// Unsafe when the server has found a damaged page; Transient when the backup has failed for
    /// another reason.
    pub async fn end(mut self) -> Result<Ended> {
        let ended = async {
            let position = timeout(SILENCE, self.walsender.result_set())
                .await
                .map_err(silent)??;
            // Only now does it say whether all pages were whole.
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
        Ok(Ended { end, timeline })
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

/// The server checks each page that it reads, warns of a wrong one, and goes on.
fn is_damage(notice: &ServerError) -> bool {
    notice.severity == "WARNING" && notice.message.contains("checksum verification failed")
}

fn damaged(said: &ServerError) -> Error {
    Error::manual_intervention(format!(
        "the server has found a damaged page: {}",
        said.message
    ))
    .hint(DAMAGED)
}

fn failed(failure: Failure) -> Error {
    match failure {
        Failure::Server(error) if error.code == DATA_CORRUPTED => damaged(&error),
        other => other.into(),
    }
}

/// The body of a CopyData message: a kind, then what belongs to it.
fn part(mut body: Bytes) -> Result<Part> {
    let strange =
        || Error::transient("the server sent a part of a backup of a kind that is not known");
    if body.is_empty() {
        return Err(strange());
    }
    match body.get_u8() {
        b'd' => Ok(Part::Data(body)),
        b'p' => body
            .try_get_u64()
            .map(Part::Progress)
            .map_err(|_| strange()),
        b'm' => Ok(Part::Manifest),
        b'n' => {
            let name = body.split(|byte| *byte == 0).next().unwrap_or_default();
            Ok(Part::Archive(String::from_utf8_lossy(name).into_owned()))
        }
        _ => Err(strange()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use job::error::ErrorKind;

    #[test]
    fn a_label_cannot_end_the_command() {
        assert_eq!(
            command("it's", asked(Compression::Zstd, 0)),
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
    fn what_a_server_cannot_do_is_asked_for_in_another_way() {
        let refused = |asked: Asked, code: &str| {
            let code = code.into();
            asked.is_refused_by(&ServerError {
                code,
                ..ServerError::default()
            })
        };
        let [threads, alone, ..] = BY_SERVER;
        assert!(refused(threads, NOT_BUILT_IN) && refused(threads, NO_WORKERS));
        assert!(refused(alone, NOT_BUILT_IN) && !refused(alone, NO_WORKERS));
        assert!(!refused(UNCOMPRESSED, NOT_BUILT_IN));
        assert!(
            !refused(threads, "53300"),
            "too_many_connections is not about the compression"
        );
    }

    #[test]
    fn parts_are_told_apart_by_their_first_byte() {
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
    fn a_damaged_page_is_for_a_person_to_look_at_and_another_warning_is_not() {
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
        let last_word = ServerError {
            code: DATA_CORRUPTED.into(),
            ..ServerError::default()
        };
        assert_eq!(failed(Failure::Server(last_word)).kind(), ErrorKind::Unsafe);
    }
}
