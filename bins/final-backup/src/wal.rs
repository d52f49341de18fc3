//! The WAL of the backup: received as a stream, and stored as pg_wal.tar with a file for each
//! segment.

use std::time::Duration;

use bytes::Bytes;
use job::error::{Error, Result};
use platform::postgres::replication::wal::{Received, WalStream};
use protocol::wal::{Lsn, Timeline};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{
    pipe::{CHUNK_BYTES, PipeWriter, ReaderClosed},
    wal::pages::PageChecker,
};

mod pages;

/// How long the WAL may take to reach the end of the backup, once that end is known.
const END_TIMEOUT: Duration = Duration::from_secs(120);

/// The WAL to receive.
pub struct WalRequest {
    /// The first segment is the one of this position.
    pub start: Lsn,
    /// The timeline.
    pub timeline: Timeline,
    /// Size of a segment in bytes.
    pub segment_bytes: u64,
}

/// Receives WAL until it reaches `end`, which is sent as soon as it is known, and writes it to an
/// archive. Returns the position that it has reached.
///
/// # Errors
/// Transient if the stream breaks, ends early, or does not reach the end within [`END_TIMEOUT`];
/// Unsafe if a page is damaged.
pub async fn receive(
    mut stream: WalStream,
    request: WalRequest,
    tar: &mut TarWriter,
    mut end: watch::Receiver<Option<Lsn>>,
) -> Result<Lsn> {
    let mut position = segment_start(request.start, request.segment_bytes);
    let mut pages = PageChecker::new(position, request.segment_bytes);
    let mut deadline = None;
    loop {
        let known_end = *end.borrow_and_update();
        if known_end.is_some_and(|end| position >= end) {
            tar.fill_segment(position, &request).await?;
            stream.stop().await;
            return Ok(position);
        }
        if known_end.is_some() {
            deadline.get_or_insert_with(|| Instant::now() + END_TIMEOUT);
        }
        let timed_out = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            received = stream.next() => match received? {
                Received::Wal { start, .. } if start != position => {
                    return Err(Error::transient(format!(
                        "the wal has a gap: {start} follows {position}"
                    )));
                }
                Received::Wal { bytes, .. } => {
                    pages.check(&bytes)?;
                    let before = segment_start(position, request.segment_bytes);
                    position = tar.write(position, bytes, &request).await?;
                    if segment_start(position, request.segment_bytes) != before {
                        stream.confirm(position).await?;
                    }
                }
                Received::Keepalive => stream.confirm(position).await?,
                Received::TimelineEnded => return Err(timeline_ended(request.timeline)),
            },
            changed = end.changed() => if changed.is_err() {
                return Err(Error::transient("the base backup ended early"));
            },
            () = timed_out => {
                let end = known_end.map_or_else(String::new, |end| end.to_string());
                return Err(Error::transient(format!(
                    "the wal is at {position}, and does not reach {end}"
                )));
            }
        }
    }
}

fn timeline_ended(timeline: Timeline) -> Error {
    Error::transient(format!(
        "timeline {timeline} ended during the backup: another member was promoted"
    ))
    .hint("run the step again once the source has a stable leader")
}

/// Start of the segment that holds a position.
pub fn segment_start(position: Lsn, segment_bytes: u64) -> Lsn {
    let position = u64::from(position.0);
    Lsn((position - position % segment_bytes).into())
}

/// File name of a segment, such as `000000010000000000000002`: the timeline, and the segment's
/// number in two halves.
fn segment_name(position: Lsn, request: &WalRequest) -> String {
    let number = u64::from(position.0) / request.segment_bytes;
    let per_half = 0x1_0000_0000 / request.segment_bytes;
    format!(
        "{:08X}{:08X}{:08X}",
        request.timeline.0,
        number / per_half,
        number % per_half
    )
}

/// Writes a tar archive to a pipe.
pub struct TarWriter {
    writer: PipeWriter,
}

impl TarWriter {
    /// Begins an archive.
    pub fn new(writer: PipeWriter) -> Self {
        Self { writer }
    }

    /// Adds a whole file.
    pub async fn file(&mut self, name: &str, content: Bytes) -> Result<()> {
        self.header(name, content.len() as u64).await?;
        let padding = padding(content.len() as u64);
        self.send(content).await?;
        self.send(Bytes::from(vec![0; padding])).await
    }

    /// Ends the archive with two empty blocks.
    pub async fn end(self) -> Result<()> {
        let ended = async {
            self.writer.send(Bytes::from_static(&[0; 1024])).await?;
            self.writer.end().await
        };
        ended.await.map_err(reader_closed)
    }

    /// Adds WAL, which may span several segments. Returns its end.
    async fn write(
        &mut self,
        mut position: Lsn,
        mut bytes: Bytes,
        request: &WalRequest,
    ) -> Result<Lsn> {
        while !bytes.is_empty() {
            let within = u64::from(position.0) % request.segment_bytes;
            if within == 0 {
                self.header(&segment_name(position, request), request.segment_bytes)
                    .await?;
            }
            let rest = usize::try_from(request.segment_bytes - within).unwrap_or(usize::MAX);
            let part = bytes.split_to(rest.min(bytes.len()));
            position = Lsn((u64::from(position.0) + part.len() as u64).into());
            self.send(part).await?;
            if u64::from(position.0) % request.segment_bytes == 0 {
                self.mark_archived(position, request).await?;
            }
        }
        Ok(position)
    }

    /// Fills the last segment with zeros to its full size.
    async fn fill_segment(&mut self, position: Lsn, request: &WalRequest) -> Result<()> {
        let within = u64::from(position.0) % request.segment_bytes;
        if within == 0 {
            return Ok(());
        }
        let mut missing = usize::try_from(request.segment_bytes - within).unwrap_or_default();
        while missing > 0 {
            let part = missing.min(CHUNK_BYTES);
            self.send(Bytes::from_static(&[0; CHUNK_BYTES]).slice(..part))
                .await?;
            missing -= part;
        }
        let end = Lsn((u64::from(position.0) - within + request.segment_bytes).into());
        self.mark_archived(end, request).await
    }

    /// Marks the segment before `end` as archived, so that a server restored from this backup does
    /// not archive it again.
    async fn mark_archived(&mut self, end: Lsn, request: &WalRequest) -> Result<()> {
        let inside = Lsn((u64::from(end.0) - 1).into());
        let name = format!("archive_status/{}.done", segment_name(inside, request));
        self.file(&name, Bytes::new()).await
    }

    async fn header(&mut self, name: &str, bytes: u64) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_path(name)?;
        header.set_size(bytes);
        header.set_mode(0o600);
        header.set_mtime(jiff::Timestamp::now().as_second().unsigned_abs());
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        self.send(Bytes::copy_from_slice(header.as_bytes())).await
    }

    async fn send(&mut self, bytes: Bytes) -> Result<()> {
        self.writer.send(bytes).await.map_err(reader_closed)
    }
}

fn reader_closed(_: ReaderClosed) -> Error {
    Error::transient("the reader of pg_wal.tar has stopped")
}

fn padding(bytes: u64) -> usize {
    ((512 - bytes % 512) % 512) as usize
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::pipe::pipe;

    const REQUEST: fn(u64) -> WalRequest = |segment_bytes| WalRequest {
        start: Lsn(0x1_0000_0000),
        timeline: Timeline(3),
        segment_bytes,
    };

    #[test]
    fn segments_are_named_as_postgresql_names_them() {
        let name = |position: &str, megabytes: u64| {
            segment_name(position.parse().unwrap(), &REQUEST(megabytes << 20))
        };
        assert_eq!(name("0/2000028", 16), "000000030000000000000002");
        assert_eq!(name("1/0", 16), "000000030000000100000000");
        assert_eq!(name("2/40000000", 1024), "000000030000000200000001");
        assert_eq!(
            segment_start("0/2ABCDEF".parse().unwrap(), 16 << 20),
            "0/2000000".parse().unwrap()
        );
    }

    #[tokio::test]
    async fn wal_is_archived_in_files_of_whole_segments() {
        let (writer, reader) = pipe();
        let read = tokio::task::spawn_blocking(move || {
            let mut archive = tar::Archive::new(reader.into_blocking());
            let entries = archive.entries().unwrap().map(|entry| {
                let mut entry = entry.unwrap();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                (entry.path().unwrap().display().to_string(), content)
            });
            let files = entries.collect::<Vec<_>>();
            // The writer ends only after the last entry.
            std::io::copy(&mut archive.into_inner(), &mut std::io::sink()).unwrap();
            files
        });
        let request = REQUEST(1024);
        let mut tar = TarWriter::new(writer);
        tar.file(
            "00000003.history",
            Bytes::from_static(b"1\t0/0\tno reason\n"),
        )
        .await
        .unwrap();
        let mut position = request.start;
        for bytes in [700, 700] {
            position = tar
                .write(position, Bytes::from(vec![7; bytes]), &request)
                .await
                .unwrap();
        }
        tar.fill_segment(position, &request).await.unwrap();
        tar.end().await.unwrap();
        let files = read.await.unwrap();
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        let (first, second) = ("000000030000000100000000", "000000030000000100000001");
        let expected = [
            "00000003.history".to_owned(),
            first.to_owned(),
            format!("archive_status/{first}.done"),
            second.to_owned(),
            format!("archive_status/{second}.done"),
        ];
        assert_eq!(names, expected);
        assert_eq!(files[1].1, vec![7; 1024]);
        assert_eq!(files[3].1, [vec![7; 376], vec![0; 648]].concat());
    }
}
