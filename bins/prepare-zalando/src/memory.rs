//! The memory of the target's container.
//!
//! The Zalando operator requests little memory by default, 100Mi, and Spilo sizes shared_buffers by
//! the limit. CloudNativePG's webhook refuses a Cluster whose memory request is below
//! shared_buffers, or above the limit (validateResources in its cluster_webhook.go).

use std::str::FromStr as _;

use serde_json::{Value, json};

use crate::{facts::Facts, settings::Quantity};

/// Bytes of a page, the unit of shared_buffers.
const PAGE_BYTES: u64 = 8192;

/// A memory request or limit that had to be raised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raised {
    /// `requests` or `limits`.
    pub kind: &'static str,
    /// The value of the source's container.
    pub from: String,
    /// The value of the manifest.
    pub to: String,
}

/// What the manifest raises, so that CloudNativePG accepts it.
pub fn raised(facts: &Facts) -> Vec<Raised> {
    let needed = facts.number("shared_buffers") * PAGE_BYTES;
    let to = format!("{}Mi", needed.div_ceil(1 << 20));
    let below = |kind: &'static str| {
        let from = facts.pod.resources.as_ref()?[kind]["memory"].as_str()?;
        let given = Quantity::from_str(from).ok()?;
        (given.bytes < needed).then(|| Raised {
            kind,
            from: from.to_owned(),
            to: to.clone(),
        })
    };
    ["requests", "limits"]
        .into_iter()
        .filter_map(below)
        .collect()
}

/// Requests and limits of the leader's container, with memory for shared_buffers; None when it has
/// none.
pub fn resources(facts: &Facts) -> Option<Value> {
    let mut resources = facts.pod.resources.clone()?;
    for raised in raised(facts) {
        resources[raised.kind]["memory"] = json!(raised.to);
    }
    Some(resources)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    fn with(resources: Value, shared_buffers_mb: u64) -> Facts {
        let mut facts = fixture::facts();
        facts.pod.resources = Some(resources);
        let pages = (shared_buffers_mb << 20) / PAGE_BYTES;
        fixture::set(
            &mut facts,
            "shared_buffers",
            &format!("{shared_buffers_mb}MB"),
            &pages.to_string(),
            "16384",
            "configuration file",
        );
        facts
    }

    #[test]
    fn a_request_below_shared_buffers_is_raised_to_it() {
        let given = json!({
            "requests": {"cpu": "10m", "memory": "100Mi"}, "limits": {"memory": "1Gi"}
        });
        let facts = with(given.clone(), 204);
        let resources = resources(&facts).unwrap();
        assert_eq!(
            resources,
            json!({
                "requests": {"cpu": "10m", "memory": "204Mi"}, "limits": {"memory": "1Gi"}
            })
        );
        assert_eq!(raised(&with(given, 100)), []);
    }

    #[test]
    fn a_limit_is_never_below_the_request() {
        let facts = with(
            json!({"requests": {"memory": "100Mi"}, "limits": {"memory": "500Mi"}}),
            600,
        );
        let resources = resources(&facts).unwrap();
        assert_eq!(resources["requests"], resources["limits"]);
        assert_eq!(resources["limits"]["memory"], "600Mi");
    }

    #[test]
    fn what_is_not_requested_is_not_added() {
        for given in [
            json!({"requests": {"cpu": "1"}}),
            json!({"limits": {"cpu": "1"}}),
        ] {
            assert_eq!(resources(&with(given.clone(), 9_000)), Some(given));
        }
        let mut facts = fixture::facts();
        facts.pod.resources = None;
        assert_eq!(resources(&facts), None);
    }
}
