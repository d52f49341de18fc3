//! No password leaves in clear text: a server that asks for it so is refused before it is answered.
//! The client library would answer, and with `sslmode=require` nothing says which server asks.
//!
//! The messages of a server until AuthenticationOk are looked at as they arrive (PostgreSQL
//! documentation, *Message Formats*: a type, a length that counts itself, and for `R` the kind of
//! authentication).

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use postgres_openssl::{MakeTlsConnector, TlsStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{self, ChannelBinding, MakeTlsConnect, TlsConnect};

/// What the error says; [`refused`] recognizes it.
const REQUESTED: &str = "the server asks for the password in clear text";
/// Type and length of a message, and the kind of authentication.
const HEAD_BYTES: usize = 9;
const AUTHENTICATION: u8 = b'R';
const OK: u32 = 0;
const CLEAR_TEXT_PASSWORD: u32 = 3;

/// A connector whose sessions give no password in clear text.
#[derive(Clone)]
pub(super) struct NoClearText(pub(super) MakeTlsConnector);

/// Whether a connection has ended because of [`NoClearText`].
pub(super) fn refused(error: &tokio_postgres::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if inner.to_string() == REQUESTED {
            return true;
        }
        cause = inner.source();
    }
    false
}

impl<S> MakeTlsConnect<S> for NoClearText
where
    MakeTlsConnector: MakeTlsConnect<S>,
    <MakeTlsConnector as MakeTlsConnect<S>>::TlsConnect: TlsConnect<S, Stream = TlsStream<S>>,
    <<MakeTlsConnector as MakeTlsConnect<S>>::TlsConnect as TlsConnect<S>>::Future: Send + 'static,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Guarded<TlsStream<S>>;
    type TlsConnect = Connect<<MakeTlsConnector as MakeTlsConnect<S>>::TlsConnect>;
    type Error = <MakeTlsConnector as MakeTlsConnect<S>>::Error;

    fn make_tls_connect(&mut self, host: &str) -> Result<Self::TlsConnect, Self::Error> {
        self.0.make_tls_connect(host).map(Connect)
    }
}

/// The handshake of one session.
pub(super) struct Connect<C>(C);

impl<S, C> TlsConnect<S> for Connect<C>
where
    C: TlsConnect<S, Stream = TlsStream<S>>,
    C::Future: Send + 'static,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Guarded<TlsStream<S>>;
    type Error = C::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Stream, C::Error>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        let connecting = self.0.connect(stream);
        Box::pin(async { connecting.await.map(Guarded::new) })
    }
}

/// A session's stream.
pub(super) struct Guarded<S> {
    stream: S,
    requests: Requests,
}

impl<S> Guarded<S> {
    fn new(stream: S) -> Self {
        let requests = Requests::default();
        Self { stream, requests }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let arrived = buffer.filled().get(before..).unwrap_or_default();
        Poll::Ready(if self.requests.clear_text(arrived) {
            Err(io::Error::new(io::ErrorKind::PermissionDenied, REQUESTED))
        } else {
            Ok(())
        })
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl<S: tls::TlsStream + Unpin> tls::TlsStream for Guarded<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.stream.channel_binding()
    }
}

/// The messages of a server until it has accepted the login.
#[derive(Default)]
struct Requests {
    head: Vec<u8>,
    /// Bytes of the present message that are not looked at.
    skip: usize,
    accepted: bool,
}

impl Requests {
    /// Whether the password is asked for in clear text, after these bytes.
    fn clear_text(&mut self, arrived: &[u8]) -> bool {
        for byte in arrived {
            if self.accepted {
                return false;
            }
            if self.skip > 0 {
                self.skip -= 1;
                continue;
            }
            self.head.push(*byte);
            if self.message() == Some(CLEAR_TEXT_PASSWORD) {
                return true;
            }
        }
        false
    }

    /// The kind of authentication, when the head of such a message is complete.
    fn message(&mut self) -> Option<u32> {
        let number = |at: usize| -> Option<u32> {
            let bytes = self.head.get(at..at + 4)?;
            Some(u32::from_be_bytes(bytes.try_into().ok()?))
        };
        let length = number(1)? as usize;
        let kind = if self.head.first() == Some(&AUTHENTICATION) && length + 1 >= HEAD_BYTES {
            Some(number(5)?)
        } else {
            None
        };
        self.accepted = kind == Some(OK);
        self.skip = (length + 1).saturating_sub(self.head.len());
        self.head.clear();
        kind
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authentication(kind: u32, rest: &[u8]) -> Vec<u8> {
        let length = 8 + rest.len() as u32;
        let parts = [&b"R"[..], &length.to_be_bytes(), &kind.to_be_bytes(), rest];
        parts.concat()
    }

    #[test]
    fn a_request_is_found_wherever_the_bytes_are_cut() {
        let notice = b"N\0\0\0\x0aSLOG\0\0".to_vec();
        let request = [notice, authentication(CLEAR_TEXT_PASSWORD, b"")].concat();
        for size in 1..=request.len() {
            let mut requests = Requests::default();
            let found = request.chunks(size).any(|part| requests.clear_text(part));
            assert!(found, "{size}");
        }
    }

    #[test]
    fn other_requests_and_what_follows_a_login_are_none() {
        let (md5, sasl) = (10_u32.to_be_bytes(), b"SCRAM-SHA-256\0\0");
        let login = [
            authentication(10, sasl),
            authentication(11, &md5),
            authentication(12, b"v=R\0\0\0\x08\0\0\0\x03"),
            authentication(OK, b""),
            // A value of a row may look like a request.
            authentication(CLEAR_TEXT_PASSWORD, b""),
        ]
        .concat();
        for size in 1..=login.len() {
            let mut requests = Requests::default();
            let found = login.chunks(size).any(|part| requests.clear_text(part));
            assert!(!found, "{size}");
        }
        assert!(!Requests::default().clear_text(&authentication(5, b"salt")));
    }
}
