//! Streams of bytes between the parts of a copy, each with a place for a few chunks only: whoever
//! is slow holds up the server, and nothing piles up in memory. An end is said; a stream that
//! merely stops was cut off.

use std::io::{self, BufRead, Read};

use bytes::{Buf as _, Bytes};
use job::error::{Error, Result};
use tokio::sync::mpsc;

/// Chunks under way; those of the server have 32 kB.
const CHUNKS: usize = 32;
/// Reads are cut to this.
pub const CHUNK_BYTES: usize = 64 * 1024;

enum Chunk {
    Data(Bytes),
    End,
}

/// Where a stream goes in.
pub struct Feed(mpsc::Sender<Chunk>);

/// Where it comes out.
pub struct Drain(mpsc::Receiver<Chunk>);

/// Nobody takes any more; the one who stopped taking knows why.
#[derive(Debug)]
pub struct Closed;

/// A stream.
pub fn pipe() -> (Feed, Drain) {
    let (sender, receiver) = mpsc::channel(CHUNKS);
    (Feed(sender), Drain(receiver))
}

impl Feed {
    pub async fn send(&self, bytes: Bytes) -> Result<(), Closed> {
        self.0.send(Chunk::Data(bytes)).await.map_err(|_| Closed)
    }

    pub fn blocking_send(&self, bytes: Bytes) -> Result<(), Closed> {
        self.0.blocking_send(Chunk::Data(bytes)).map_err(|_| Closed)
    }

    /// Nothing more comes, and nothing is missing.
    pub async fn end(self) -> Result<(), Closed> {
        self.0.send(Chunk::End).await.map_err(|_| Closed)
    }

    pub fn blocking_end(self) -> Result<(), Closed> {
        self.0.blocking_send(Chunk::End).map_err(|_| Closed)
    }
}

impl Drain {
    /// None at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        Self::read(self.0.recv().await)
    }

    /// As [`Drain::next`], in a thread.
    pub fn blocking_next(&mut self) -> Result<Option<Bytes>> {
        Self::read(self.0.blocking_recv())
    }

    fn read(chunk: Option<Chunk>) -> Result<Option<Bytes>> {
        match chunk {
            Some(Chunk::Data(bytes)) => Ok(Some(bytes)),
            Some(Chunk::End) => Ok(None),
            None => Err(cut_off()),
        }
    }

    /// For a thread that reads.
    pub fn reader(self) -> Reader {
        Reader {
            drain: self,
            rest: Bytes::new(),
            ended: false,
        }
    }
}

const CUT_OFF: &str = "the stream was cut off";

fn cut_off() -> Error {
    Error::transient(CUT_OFF)
}

/// Of two errors at both ends of a stream the one that says why; the other only noticed.
pub fn cause(one: Error, other: Error) -> Error {
    if one.to_string().ends_with(CUT_OFF) {
        other
    } else {
        one
    }
}

/// A thread or task whose panic is an error like others.
pub async fn joined<T>(
    handle: impl Future<Output = Result<Result<T>, tokio::task::JoinError>>,
) -> Result<T> {
    handle
        .await
        .map_err(|error| Error::transient("a thread has died").caused_by(error))?
}

/// A stream as [`BufRead`]: its chunks are read where they are.
pub struct Reader {
    drain: Drain,
    rest: Bytes,
    ended: bool,
}

impl BufRead for Reader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.rest.is_empty() && !self.ended {
            match self.drain.blocking_next().map_err(io::Error::other)? {
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

impl Read for Reader {
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
    fn an_end_is_said_and_a_stop_is_none() {
        let read = |end: bool| {
            let (feed, drain) = pipe();
            for chunk in ["ab", "", "cd"] {
                feed.blocking_send(Bytes::from_static(chunk.as_bytes()))
                    .unwrap();
            }
            if end {
                feed.blocking_end().unwrap();
            } else {
                drop(feed);
            }
            let mut text = String::new();
            drain.reader().read_to_string(&mut text).map(|_| text)
        };
        assert_eq!(read(true).unwrap(), "abcd");
        assert_eq!(
            read(false).unwrap_err().to_string(),
            "the stream was cut off"
        );
    }

    #[tokio::test]
    async fn who_sends_learns_that_nobody_takes() {
        let (feed, drain) = pipe();
        drop(drain);
        assert!(feed.send(Bytes::new()).await.is_err());
    }
}
