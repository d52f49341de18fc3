//! Messages over a stream: postgres-protocol builds and parses them, here they are sent and
//! received.

use std::collections::VecDeque;

use bytes::BytesMut;
use postgres_protocol::message::{
    backend::{self, Header, Message},
    frontend,
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::ServerError;
use job::error::{Error, Result};

/// The server sends at most 32 kB of a file or 128 kB of WAL in one message; a row or a notice is
/// shorter.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Read from the stream at once; one allocation holds the data of several messages.
const INBOX_BYTES: usize = 256 * 1024;
/// Warnings that are kept until somebody takes them.
const NOTICES_MAX: usize = 100;
/// CopyBothResponse has the body of CopyOutResponse, and postgres-protocol knows only that one.
const COPY_BOTH_RESPONSE_TAG: u8 = b'W';

/// Why a message did not come.
pub(super) enum Failure {
    /// The server has refused the command, and is ready for another one after
    /// [`Wire::until_ready`].
    Server(ServerError),
    /// The connection is of no use any more.
    Broken(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Broken(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Broken(match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                Error::transient("the server has closed the connection")
            }
            _ => Error::transient("the connection to the server broke").caused_by(error),
        })
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Server(error) => error.into(),
            Failure::Broken(error) => error,
        }
    }
}

pub(super) struct Wire<S> {
    stream: S,
    inbox: BytesMut,
    outbox: BytesMut,
    notices: VecDeque<ServerError>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            inbox: BytesMut::new(),
            outbox: BytesMut::new(),
            notices: VecDeque::new(),
        }
    }

    /// Where the functions of [`frontend`] write; [`Wire::send`] sends it.
    pub(super) fn outbox(&mut self) -> &mut BytesMut {
        &mut self.outbox
    }

    pub(super) async fn send(&mut self) -> Result<(), Failure> {
        self.stream.write_all(&self.outbox).await?;
        self.outbox.clear();
        Ok(self.stream.flush().await?)
    }

    pub(super) async fn query(&mut self, command: &str) -> Result<(), Failure> {
        frontend::query(command, &mut self.outbox)?;
        self.send().await
    }

    /// The next message that is neither a notice, which is kept, nor a parameter; an error of the
    /// server is an error here.
    ///
    /// May be dropped at any moment: nothing is lost.
    pub(super) async fn next(&mut self) -> Result<Message, Failure> {
        loop {
            match self.whole_message()? {
                None => self.receive().await?,
                Some(Message::ParameterStatus(_) | Message::BackendKeyData(_)) => {}
                Some(Message::NoticeResponse(notice)) => {
                    if self.notices.len() < NOTICES_MAX {
                        self.notices.push_back(ServerError::read(notice.fields())?);
                    }
                }
                Some(Message::ErrorResponse(error)) => {
                    return Err(Failure::Server(ServerError::read(error.fields())?));
                }
                Some(message) => return Ok(message),
            }
        }
    }

    fn whole_message(&mut self) -> Result<Option<Message>, Failure> {
        if let Some(header) = Header::parse(&self.inbox)? {
            if usize::try_from(header.len()).is_ok_and(|bytes| bytes > MESSAGE_BYTES_MAX) {
                return Err(Error::transient("the server's answer is too long to be one").into());
            }
            if header.tag() == COPY_BOTH_RESPONSE_TAG {
                self.inbox[0] = backend::COPY_OUT_RESPONSE_TAG;
            }
        }
        Ok(Message::parse(&mut self.inbox)?)
    }

    async fn receive(&mut self) -> Result<(), Failure> {
        if self.inbox.capacity() - self.inbox.len() < INBOX_BYTES / 8 {
            self.inbox.reserve(INBOX_BYTES);
        }
        match self.stream.read_buf(&mut self.inbox).await? {
            0 => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
            _ => Ok(()),
        }
    }

    /// Passes over what is left of the answer to a command, so that another one can be sent.
    pub(super) async fn until_ready(&mut self) -> Result<(), Failure> {
        loop {
            match self.next().await {
                Ok(Message::ReadyForQuery(_)) => return Ok(()),
                Ok(_) | Err(Failure::Server(_)) => {}
                Err(broken) => return Err(broken),
            }
        }
    }

    /// What the server has remarked so far and nobody has taken yet.
    pub(super) fn take_notices(&mut self) -> impl Iterator<Item = ServerError> {
        std::mem::take(&mut self.notices).into_iter()
    }
}

pub(super) fn unexpected() -> Error {
    Error::transient("the server sent a message where none of its kind was expected")
}

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;

    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[tag], length.as_slice(), body].concat()
    }

    /// A wire whose server has sent `bytes` and closed the connection.
    async fn received(bytes: &[u8]) -> Wire<DuplexStream> {
        let (client, mut server) = tokio::io::duplex(bytes.len().max(1));
        server.write_all(bytes).await.unwrap();
        Wire::new(client)
    }

    #[tokio::test]
    async fn parameters_are_passed_over_and_notices_are_kept() {
        let bytes = [
            message(b'S', b"a\0b\0"),
            message(b'N', b"SWARNUNG\0VWARNING\0C01000\0Mkaputt\0\0"),
            message(b'Z', b"I"),
        ];
        let mut wire = received(&bytes.concat()).await;
        assert!(matches!(wire.next().await, Ok(Message::ReadyForQuery(_))));
        let notices: Vec<ServerError> = wire.take_notices().collect();
        assert_eq!(
            (notices[0].severity.as_str(), notices[0].message.as_str()),
            ("WARNING", "kaputt")
        );
        assert_eq!(wire.take_notices().count(), 0);
    }

    #[tokio::test]
    async fn copy_in_both_directions_begins_like_a_copy_out() {
        let mut wire = received(&message(b'W', &[0, 0, 0])).await;
        assert!(matches!(wire.next().await, Ok(Message::CopyOutResponse(_))));
    }

    #[tokio::test]
    async fn after_an_error_the_next_command_can_be_sent() {
        let bytes = [
            message(b'E', b"VERROR\0C0A000\0Mnot built in\0\0"),
            message(b'Z', b"I"),
        ];
        let mut wire = received(&bytes.concat()).await;
        let Err(Failure::Server(error)) = wire.next().await else {
            panic!("an error is an error")
        };
        assert_eq!(error.code, "0A000");
        assert!(wire.until_ready().await.is_ok());
    }

    #[tokio::test]
    async fn an_end_in_the_middle_and_a_length_that_cannot_be_are_told_apart() {
        let said = async |bytes: &[u8]| match received(bytes).await.next().await {
            Err(Failure::Broken(error)) => error.to_string(),
            _ => panic!("nothing whole was sent"),
        };
        assert_eq!(said(b"d\0\0").await, "the server has closed the connection");
        assert_eq!(
            said(b"d\x7f\0\0\0").await,
            "the server's answer is too long to be one"
        );
    }
}
