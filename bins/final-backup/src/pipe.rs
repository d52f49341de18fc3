//! Bounded streams of bytes between the parts of a copy. A pipe holds only a few chunks: a slow
//! reader slows the server down, so memory stays small. The end of a stream is sent explicitly; a
//! stream that stops without it was cut off.

use std::io::{self, BufRead, Read};

use bytes::{Buf as _, Bytes};
use job::error::{Error, Result};
use tokio::sync::mpsc;

/// Chunks that a pipe holds. The server's chunks have 32 kB.
const CHUNKS: usize = 32;
/// Largest chunk that this program makes, in bytes.
pub const CHUNK_BYTES: usize = 64 * 1024;

enum Chunk {
    Data(Bytes),
    End,
}

/// The writing end of a pipe.
pub struct PipeWriter(mpsc::Sender<Chunk>);

/// The reading end of a pipe.
pub struct PipeReader(mpsc::Receiver<Chunk>);

/// The reading end was dropped. The reader's own error has the reason.
#[derive(Debug)]
pub struct ReaderClosed;

/// Makes a pipe.
pub fn pipe() -> (PipeWriter, PipeReader) {
    let (sender, receiver) = mpsc::channel(CHUNKS);
    (PipeWriter(sender), PipeReader(receiver))
}

impl PipeWriter {
    /// Sends a chunk; waits while the pipe is full.
    pub async fn send(&self, bytes: Bytes) -> Result<(), ReaderClosed> {
        self.0
            .send(Chunk::Data(bytes))
            .await
            .map_err(|_| ReaderClosed)
    }

    /// As [`PipeWriter::send`], for a thread.
    pub fn blocking_send(&self, bytes: Bytes) -> Result<(), ReaderClosed> {
        self.0
            .blocking_send(Chunk::Data(bytes))
            .map_err(|_| ReaderClosed)
    }

    /// Marks the stream as complete.
    pub async fn end(self) -> Result<(), ReaderClosed> {
        self.0.send(Chunk::End).await.map_err(|_| ReaderClosed)
    }

    /// As [`PipeWriter::end`], for a thread.
    pub fn blocking_end(self) -> Result<(), ReaderClosed> {
        self.0.blocking_send(Chunk::End).map_err(|_| ReaderClosed)
    }
}

impl PipeReader {
    /// The next chunk; None at the end.
    ///
    /// # Errors
    /// Transient if the stream was cut off.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        Self::read(self.0.recv().await)
    }

    /// As [`PipeReader::next`], for a thread.
    pub fn blocking_next(&mut self) -> Result<Option<Bytes>> {
        Self::read(self.0.blocking_recv())
    }

    fn read(chunk: Option<Chunk>) -> Result<Option<Bytes>> {
        match chunk {
            Some(Chunk::Data(bytes)) => Ok(Some(bytes)),
            Some(Chunk::End) => Ok(None),
            None => Err(Error::transient(CUT_OFF)),
        }
    }

    /// Turns this end into a [`BufRead`] for a thread.
    pub fn into_blocking(self) -> BlockingReader {
        BlockingReader {
            reader: self,
            rest: Bytes::new(),
            ended: false,
        }
    }
}

const CUT_OFF: &str = "the stream was cut off";

/// Of the errors at both ends of a stream, the one that has the reason. The other end only noticed
/// that the stream was cut off.
pub fn root_cause(one: Error, other: Error) -> Error {
    if one.to_string().ends_with(CUT_OFF) {
        other
    } else {
        one
    }
}

/// Waits for a thread or task, and turns a panic in it into an error.
pub async fn joined<T>(
    handle: impl Future<Output = Result<Result<T>, tokio::task::JoinError>>,
) -> Result<T> {
    handle
        .await
        .map_err(|error| Error::transient("a thread has died").caused_by(error))?
}

/// The reading end of a pipe as [`BufRead`]. Chunks are not copied.
pub struct BlockingReader {
    reader: PipeReader,
    rest: Bytes,
    ended: bool,
}

impl BufRead for BlockingReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.rest.is_empty() && !self.ended {
            match self.reader.blocking_next().map_err(io::Error::other)? {
                Some(bytes) => self.rest = bytes,
                None => self.ended = true,
            }
        }
        Ok(&self.rest)
    }

    fn consume(&mut self, bytes: usize) {
        self.rest.advance(bytes);
    }
}

impl Read for BlockingReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_ends_only_with_its_end_marker() {
        let read = |end: bool| {
            let (writer, reader) = pipe();
            for chunk in ["ab", "", "cd"] {
                writer
                    .blocking_send(Bytes::from_static(chunk.as_bytes()))
                    .unwrap();
            }
            if end {
                writer.blocking_end().unwrap();
            } else {
                drop(writer);
            }
            let mut text = String::new();
            reader
                .into_blocking()
                .read_to_string(&mut text)
                .map(|_| text)
        };
        assert_eq!(read(true).unwrap(), "abcd");
        assert_eq!(
            read(false).unwrap_err().to_string(),
            "the stream was cut off"
        );
    }

    #[tokio::test]
    async fn a_writer_learns_that_the_reader_is_gone() {
        let (writer, reader) = pipe();
        drop(reader);
        assert!(writer.send(Bytes::new()).await.is_err());
    }
}
