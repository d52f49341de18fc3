//! Delays what a Service's forwarder knows, as on a node whose kube-proxy is slow.

use std::{net::SocketAddr, ops::Range, time::Duration};

use tokio::{sync::watch, task::JoinHandle, time::sleep};

/// How late a change takes effect.
const LATE_MS: Range<u64> = 300..1_100;
/// How long new connections may reach a server of before the change or one of after it.
const BOTH: Duration = Duration::from_secs(1);

/// The backends of one forwarder.
pub(super) struct Backends {
    /// What they are to be.
    wanted: Vec<SocketAddr>,
    /// What the forwarder knows.
    known: watch::Sender<Vec<SocketAddr>>,
    /// The change that has not taken effect yet.
    pending: Option<JoinHandle<()>>,
}

impl Drop for Backends {
    fn drop(&mut self) {
        self.end_pending();
    }
}

impl Backends {
    /// No backends, and what the forwarder reads.
    pub(super) fn new() -> (Self, watch::Receiver<Vec<SocketAddr>>) {
        let (known, receiver) = watch::channel(Vec::new());
        let backends = Self {
            wanted: Vec::new(),
            known,
            pending: None,
        };
        (backends, receiver)
    }

    /// Changes them at once; with `slow`, late.
    pub(super) fn set(&mut self, wanted: Vec<SocketAddr>, slow: bool) {
        if self.wanted == wanted {
            return;
        }
        self.wanted.clone_from(&wanted);
        self.end_pending();
        if slow {
            let late = Duration::from_millis(fastrand::u64(LATE_MS));
            self.pending = Some(tokio::spawn(change(self.known.clone(), wanted, late)));
        } else {
            self.known.send_replace(wanted);
        }
    }

    fn end_pending(&mut self) {
        if let Some(pending) = self.pending.take() {
            pending.abort();
        }
    }
}

async fn change(known: watch::Sender<Vec<SocketAddr>>, wanted: Vec<SocketAddr>, late: Duration) {
    sleep(late).await;
    let mut both = known.borrow().clone();
    if !both.is_empty() && !wanted.is_empty() {
        both.extend(&wanted);
        both.sort_unstable();
        both.dedup();
        known.send_replace(both);
        sleep(BOTH).await;
    }
    known.send_replace(wanted);
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Instant};

    use super::*;

    /// The resolution of tokio's timers.
    const TICK: Duration = Duration::from_millis(5);

    fn server(port: u16) -> Vec<SocketAddr> {
        vec![(Ipv4Addr::LOCALHOST, port).into()]
    }

    #[tokio::test]
    async fn a_slow_change_is_late_and_holds_both_servers_for_a_second() {
        let (mut backends, mut known) = Backends::new();
        backends.set(server(1), false);
        assert_eq!(*known.borrow_and_update(), server(1));
        let began = Instant::now();
        backends.set(server(2), true);
        assert_eq!(*known.borrow(), server(1));
        known.changed().await.unwrap();
        let late = began.elapsed();
        assert!(late >= Duration::from_millis(LATE_MS.start), "{late:?}");
        assert_eq!(*known.borrow_and_update(), [server(1), server(2)].concat());
        known.changed().await.unwrap();
        assert!(began.elapsed() >= late + BOTH - TICK);
        assert_eq!(*known.borrow(), server(2));
    }

    #[tokio::test]
    async fn the_last_change_counts() {
        let (mut backends, mut known) = Backends::new();
        backends.set(server(1), false);
        known.mark_unchanged();
        backends.set(server(2), true);
        backends.set(server(1), true);
        for _ in 0..2 {
            known.changed().await.unwrap();
            assert_eq!(*known.borrow_and_update(), server(1));
        }
    }
}
