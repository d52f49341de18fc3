//! Pods, as far as anybody here reads them. Their whole type, with every kind of volume, is half a
//! megabyte of program.

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
    /// What was asked for.
    pub spec: PodSpec,
    /// What became of it.
    pub status: PodStatus,
}

/// What was asked for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodSpec {
    /// In their order; init containers are apart.
    pub containers: Vec<Container>,
}

/// A container of the specification.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Container {
    /// Unique in the pod.
    pub name: String,
    /// Its variables, as they were written.
    pub env: Vec<Variable>,
    /// Where it listens, as far as that was told.
    pub ports: Vec<Port>,
    /// Requests and limits.
    pub resources: Option<serde_json::Value>,
}

/// A port of a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Port {
    /// Its number.
    pub container_port: i32,
}

/// A variable with a value; one that comes from elsewhere has none here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: Option<String>,
}

/// What became of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// Pending, Running, Succeeded, Failed or Unknown.
    pub phase: String,
    /// Its address, once it has one.
    #[serde(rename = "podIP")]
    pub pod_ip: Option<String>,
    /// Whether it has a node, is ready, and the like.
    pub conditions: Vec<PodCondition>,
    /// Of the containers that run before the others.
    pub init_container_statuses: Vec<ContainerStatus>,
    /// Of the others.
    pub container_statuses: Vec<ContainerStatus>,
}

/// One of the pod's conditions.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodCondition {
    /// One word, such as `Unschedulable`.
    pub reason: Option<String>,
}

/// What a container is doing.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ContainerStatus {
    /// Unique in the pod.
    pub name: String,
    /// At most one of its fields is there.
    pub state: ContainerState,
}

/// What a container is doing.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    /// It does not run yet.
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
    /// The container of a name.
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.spec
            .containers
            .iter()
            .find(|container| container.name == name)
    }
}

impl Container {
    /// The value that was written for a variable.
    pub fn value(&self, variable: &str) -> Option<&str> {
        let found = self.env.iter().find(|one| one.name == variable)?;
        found.value.as_deref()
    }
}
