//! A login over the replication protocol, as far as IDENTIFY_SYSTEM: what pg_basebackup and a WAL receiver do first.
//!
//! tokio-postgres cannot ask for a walsender (startup parameter `replication`), and a login to a database says nothing about it:
//! pg_hba.conf treats the two apart. Messages are those of the PostgreSQL documentation, *Frontend/Backend Protocol*, and
//! *Streaming Replication Protocol*.

use postgres_openssl::MakeTlsConnector;
use postgres_protocol::authentication::{
    md5_hash,
    sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect as _};

use super::{CONNECT_TIMEOUT, SystemIdentifier, Timeline, endpoint, tls};
use crate::{
    config::{Connection, SslMode},
    error::{Context as _, Error, Result},
};

const SSL_REQUEST: i32 = 80_877_103;
const PROTOCOL: i32 = 3 << 16;
/// No answer before the first row is longer.
const MESSAGE_BYTES_MAX: usize = 65_536;
/// Notices, parameters and the like come before the row; there are not more.
const MESSAGES_MAX: usize = 200;

/// What IDENTIFY_SYSTEM answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Who the server is.
    pub system_identifier: SystemIdentifier,
    /// Timeline that it writes.
    pub timeline: Timeline,
}

/// Logs in as a walsender would be asked for by a standby, and asks who the server is.
///
/// # Errors
/// Config for a role, password, certificate or pg_hba that does not let it in; Transient for a server that does not answer.
pub async fn identify_system(connection: &Connection, password: &str, ca_pem: Option<&[u8]>, application: &str) -> Result<Answer> {
    let doing = format!("logging in to {} as {} for replication", endpoint(connection), connection.user);
    let answer = timeout(CONNECT_TIMEOUT * 2, async {
        let mut stream = encrypted(connection, ca_pem).await?;
        start(&mut stream, &connection.user, application).await?;
        authenticate(&mut stream, &connection.user, password).await?;
        ask(&mut stream).await
    });
    let answer = answer.await.map_err(|_| Error::transient("no answer within 10 s"));
    answer.and_then(|answer| answer).context(doing)
}

async fn encrypted(connection: &Connection, ca_pem: Option<&[u8]>) -> Result<impl AsyncRead + AsyncWrite + Unpin> {
    let connector = tls::connector(connection.sslmode, ca_pem, None)?;
    let mut stream = match connection.hostaddr {
        Some(address) => TcpStream::connect((address, connection.port)).await?,
        None => TcpStream::connect((connection.host.as_str(), connection.port)).await?,
    };
    stream.write_all(&[8_i32.to_be_bytes(), SSL_REQUEST.to_be_bytes()].concat()).await?;
    if stream.read_u8().await? != b'S' {
        return Err(Error::config("the server does not support TLS"));
    }
    let mut make = MakeTlsConnector::new(connector);
    let check_name = connection.sslmode == SslMode::VerifyFull;
    make.set_callback(move |session, _| {
        session.set_verify_hostname(check_name);
        Ok(())
    });
    let failed = |cause: Box<dyn std::error::Error + Send + Sync>| {
        Error::config("tls handshake")
            .caused_by(cause)
            .hint("the server's certificate does not fit the CA, the host name or the sslmode; run extract-certs, it names the reason")
    };
    let tls = MakeTlsConnect::<TcpStream>::make_tls_connect(&mut make, &connection.host).map_err(|e| failed(e.into()))?;
    tls.connect(stream).await.map_err(failed)
}

async fn start(stream: &mut (impl AsyncWrite + Unpin), user: &str, application: &str) -> Result<()> {
    let parameters = [("user", user), ("replication", "true"), ("application_name", application)];
    let mut body = PROTOCOL.to_be_bytes().to_vec();
    for (name, value) in parameters {
        for text in [name, value] {
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
    }
    body.push(0);
    stream.write_all(&length(&body)).await?;
    Ok(stream.write_all(&body).await?)
}

/// The length of a message counts itself.
fn length(body: &[u8]) -> [u8; 4] {
    u32::try_from(body.len() + 4).unwrap_or(u32::MAX).to_be_bytes()
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), tag: u8, body: &[u8]) -> Result<()> {
    stream.write_all(&[&[tag], length(body).as_slice(), body].concat()).await?;
    Ok(stream.flush().await?)
}

/// The next message that is neither a notice nor a parameter; an error of the server is an error here.
async fn receive(stream: &mut (impl AsyncRead + Unpin)) -> Result<(u8, Vec<u8>)> {
    for _ in 0..MESSAGES_MAX {
        let tag = stream.read_u8().await?;
        let bytes = (stream.read_u32().await? as usize).saturating_sub(4);
        if bytes > MESSAGE_BYTES_MAX {
            return Err(Error::transient("the server's answer is too long to be one"));
        }
        let mut body = vec![0; bytes];
        stream.read_exact(&mut body).await?;
        match tag {
            b'N' | b'S' | b'K' => {}
            b'E' => return Err(server_error(&body)),
            _ => return Ok((tag, body)),
        }
    }
    Err(Error::transient("the server talks without answering"))
}

fn server_error(body: &[u8]) -> Error {
    let fields = body.split(|byte| *byte == 0);
    let field = |code: u8| {
        let mut found = fields.clone().filter(|field| field.first() == Some(&code));
        found
            .next()
            .map_or_else(String::new, |field| String::from_utf8_lossy(&field[1..]).into_owned())
    };
    let state = field(b'C');
    let said = format!("postgresql: {} (SQLSTATE {state})", field(b'M'));
    match state.as_str() {
        "28P01" => Error::config(said).hint("the Secret does not hold this role's password"),
        "28000" => Error::config(said)
            .hint("the server's pg_hba has no line that admits this role for replication, or the role lacks replication or login"),
        "42501" => Error::config(said).hint("the role lacks replication"),
        _ => Error::transient(said),
    }
}

async fn authenticate(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), user: &str, password: &str) -> Result<()> {
    loop {
        let (tag, body) = receive(stream).await?;
        let (kind, rest) = match (tag, body.split_first_chunk::<4>()) {
            (b'R', Some((kind, rest))) => (i32::from_be_bytes(*kind), rest),
            (b'Z', _) => return Ok(()),
            _ => return Err(unexpected(tag)),
        };
        match (kind, rest.first_chunk::<4>()) {
            (0, _) => {}
            (5, Some(salt)) => {
                let hash = md5_hash(user.as_bytes(), password.as_bytes(), *salt);
                send(stream, b'p', &[hash.as_bytes(), &[0]].concat()).await?;
            }
            (10, _) => scram(stream, password).await?,
            _ => {
                return Err(Error::config(format!(
                    "the server asks for an authentication of kind {kind}, not for a password"
                )));
            }
        }
    }
}

/// SCRAM without channel binding, which `require` and a checked certificate do not need.
async fn scram(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), password: &str) -> Result<()> {
    let mut exchange = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
    let first = exchange.message();
    let bytes = u32::try_from(first.len()).unwrap_or(u32::MAX).to_be_bytes();
    send(stream, b'p', &[SCRAM_SHA_256.as_bytes(), &[0], &bytes, first].concat()).await?;
    exchange.update(&sasl(stream, 11).await?)?;
    send(stream, b'p', exchange.message()).await?;
    Ok(exchange.finish(&sasl(stream, 12).await?)?)
}

async fn sasl(stream: &mut (impl AsyncRead + Unpin), wanted: i32) -> Result<Vec<u8>> {
    let (tag, body) = receive(stream).await?;
    match (tag, body.split_first_chunk::<4>()) {
        (b'R', Some((kind, data))) if i32::from_be_bytes(*kind) == wanted => Ok(data.to_vec()),
        _ => Err(unexpected(tag)),
    }
}

async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<Answer> {
    send(stream, b'Q', b"IDENTIFY_SYSTEM\0").await?;
    loop {
        let (tag, body) = receive(stream).await?;
        match tag {
            b'T' => {}
            b'D' => {
                // Best effort: the answer is here, and the server notices a closed connection, too.
                let _ = send(stream, b'X', &[]).await;
                return parsed(&body).ok_or_else(|| Error::transient("IDENTIFY_SYSTEM was answered with something else"));
            }
            other => return Err(unexpected(other)),
        }
    }
}

/// Columns of a DataRow: their number, then length and text of each. The first is systemid, the second timeline.
fn parsed(row: &[u8]) -> Option<Answer> {
    let (_columns, rest) = row.split_first_chunk::<2>()?;
    let column = |rest: &'_ [u8]| -> Option<(String, usize)> {
        let (bytes, rest) = rest.split_first_chunk::<4>()?;
        let bytes = usize::try_from(i32::from_be_bytes(*bytes)).ok()?;
        Some((String::from_utf8_lossy(rest.get(..bytes)?).into_owned(), bytes + 4))
    };
    let (system_identifier, used) = column(rest)?;
    let (timeline, _) = column(&rest[used..])?;
    Some(Answer {
        system_identifier: SystemIdentifier(system_identifier.parse().ok()?),
        timeline: Timeline(timeline.parse().ok()?),
    })
}

fn unexpected(tag: u8) -> Error {
    Error::transient(format!("the server sent a message {:?} where none was expected", char::from(tag)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_row_of_identify_system_is_read_and_a_broken_one_is_not() {
        let texts = ["7500000000000000123", "3", "0/1"];
        let mut row = vec![0, 4];
        for text in texts {
            row.extend_from_slice(&(text.len() as i32).to_be_bytes());
            row.extend_from_slice(text.as_bytes());
        }
        row.extend_from_slice(&(-1_i32).to_be_bytes());
        let answer = parsed(&row).unwrap();
        assert_eq!(
            answer,
            Answer {
                system_identifier: SystemIdentifier(7_500_000_000_000_000_123),
                timeline: Timeline(3)
            }
        );
        assert_eq!(parsed(&row[..12]), None);
    }

    #[test]
    fn an_error_of_the_server_keeps_its_words_and_says_what_to_do() {
        let body = b"SFATAL\0VFATAL\0C28000\0Mno pg_hba.conf entry for replication connection\0\0";
        let error = server_error(body);
        assert_eq!(
            error.to_string(),
            "postgresql: no pg_hba.conf entry for replication connection (SQLSTATE 28000)"
        );
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.next_step().unwrap().contains("pg_hba"));
    }

    #[tokio::test]
    async fn notices_and_parameters_are_passed_over() {
        let mut bytes = vec![];
        for (tag, body) in [(b'S', "a\0b\0"), (b'N', "x\0\0"), (b'Z', "I")] {
            bytes.push(tag);
            bytes.extend_from_slice(&length(body.as_bytes()));
            bytes.extend_from_slice(body.as_bytes());
        }
        assert_eq!(receive(&mut bytes.as_slice()).await.unwrap(), (b'Z', b"I".to_vec()));
    }
}
