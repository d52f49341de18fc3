//! The login of a replication session: TCP, TLS, startup message and password.

use postgres_openssl::{MakeTlsConnector, TlsStream};
use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256},
    },
    message::{backend::Message, frontend},
};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect as _};

use super::wire::{Wire, unexpected};
use crate::postgres::{Credentials, tls};
use job::{
    config::{Connection, SslMode},
    error::{Error, Result},
};

pub(super) type Stream = TlsStream<BufReader<TcpStream>>;

/// Size of the read buffer of the socket in bytes. The server sends TLS records of 8 kB
/// (PQ_SEND_BUFFER_SIZE); without a buffer OpenSSL makes two system calls for each.
const SOCKET_BYTES: usize = 128 * 1024;

pub(super) async fn login(
    connection: &Connection,
    credentials: &Credentials,
    application: &str,
) -> Result<Wire<Stream>> {
    let mut wire = Wire::new(encrypted(connection, credentials).await?);
    let parameters = [
        ("user", connection.user.as_str()),
        ("replication", "true"),
        ("application_name", application),
    ];
    frontend::startup_message(parameters, wire.outbox())?;
    wire.send().await?;
    authenticate(&mut wire, &connection.user, &credentials.password).await?;
    Ok(wire)
}

async fn encrypted(connection: &Connection, credentials: &Credentials) -> Result<Stream> {
    let connector = tls::connector(connection.sslmode, credentials)?;
    let mut stream = match connection.hostaddr {
        Some(address) => TcpStream::connect((address, connection.port)).await?,
        None => TcpStream::connect((connection.host.as_str(), connection.port)).await?,
    };
    let mut request = bytes::BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request).await?;
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
        Error::config("tls handshake").caused_by(cause).hint(
            "the server's certificate does not fit the CA, the host name or the sslmode; run \
             extract-certs, it names the reason",
        )
    };
    let tls = MakeTlsConnect::<BufReader<TcpStream>>::make_tls_connect(&mut make, &connection.host)
        .map_err(|e| failed(e.into()))?;
    tls.connect(BufReader::with_capacity(SOCKET_BYTES, stream))
        .await
        .map_err(failed)
}

async fn authenticate(wire: &mut Wire<Stream>, user: &str, password: &SecretString) -> Result<()> {
    loop {
        match wire.next().await? {
            Message::AuthenticationOk => {}
            Message::ReadyForQuery(_) => return Ok(()),
            Message::AuthenticationMd5Password(body) => {
                let password = password.expose_secret().as_bytes();
                let hash = md5_hash(user.as_bytes(), password, body.salt());
                frontend::password_message(hash.as_bytes(), wire.outbox())?;
                wire.send().await?;
            }
            Message::AuthenticationSasl(_) => scram(wire, password).await?,
            _ => {
                return Err(Error::config(
                    "the server requests another authentication than md5 or SCRAM-SHA-256",
                ));
            }
        }
    }
}

/// SCRAM-SHA-256 without channel binding; libpq's default, channel_binding=prefer, allows that,
/// too.
async fn scram(wire: &mut Wire<Stream>, password: &SecretString) -> Result<()> {
    let password = password.expose_secret().as_bytes();
    let mut exchange = ScramSha256::new(password, ChannelBinding::unsupported());
    frontend::sasl_initial_response(SCRAM_SHA_256, exchange.message(), wire.outbox())?;
    wire.send().await?;
    let Message::AuthenticationSaslContinue(body) = wire.next().await? else {
        return Err(unexpected());
    };
    exchange.update(body.data())?;
    frontend::sasl_response(exchange.message(), wire.outbox())?;
    wire.send().await?;
    let Message::AuthenticationSaslFinal(body) = wire.next().await? else {
        return Err(unexpected());
    };
    Ok(exchange.finish(body.data())?)
}
