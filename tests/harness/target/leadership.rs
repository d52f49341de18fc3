//! Which instance of a Cluster is the primary, or the designated one while it follows its source:
//! `status.currentPrimary` and `status.targetPrimary`.

use std::sync::Arc;

use tokio::sync::watch;

/// Shared by the operator and the managers of one Cluster's instances.
#[derive(Clone)]
pub struct Leadership(Arc<watch::Sender<Primary>>);

/// Both fields of the status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Primary {
    /// The instance that has taken over last.
    pub current: String,
    /// The one that is to be it; None while the operator waits for WAL receivers to end (CNPG
    /// writes `pending`).
    pub target: Option<String>,
}

impl Leadership {
    /// The first instance leads.
    pub fn of(first: &str) -> Self {
        let primary = Primary {
            current: first.to_owned(),
            target: Some(first.to_owned()),
        };
        Self(Arc::new(watch::channel(primary).0))
    }

    /// Both fields as they are.
    pub fn now(&self) -> Primary {
        self.0.borrow().clone()
    }

    /// True if this instance is to be the primary or the designated one.
    pub fn is_target(&self, instance: &str) -> bool {
        self.0.borrow().target.as_deref() == Some(instance)
    }

    /// Changes are seen by this receiver.
    pub fn subscribe(&self) -> watch::Receiver<Primary> {
        self.0.subscribe()
    }

    /// No instance is to lead until one is elected.
    pub fn suspend(&self) {
        self.0.send_modify(|primary| primary.target = None);
    }

    /// This instance is to take over.
    pub fn elect(&self, instance: &str) {
        self.0
            .send_modify(|primary| primary.target = Some(instance.to_owned()));
    }

    /// This instance has taken over.
    pub fn taken_over(&self, instance: &str) {
        self.0
            .send_modify(|primary| instance.clone_into(&mut primary.current));
    }
}
