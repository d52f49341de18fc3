//! zstd in this program, for COMPRESS_BY=job and for a server that was built without any
//! compression.

use std::io::{self, Write};

use bytes::Bytes;
use job::error::Result;
use zstd::{stream::write::Encoder, zstd_safe::CParameter};

use crate::pipe::{CHUNK_BYTES, PipeReader, PipeWriter};

/// The server's default level for zstd.
const LEVEL: i32 = 3;
/// Input of one thread at a time, in bytes. A thread's memory is about three times this.
const JOB_BYTES: u32 = 512 << 10;
/// Limits the memory of all threads to what the pod has.
const THREADS_MAX: usize = 8;

/// Compresses a stream on all cores. Blocks: run it on a thread of its own.
///
/// # Errors
/// Transient if the stream was cut off, or if the reader of the compressed stream is gone.
pub fn compress(mut reader: PipeReader, writer: PipeWriter) -> Result<()> {
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(THREADS_MAX);
    let mut encoder = Encoder::new(ChunkWriter::new(writer), LEVEL)?;
    encoder.multithread(u32::try_from(threads).unwrap_or(1))?;
    encoder.set_parameter(CParameter::JobSize(JOB_BYTES))?;
    encoder.include_checksum(true)?;
    while let Some(bytes) = reader.blocking_next()? {
        encoder.write_all(&bytes)?;
    }
    let mut output = encoder.finish()?;
    output.flush()?;
    Ok(output.writer.blocking_end().map_err(|_| reader_closed())?)
}

/// Collects small writes into chunks.
struct ChunkWriter {
    writer: PipeWriter,
    buffer: Vec<u8>,
}

impl ChunkWriter {
    fn new(writer: PipeWriter) -> Self {
        Self {
            writer,
            buffer: Vec::with_capacity(CHUNK_BYTES),
        }
    }
}

fn reader_closed() -> io::Error {
    io::Error::new(
        io::ErrorKind::BrokenPipe,
        "the reader of the compressed archive has stopped",
    )
}

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = bytes.len().min(CHUNK_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..written]);
        if self.buffer.len() == CHUNK_BYTES {
            self.flush()?;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK_BYTES));
        self.writer
            .blocking_send(Bytes::from(full))
            .map_err(|_| reader_closed())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::pipe::pipe;

    #[test]
    fn compressed_content_is_unchanged_after_decompression() {
        let content: Vec<u8> = (0..5_000_000_u32)
            .flat_map(|n| (n / 7).to_le_bytes())
            .collect();
        let ((raw, raw_reader), (packed, packed_reader)) = (pipe(), pipe());
        let compressing = std::thread::spawn(move || compress(raw_reader, packed));
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
        zstd::stream::read::Decoder::new(packed_reader.into_blocking())
            .unwrap()
            .read_to_end(&mut out)
            .unwrap();
        assert!(out == content);
        sending.join().unwrap();
        compressing.join().unwrap().unwrap();
    }

    #[test]
    fn the_output_of_a_cut_off_stream_is_cut_off_too() {
        let ((raw, raw_reader), (packed, packed_reader)) = (pipe(), pipe());
        raw.blocking_send(Bytes::from_static(b"abc")).unwrap();
        drop(raw);
        assert!(compress(raw_reader, packed).is_err());
        assert!(
            packed_reader
                .into_blocking()
                .read_to_end(&mut Vec::new())
                .is_err()
        );
    }
}
