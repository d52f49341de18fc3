//! Sends and receives the messages of the protocol, which postgres-protocol builds and parses.

use std::collections::VecDeque;

use bytes::BytesMut;
use postgres_protocol::message::{
    backend::{self, Header, Message},
    frontend,
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::ServerError;
use job::error::{Error, Result};

/// Longest message that is accepted, in bytes. The server sends at most 32 kB of a file or 128 kB
/// of WAL in one message; rows and notices are shorter.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Size of the receive buffer in bytes; one allocation holds the data of several messages.
const INBOX_BYTES: usize = 256 * 1024;
/// Longest list of notices that are kept until [`Wire::take_notices`].
const NOTICES_MAX: usize = 100;
/// CopyBothResponse, which has the body of CopyOutResponse; postgres-protocol parses only that one.
const COPY_BOTH_RESPONSE_TAG: u8 = b'W';

/// The reason why no message was received.
pub(super) enum Failure {
    /// The server has refused the command; after [`Wire::until_ready`] it accepts another one.
    Server(ServerError),
    /// The connection has failed.
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

    /// The send buffer, to which the functions of [`frontend`] write; [`Wire::send`] sends it.
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

    /// Receives the next message. Notices are kept for [`Wire::take_notices`], parameters are
    /// ignored, and an ErrorResponse becomes [`Failure::Server`].
    ///
    /// Cancellation-safe: no data is lost when the future is dropped.
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
                return Err(Error::transient("the server sent a message that is too long").into());
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

    /// Ignores the rest of the answer to a command, so that another one can be sent.
    pub(super) async fn until_ready(&mut self) -> Result<(), Failure> {
        loop {
            match self.next().await {
                Ok(Message::ReadyForQuery(_)) => return Ok(()),
                Ok(_) | Err(Failure::Server(_)) => {}
                Err(broken) => return Err(broken),
            }
        }
    }

    /// Removes and returns the notices that have been received since the last call.
    pub(super) fn take_notices(&mut self) -> impl Iterator<Item = ServerError> {
        std::mem::take(&mut self.notices).into_iter()
    }
}

pub(super) fn unexpected() -> Error {
    Error::transient("the server sent an unexpected message")
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
    async fn parameters_are_ignored_and_notices_are_kept() {
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
    async fn copy_both_is_parsed_like_copy_out() {
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
    async fn an_incomplete_message_and_an_impossible_length_are_different_errors() {
        let error = async |bytes: &[u8]| match received(bytes).await.next().await {
            Err(Failure::Broken(error)) => error.to_string(),
            _ => panic!("nothing whole was sent"),
        };
        assert_eq!(
            error(b"d\0\0").await,
            "the server has closed the connection"
        );
        assert_eq!(
            error(b"d\x7f\0\0\0").await,
            "the server sent a message that is too long"
        );
    }
}
