//! zstd on this side, for a server that was built without any compression.

use std::io::{self, Write};

use bytes::Bytes;
use job::error::Result;
use zstd::{stream::write::Encoder, zstd_safe::CParameter};

use crate::flow::{CHUNK_BYTES, Drain, Feed};

/// As the server would.
const LEVEL: i32 = 3;
/// Input of one thread at a time, and with it the memory: a thread has about three of these.
const JOB_BYTES: u32 = 512 << 10;
/// More would not fit into the memory of the pod.
const THREADS_MAX: usize = 8;

/// Compresses a stream with all cores; for a thread of its own.
///
/// # Errors
/// The stream was cut off, or nobody takes the result.
pub fn compress(mut drain: Drain, feed: Feed) -> Result<()> {
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(THREADS_MAX);
    let mut encoder = Encoder::new(Out::new(feed), LEVEL)?;
    encoder.multithread(u32::try_from(threads).unwrap_or(1))?;
    encoder.set_parameter(CParameter::JobSize(JOB_BYTES))?;
    encoder.include_checksum(true)?;
    while let Some(bytes) = drain.blocking_next()? {
        encoder.write_all(&bytes)?;
    }
    let mut out = encoder.finish()?;
    out.flush()?;
    Ok(out.feed.blocking_end().map_err(|_| nobody())?)
}

/// Small writes become chunks.
struct Out {
    feed: Feed,
    buffer: Vec<u8>,
}

impl Out {
    fn new(feed: Feed) -> Self {
        Self {
            feed,
            buffer: Vec::with_capacity(CHUNK_BYTES),
        }
    }
}

fn nobody() -> io::Error {
    io::Error::new(
        io::ErrorKind::BrokenPipe,
        "the compressed archive is not taken any more",
    )
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == CHUNK_BYTES {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK_BYTES));
        self.feed
            .blocking_send(Bytes::from(full))
            .map_err(|_| nobody())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::flow::pipe;

    #[test]
    fn what_was_compressed_is_the_same_again() {
        let content: Vec<u8> = (0..5_000_000_u32)
            .flat_map(|n| (n / 7).to_le_bytes())
            .collect();
        let ((raw, raw_drain), (packed, packed_drain)) = (pipe(), pipe());
        let compressing = std::thread::spawn(move || compress(raw_drain, packed));
        let chunks: Vec<Bytes> = content
            .chunks(CHUNK_BYTES)
            .map(Bytes::copy_from_slice)
            .collect();
        let sending = std::thread::spawn(move || {
            chunks
                .into_iter()
                .for_each(|chunk| raw.blocking_send(chunk).unwrap());
            raw.blocking_end().unwrap();
        });
        let mut out = Vec::new();
        zstd::stream::read::Decoder::new(packed_drain.reader())
            .unwrap()
            .read_to_end(&mut out)
            .unwrap();
        assert!(out == content);
        sending.join().unwrap();
        compressing.join().unwrap().unwrap();
    }

    #[test]
    fn a_stream_that_was_cut_off_has_no_end_here_either() {
        let ((raw, raw_drain), (packed, packed_drain)) = (pipe(), pipe());
        raw.blocking_send(Bytes::from_static(b"abc")).unwrap();
        drop(raw);
        assert!(compress(raw_drain, packed).is_err());
        assert!(packed_drain.reader().read_to_end(&mut Vec::new()).is_err());
    }
}
