//! Pods, with the fields that the programs read. k8s-openapi's whole type, with every kind of
//! volume, adds half a megabyte to a program.

use k8s_openapi::{api::core::v1, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::Resource;
use serde::Deserialize;

/// A pod.
#[derive(Clone, Debug, Default, Deserialize, Resource)]
#[resource(inherit = "v1::Pod")]
#[serde(default)]
pub struct Pod {
    /// Name, labels, annotations.
    pub metadata: ObjectMeta,
    /// The requested state.
    pub spec: PodSpec,
    /// The observed state.
    pub status: PodStatus,
}

/// `spec` of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodSpec {
    /// The containers in their order, without init containers.
    pub containers: Vec<Container>,
}

/// A container of the specification.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Container {
    /// Unique in the pod.
    pub name: String,
    /// Environment variables, as the manifest has them.
    pub env: Vec<Variable>,
    /// Ports that the manifest declares.
    pub ports: Vec<Port>,
    /// Requests and limits.
    pub resources: Option<serde_json::Value>,
}

/// A port of a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Port {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Number of the port in the container.
    pub container_port: i32,
    /// TCP, UDP or SCTP; None: TCP.
    pub protocol: Option<String>,
}

/// An environment variable.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// The value; None for one that comes from another object (`valueFrom`).
    pub value: Option<String>,
}

/// `status` of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// Pending, Running, Succeeded, Failed or Unknown.
    pub phase: String,
    /// The pod's address, once it has one.
    #[serde(rename = "podIP")]
    pub pod_ip: Option<String>,
    /// Conditions such as PodScheduled and Ready.
    pub conditions: Vec<PodCondition>,
    /// Status of the init containers.
    pub init_container_statuses: Vec<ContainerStatus>,
    /// Status of the other containers.
    pub container_statuses: Vec<ContainerStatus>,
}

/// One of the pod's conditions.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodCondition {
    /// Its kind, such as `Ready`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One word, such as `Unschedulable`.
    pub reason: Option<String>,
}

/// Status of a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ContainerStatus {
    /// Unique in the pod.
    pub name: String,
    /// Whether it waits, runs or has ended.
    pub state: ContainerState,
}

/// State of a container; only `waiting` is read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    /// Set while the container does not run yet.
    pub waiting: Option<Waiting>,
}

/// Why a container does not run yet.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Waiting {
    /// One word, such as `CrashLoopBackOff`.
    pub reason: Option<String>,
}

impl Pod {
    /// The container with this name.
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.spec
            .containers
            .iter()
            .find(|container| container.name == name)
    }
}

impl Container {
    /// The value that the manifest gives to `variable`.
    pub fn value(&self, variable: &str) -> Option<&str> {
        let found = self.env.iter().find(|one| one.name == variable)?;
        found.value.as_deref()
    }
}
