//! Errors and warnings of the server, by their fields (PostgreSQL documentation,
//! *Error and Notice Message Fields*).

use std::fmt;

use fallible_iterator::FallibleIterator as _;
use postgres_protocol::message::backend::ErrorFields;

use job::{error::Error, sqlstate::classify};

/// An error or a warning of the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ServerError {
    /// SQLSTATE.
    pub(super) code: String,
    /// `WARNING`, `ERROR`, …; never translated.
    pub(super) severity: String,
    /// The text, in the language of the server's lc_messages.
    pub(super) message: String,
}

impl ServerError {
    pub(super) fn read(mut fields: ErrorFields<'_>) -> std::io::Result<Self> {
        let mut read = Self::default();
        while let Some(field) = fields.next()? {
            let text = String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'C' => read.code = text,
                b'V' => read.severity = text,
                b'M' => read.message = text,
                _ => {}
            }
        }
        Ok(read)
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "postgresql: {} (SQLSTATE {})", self.message, self.code)
    }
}

impl From<ServerError> for Error {
    fn from(error: ServerError) -> Self {
        classify(&error.code, &error.message).into()
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use postgres_protocol::message::backend::Message;

    use super::*;
    use job::error::ErrorKind;

    fn read(fields: &[u8]) -> ServerError {
        let mut bytes = BytesMut::from(&b"E"[..]);
        bytes.extend_from_slice(&(fields.len() as u32 + 4).to_be_bytes());
        bytes.extend_from_slice(fields);
        let Message::ErrorResponse(body) = Message::parse(&mut bytes).unwrap().unwrap() else {
            panic!("an error is an error")
        };
        ServerError::read(body.fields()).unwrap()
    }

    #[test]
    fn an_error_of_the_server_keeps_its_text_and_gets_a_hint() {
        let error =
            read(b"SFATAL\0VFATAL\0C28000\0Mno pg_hba.conf entry for replication connection\0\0");
        assert_eq!(error.severity, "FATAL");
        let error = Error::from(error);
        assert_eq!(
            error.to_string(),
            "postgresql: no pg_hba.conf entry for replication connection (SQLSTATE 28000)"
        );
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.next_step().unwrap().contains("pg_hba"));
    }
}
