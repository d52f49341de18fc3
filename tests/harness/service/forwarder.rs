//! One TCP listener: accepts connections, chooses a backend and copies in both directions, without
//! added delay (TCP_NODELAY on both sides).

use std::{
    io,
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};

/// Limit for connecting to a backend, which is on the same machine.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// Pause before binding again; the previous listener may still hold the address.
const BIND_AGAIN: Duration = Duration::from_millis(20);
const TRIES_SILENT: u32 = 50;
const BACKLOG: u32 = 256;

/// Forwards one address until it is dropped. Existing connections survive a change of backends and
/// the drop.
#[derive(Debug)]
pub struct Forwarder {
    task: JoinHandle<()>,
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Forwarder {
    /// Listens on `address` while there are backends; without any, the kernel refuses connections.
    pub fn start(address: SocketAddr, backends: watch::Receiver<Vec<SocketAddr>>) -> Self {
        Self {
            task: tokio::spawn(run(address, backends)),
        }
    }
}

async fn run(address: SocketAddr, mut backends: watch::Receiver<Vec<SocketAddr>>) {
    let turn = AtomicUsize::new(0);
    let mut tries: u32 = 0;
    while backends.wait_for(|some| !some.is_empty()).await.is_ok() {
        let listener = match listen(address) {
            Ok(listener) => listener,
            Err(error) => {
                tries += 1;
                if tries == TRIES_SILENT {
                    eprintln!("service on {address}: {error}; trying again");
                }
                sleep(BIND_AGAIN).await;
                continue;
            }
        };
        tries = 0;
        serve(&listener, &mut backends, &turn).await;
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts connections until there are no backends.
async fn serve(
    listener: &TcpListener,
    backends: &mut watch::Receiver<Vec<SocketAddr>>,
    turn: &AtomicUsize,
) {
    let now = backends.clone();
    let emptied = backends.wait_for(Vec::is_empty);
    tokio::pin!(emptied);
    loop {
        let accepted = tokio::select! {
            biased;
            _ = &mut emptied => return,
            accepted = listener.accept() => accepted,
        };
        // An error concerns one client's connection that was closed before it was accepted.
        let Ok((client, _)) = accepted else { continue };
        let backend = {
            let now = now.borrow();
            now.get(turn.fetch_add(1, Ordering::Relaxed) % now.len().max(1))
                .copied()
        };
        tokio::spawn(relay(client, backend));
    }
}

async fn relay(mut client: TcpStream, backend: Option<SocketAddr>) {
    let reached = match backend {
        Some(backend) => timeout(CONNECT_LIMIT, TcpStream::connect(backend))
            .await
            .ok()
            .and_then(Result::ok),
        None => None,
    };
    let Some(mut server) = reached else {
        reset(&client);
        return;
    };
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    // A reset on one side must not become an orderly close on the other.
    if copy_bidirectional(&mut client, &mut server).await.is_err() {
        reset(&client);
        reset(&server);
    }
}

/// Makes the next close send RST instead of FIN.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A backend that answers every byte with its letter.
    async fn backend(letter: u8) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut byte = [0];
                    while stream.read_exact(&mut byte).await.is_ok() {
                        stream.write_all(&[letter]).await.unwrap();
                    }
                });
            }
        });
        address
    }

    async fn free() -> SocketAddr {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .unwrap()
            .local_addr()
            .unwrap()
    }

    async fn ask(stream: &mut TcpStream) -> u8 {
        stream.write_all(b"?").await.unwrap();
        stream.read_u8().await.unwrap()
    }

    async fn connected(address: SocketAddr) -> TcpStream {
        for _ in 0..100 {
            if let Ok(stream) = TcpStream::connect(address).await {
                return stream;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("no listener on {address}");
    }

    #[tokio::test]
    async fn a_change_of_backends_moves_new_connections_only() {
        let (one, two, front) = (backend(b'1').await, backend(b'2').await, free().await);
        let (sender, backends) = watch::channel(vec![one]);
        let _forwarder = Forwarder::start(front, backends);
        let mut old = connected(front).await;
        assert_eq!(ask(&mut old).await, b'1');
        sender.send(vec![two]).unwrap();
        assert_eq!(ask(&mut connected(front).await).await, b'2');
        assert_eq!(
            ask(&mut old).await,
            b'1',
            "kube-proxy closes nothing either"
        );
    }

    #[tokio::test]
    async fn without_backends_connections_are_refused_and_existing_ones_live_on() {
        let (one, front) = (backend(b'1').await, free().await);
        let (sender, backends) = watch::channel(vec![one]);
        let _forwarder = Forwarder::start(front, backends);
        let mut old = connected(front).await;
        assert_eq!(ask(&mut old).await, b'1');
        sender.send(Vec::new()).unwrap();
        let refused = async {
            while TcpStream::connect(front).await.is_ok() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(2), refused)
            .await
            .expect("still accepts");
        assert_eq!(ask(&mut old).await, b'1');
        sender.send(vec![one]).unwrap();
        assert_eq!(ask(&mut connected(front).await).await, b'1');
    }

    #[tokio::test]
    async fn a_dead_backend_resets_the_client() {
        let (dead, front) = (free().await, free().await);
        let (_tell, backends) = watch::channel(vec![dead]);
        let _forwarder = Forwarder::start(front, backends);
        let mut client = connected(front).await;
        let error = client.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
