//! Whether the NetworkPolicies of a namespace admit a connection.
//!
//! A pod that no policy of a direction selects admits everything in that direction; otherwise one
//! rule of one of them must match. A connection needs both: the policies about connections of the
//! client's pod (egress), and those about connections to the server's pod (ingress).

use std::net::IpAddr;

use serde_json::Value;

use super::{IpBlock, Labels, Network, Path, Peer, Pod, Policy, PolicyPort};

/// The label by which every namespace carries its name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// Which side's policies are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// Those that select the client.
    Egress,
    /// Those that select the server.
    Ingress,
}

/// The answer of the policies, from the worst to the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Admission {
    /// No rule matches.
    Refused,
    /// A rule matches if labels have the right values that are not known here (those of another
    /// namespace), or if the network plugin applies an `ipBlock` to pods: some do, some do not.
    Unknown,
    /// A rule matches, or no policy selects the pod.
    Admitted,
}

/// What the policies of one direction say about a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement<'a> {
    /// The direction.
    pub direction: Direction,
    /// The policies that select the pod on this side.
    pub policies: Vec<&'a str>,
    /// Their answer.
    pub admission: Admission,
}

impl Network {
    /// What the policies say about a TCP connection to `port`, for each direction.
    pub fn judge(&self, path: Path<'_>, port: u16) -> [Judgement<'_>; 2] {
        [Direction::Egress, Direction::Ingress]
            .map(|direction| self.judge_direction(direction, path, port))
    }

    fn judge_direction(&self, direction: Direction, path: Path<'_>, port: u16) -> Judgement<'_> {
        let (selected, peer) = match direction {
            Direction::Egress => (path.client, path.server),
            Direction::Ingress => (path.server, path.client),
        };
        // No policy of this namespace selects a client that is no pod of it.
        let selecting: Vec<&Policy> = self
            .policies
            .iter()
            .filter(|policy| policy.is_about(direction, selected))
            .collect();
        let admission = selecting
            .iter()
            .flat_map(|policy| policy.rules(direction))
            .map(|(peers, ports)| {
                let port = admits_port(ports, path.server, port);
                port.min(admits_peer(peers, peer, &self.namespace))
            })
            .max();
        Judgement {
            direction,
            admission: if selecting.is_empty() {
                Admission::Admitted
            } else {
                admission.unwrap_or(Admission::Refused)
            },
            policies: selecting
                .into_iter()
                .map(|policy| policy.name.as_str())
                .collect(),
        }
    }
}

impl Policy {
    fn is_about(&self, direction: Direction, pod: &Pod) -> bool {
        let spec = &self.spec;
        let listed = |kind: &str| spec.policy_types.iter().any(|one| one == kind);
        // The API server sets policyTypes by this rule where they are left out.
        let concerned = match direction {
            Direction::Ingress => listed("Ingress") || spec.policy_types.is_empty(),
            Direction::Egress => {
                listed("Egress") || (spec.policy_types.is_empty() && !spec.egress.is_empty())
            }
        };
        let labels = pod.labels.as_ref();
        concerned
            && labels.is_some_and(|labels| spec.pod_selector.matches(labels, true) == Some(true))
    }

    fn rules(&self, direction: Direction) -> Vec<(&[Peer], &[PolicyPort])> {
        match direction {
            Direction::Ingress => {
                let rules = self.spec.ingress.iter();
                rules
                    .map(|rule| (&rule.from[..], &rule.ports[..]))
                    .collect()
            }
            Direction::Egress => {
                let rules = self.spec.egress.iter();
                rules.map(|rule| (&rule.to[..], &rule.ports[..])).collect()
            }
        }
    }
}

fn admits_peer(peers: &[Peer], pod: &Pod, namespace: &str) -> Admission {
    if peers.is_empty() {
        return Admission::Admitted;
    }
    let answers = peers.iter().map(|peer| match &peer.ip_block {
        Some(block) => admits_address(block, pod.address),
        None => admits_labels(peer, pod, namespace),
    });
    answers.max().unwrap_or(Admission::Refused)
}

/// By the labels of the pod and of its namespace; of the latter only the name is known.
fn admits_labels(peer: &Peer, pod: &Pod, namespace: &str) -> Admission {
    let in_namespace = match (&peer.namespace_selector, &pod.labels) {
        (None, Some(_)) => Some(true),
        // A client that is no pod of this namespace.
        (None, None) => Some(false),
        (Some(_), None) => None,
        (Some(selector), Some(_)) => {
            let name = [(NAMESPACE_NAME.to_owned(), namespace.to_owned())];
            selector.matches(&Labels::from(name), false)
        }
    };
    let matches = match (&peer.pod_selector, &pod.labels) {
        (None, _) => Some(true),
        (Some(selector), Some(labels)) => selector.matches(labels, true),
        (Some(_), None) => None,
    };
    match (in_namespace, matches) {
        (Some(true), Some(true)) => Admission::Admitted,
        (Some(false), _) | (_, Some(false)) => Admission::Refused,
        _ => Admission::Unknown,
    }
}

fn admits_address(block: &IpBlock, address: Option<IpAddr>) -> Admission {
    let Some(address) = address else {
        return Admission::Unknown;
    };
    let inside = contains(&block.cidr, address);
    let excepted = block.except.iter().any(|cidr| contains(cidr, address));
    if inside && !excepted {
        Admission::Unknown
    } else {
        Admission::Refused
    }
}

/// Whether a range such as `10.0.0.0/8` holds an address.
fn contains(cidr: &str, address: IpAddr) -> bool {
    let Some((network, prefix)) = cidr.split_once('/') else {
        return false;
    };
    let (Ok(network), Ok(prefix)) = (network.parse::<IpAddr>(), prefix.parse::<u32>()) else {
        return false;
    };
    let same = |one: u128, other: u128, bits: u32| {
        bits.checked_sub(prefix)
            .is_some_and(|rest| one.checked_shr(rest) == other.checked_shr(rest))
    };
    match (network, address) {
        (IpAddr::V4(one), IpAddr::V4(other)) => {
            same(u32::from(one).into(), u32::from(other).into(), u32::BITS)
        }
        (IpAddr::V6(one), IpAddr::V6(other)) => same(one.into(), other.into(), u128::BITS),
        _ => false,
    }
}

/// By the port of the server, also in a rule about connections of the client.
fn admits_port(ports: &[PolicyPort], server: &Pod, port: u16) -> Admission {
    let admits = |rule: &PolicyPort| {
        let protocol = rule.protocol.as_deref().unwrap_or("TCP");
        protocol == "TCP"
            && match &rule.port {
                None => true,
                Some(Value::String(name)) => server.ports.iter().any(|declared| {
                    (&declared.name, declared.protocol.as_str(), declared.number)
                        == (name, protocol, port)
                }),
                Some(number) => {
                    let first = number.as_u64().unwrap_or_default();
                    let last = rule.end_port.map_or(first, u64::from);
                    (first..=last).contains(&u64::from(port))
                }
            }
    };
    if ports.is_empty() || ports.iter().any(admits) {
        Admission::Admitted
    } else {
        Admission::Refused
    }
}

#[cfg(test)]
mod tests;
