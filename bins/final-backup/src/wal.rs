//! The WAL beside the backup: received as a stream, kept as pg_wal.tar, a file for each segment.

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
    flow::{CHUNK_BYTES, Closed, Feed},
    wal::pages::Pages,
};

mod pages;

/// From the moment when it is known how far the WAL must reach.
const REST: Duration = Duration::from_secs(120);

/// Which WAL is wanted.
pub struct Wanted {
    /// From the segment of this position on.
    pub start: Lsn,
    /// The timeline.
    pub timeline: Timeline,
    /// Bytes of a segment.
    pub segment_bytes: u64,
}

/// Receives WAL until it reaches `enough`, which is told as soon as it is known, and writes it as
/// an archive. Returns its end.
///
/// # Errors
/// Transient when the stream breaks, ends, or does not come so far.
pub async fn follow(
    mut stream: WalStream,
    wanted: Wanted,
    tar: &mut Tar,
    mut enough: watch::Receiver<Option<Lsn>>,
) -> Result<Lsn> {
    let mut position = first_of_segment(wanted.start, wanted.segment_bytes);
    let mut pages = Pages::new(position, wanted.segment_bytes);
    let mut deadline = None;
    loop {
        let end = *enough.borrow_and_update();
        if end.is_some_and(|end| position >= end) {
            tar.fill_segment(position, &wanted).await?;
            stream.stop().await;
            return Ok(position);
        }
        if end.is_some() {
            deadline.get_or_insert_with(|| Instant::now() + REST);
        }
        let late = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            received = stream.next() => match received? {
                Received::Wal { start, .. } if start != position => {
                    return Err(Error::transient(format!("the wal has a gap: {start} follows \
                        {position}")));
                }
                Received::Wal { bytes, .. } => {
                    pages.check(&bytes)?;
                    let before = first_of_segment(position, wanted.segment_bytes);
                    position = tar.write(position, bytes, &wanted).await?;
                    if first_of_segment(position, wanted.segment_bytes) != before {
                        stream.confirm(position).await?;
                    }
                }
                Received::Keepalive => stream.confirm(position).await?,
                Received::TimelineEnded => {
                    return Err(Error::transient(format!("timeline {} ended during the backup: \
                        another member was promoted", wanted.timeline))
                        .hint("run the step again when the source is calm"));
                }
            },
            told = enough.changed() => if told.is_err() {
                return Err(Error::transient("the base backup has ended early"));
            },
            () = late => {
                let end = end.map_or_else(String::new, |end| end.to_string());
                return Err(Error::transient(format!("the wal stands at {position}, and does not \
                    reach {end}")));
            }
        }
    }
}

/// Where the segment of a position begins.
pub fn first_of_segment(position: Lsn, segment_bytes: u64) -> Lsn {
    let position = u64::from(position.0);
    Lsn((position - position % segment_bytes).into())
}

/// `000000010000000000000002`: timeline, and the segment's number in two halves.
fn segment_name(position: Lsn, wanted: &Wanted) -> String {
    let number = u64::from(position.0) / wanted.segment_bytes;
    let per_half = 0x1_0000_0000 / wanted.segment_bytes;
    format!(
        "{:08X}{:08X}{:08X}",
        wanted.timeline.0,
        number / per_half,
        number % per_half
    )
}

/// An archive that is written as it comes; whoever drains it has the word on what goes wrong.
pub struct Tar {
    feed: Feed,
}

impl Tar {
    pub fn new(feed: Feed) -> Self {
        Self { feed }
    }

    /// A file, whole.
    pub async fn file(&mut self, name: &str, content: Bytes) -> Result<()> {
        self.header(name, content.len() as u64).await?;
        let padding = padding(content.len() as u64);
        self.send(content).await?;
        self.send(Bytes::from(vec![0; padding])).await
    }

    /// The end of the archive: two blocks of nothing.
    pub async fn end(self) -> Result<()> {
        let ended = async {
            self.feed.send(Bytes::from_static(&[0; 1024])).await?;
            self.feed.end().await
        };
        ended.await.map_err(nobody)
    }

    /// Some WAL, which may lie in several segments. Returns its end.
    async fn write(&mut self, mut position: Lsn, mut bytes: Bytes, wanted: &Wanted) -> Result<Lsn> {
        while !bytes.is_empty() {
            let within = u64::from(position.0) % wanted.segment_bytes;
            if within == 0 {
                self.header(&segment_name(position, wanted), wanted.segment_bytes)
                    .await?;
            }
            let room = usize::try_from(wanted.segment_bytes - within).unwrap_or(usize::MAX);
            let part = bytes.split_to(room.min(bytes.len()));
            position = Lsn((u64::from(position.0) + part.len() as u64).into());
            self.send(part).await?;
            if u64::from(position.0) % wanted.segment_bytes == 0 {
                self.done(position, wanted).await?;
            }
        }
        Ok(position)
    }

    /// A segment is as long as the others, also when the WAL ends in it.
    async fn fill_segment(&mut self, position: Lsn, wanted: &Wanted) -> Result<()> {
        let within = u64::from(position.0) % wanted.segment_bytes;
        if within == 0 {
            return Ok(());
        }
        let mut missing = usize::try_from(wanted.segment_bytes - within).unwrap_or_default();
        while missing > 0 {
            let part = missing.min(CHUNK_BYTES);
            self.send(Bytes::from_static(&[0; CHUNK_BYTES]).slice(..part))
                .await?;
            missing -= part;
        }
        let end = Lsn((u64::from(position.0) - within + wanted.segment_bytes).into());
        self.done(end, wanted).await
    }

    /// Says that the segment before `end` needs no archiving: a server restored from this would
    /// otherwise do it once more.
    async fn done(&mut self, end: Lsn, wanted: &Wanted) -> Result<()> {
        let inside = Lsn((u64::from(end.0) - 1).into());
        let name = format!("archive_status/{}.done", segment_name(inside, wanted));
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
        self.feed.send(bytes).await.map_err(nobody)
    }
}

fn nobody(_: Closed) -> Error {
    Error::transient("pg_wal.tar is not taken any more")
}

fn padding(bytes: u64) -> usize {
    ((512 - bytes % 512) % 512) as usize
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::flow::pipe;

    const WANTED: fn(u64) -> Wanted = |segment_bytes| Wanted {
        start: Lsn(0x1_0000_0000),
        timeline: Timeline(3),
        segment_bytes,
    };

    #[test]
    fn segments_are_named_as_postgresql_names_them() {
        let name = |position: &str, megabytes: u64| {
            segment_name(position.parse().unwrap(), &WANTED(megabytes << 20))
        };
        assert_eq!(name("0/2000028", 16), "000000030000000000000002");
        assert_eq!(name("1/0", 16), "000000030000000100000000");
        assert_eq!(name("2/40000000", 1024), "000000030000000200000001");
        assert_eq!(
            first_of_segment("0/2ABCDEF".parse().unwrap(), 16 << 20),
            "0/2000000".parse().unwrap()
        );
    }

    #[tokio::test]
    async fn wal_becomes_files_of_whole_segments() {
        let (feed, drain) = pipe();
        let read = tokio::task::spawn_blocking(move || {
            let mut archive = tar::Archive::new(drain.reader());
            let entries = archive.entries().unwrap().map(|entry| {
                let mut entry = entry.unwrap();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                (entry.path().unwrap().display().to_string(), content)
            });
            let files = entries.collect::<Vec<_>>();
            // Whoever writes is not done with the last entry.
            std::io::copy(&mut archive.into_inner(), &mut std::io::sink()).unwrap();
            files
        });
        let wanted = WANTED(1024);
        let mut tar = Tar::new(feed);
        tar.file(
            "00000003.history",
            Bytes::from_static(b"1\t0/0\tno reason\n"),
        )
        .await
        .unwrap();
        let mut position = wanted.start;
        for bytes in [700, 700] {
            position = tar
                .write(position, Bytes::from(vec![7; bytes]), &wanted)
                .await
                .unwrap();
        }
        tar.fill_segment(position, &wanted).await.unwrap();
        tar.end().await.unwrap();
        let files = read.await.unwrap();
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        let (first, second) = ("000000030000000100000000", "000000030000000100000001");
        let wanted = [
            "00000003.history".to_owned(),
            first.to_owned(),
            format!("archive_status/{first}.done"),
            second.to_owned(),
            format!("archive_status/{second}.done"),
        ];
        assert_eq!(names, wanted);
        assert_eq!(files[1].1, vec![7; 1024]);
        assert_eq!(files[3].1, [vec![7; 376], vec![0; 648]].concat());
    }
}
