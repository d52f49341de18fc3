//! A real kube-apiserver over a real etcd on loopback, with RBAC, ServiceAccount tokens and an
//! audit log.
//!
//! No controller-manager, scheduler or kubelet runs: nothing creates the ServiceAccount `default`,
//! fills Endpoints from a selector, starts pods or collects garbage. The module that needs one of
//! these imitates it.

mod crds;
mod servers;

pub(crate) use crds::served;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{Namespace, ServiceAccount},
};
use kube::{
    Api, Client, Config, Discovery, ResourceExt,
    api::{DynamicObject, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::{GroupVersionKind, TypeMeta},
};
use serde_json::json;

use crate::{
    audit::{self, Use},
    instance::Instance,
    process::Process,
    setup::Setup,
};

/// Host number of the API server and etcd in the instance's network.
pub const HOST: u8 = 2;
/// The harness's field manager.
const FIELD_MANAGER: &str = "harness";
const START_SECONDS_MAX: u64 = 60;
const TOKEN_SECONDS: i64 = 24 * 3600;

/// A running API server with its etcd; both end on drop.
pub struct ControlPlane {
    setup: &'static Setup,
    instance: Arc<Instance>,
    directory: PathBuf,
    authority: String,
    admin_token: String,
    admin: Client,
    api_server: Mutex<Option<Process>>,
    _etcd: Process,
}

impl ControlPlane {
    /// Starts etcd and the API server in an instance of their own and installs the operators'
    /// resources.
    ///
    /// # Errors
    /// A program is missing, or a server does not start; the error holds the end of its log.
    pub async fn start() -> Result<Self> {
        Self::start_with(Setup::ready().await?).await
    }

    /// Like [`ControlPlane::start`], with these programs; every server of its instance takes them.
    ///
    /// # Errors
    /// As [`ControlPlane::start`].
    pub async fn start_with(setup: &'static Setup) -> Result<Self> {
        let instance = Arc::new(Instance::claim(setup)?);
        let directory = instance.subdirectory(setup, "control-plane")?;
        let authority = servers::write_credentials(setup, &instance, &directory)?;
        let admin_token = servers::random_token()?;
        let tokens = format!("{admin_token},admin,admin,system:masters\n");
        setup
            .user
            .write_private(&directory.join("tokens.csv"), &tokens)?;
        let etcd = Process::start(
            "etcd",
            servers::etcd(setup, &instance, &directory),
            &directory.join("etcd.log"),
        )?;
        let text = servers::kubeconfig(
            &servers::url(&instance),
            &authority,
            &admin_token,
            "default",
        );
        let options = KubeConfigOptions::default();
        let config =
            Config::from_custom_kubeconfig(Kubeconfig::from_yaml(&text)?, &options).await?;
        let admin = Client::try_from(config).context("making the admin's client")?;
        let api_server = Mutex::new(None);
        let plane = Self {
            setup,
            instance,
            directory,
            authority,
            admin_token,
            admin,
            api_server,
            _etcd: etcd,
        };
        plane.start_api_server().await?;
        crds::install(&plane.admin).await?;
        Ok(plane)
    }

    /// The network and directory of this control plane.
    pub fn instance(&self) -> &Arc<Instance> {
        &self.instance
    }

    /// The programs and directories in use.
    pub fn setup(&self) -> &'static Setup {
        self.setup
    }

    /// A client with all permissions; it belongs to the runtime that called
    /// [`ControlPlane::start`].
    pub fn admin(&self) -> Client {
        self.admin.clone()
    }

    /// The API server's URL.
    pub fn url(&self) -> String {
        servers::url(&self.instance)
    }

    /// The CA of the API server's certificate, PEM.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// An admin's kubeconfig, for kubectl by hand when debugging.
    pub fn admin_kubeconfig(&self, namespace: &str) -> String {
        servers::kubeconfig(&self.url(), &self.authority, &self.admin_token, namespace)
    }

    /// A kubeconfig with a fresh token of an existing ServiceAccount; its only context is `local`.
    ///
    /// # Errors
    /// The ServiceAccount does not exist.
    pub async fn kubeconfig(&self, namespace: &str, service_account: &str) -> Result<String> {
        Ok(servers::kubeconfig(
            &self.url(),
            &self.authority,
            &self.token(namespace, service_account).await?,
            namespace,
        ))
    }

    /// A token of an existing ServiceAccount, as pods get it (TokenRequest), valid for a day.
    ///
    /// # Errors
    /// The ServiceAccount does not exist.
    pub async fn token(&self, namespace: &str, service_account: &str) -> Result<String> {
        let spec = TokenRequestSpec {
            expiration_seconds: Some(TOKEN_SECONDS),
            ..Default::default()
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin(), namespace);
        let request = TokenRequest {
            spec: Some(spec),
            ..Default::default()
        };
        let answer = accounts
            .create_token_request(service_account, &PostParams::default(), &request)
            .await;
        let answer = answer
            .with_context(|| format!("asking for a token of {namespace}/{service_account}"))?;
        answer
            .status
            .and_then(|status| status.token)
            .context("a TokenRequest without a token")
    }

    /// Creates a namespace and its ServiceAccount `default`, as the controller-manager would;
    /// existing ones are kept.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn namespace(&self, name: &str) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.admin());
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        namespaces
            .patch(name, &apply(), &Patch::Apply(namespace))
            .await
            .with_context(|| format!("creating namespace {name}"))?;
        self.service_account(name, "default").await
    }

    /// Creates a ServiceAccount; an existing one is kept.
    ///
    /// # Errors
    /// The namespace does not exist.
    pub async fn service_account(&self, namespace: &str, name: &str) -> Result<()> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin(), namespace);
        let account =
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
        accounts
            .patch(name, &apply(), &Patch::Apply(account))
            .await
            .with_context(|| format!("creating ServiceAccount {name}"))?;
        Ok(())
    }

    /// Applies objects of any kind in order (server-side, forced, status included). `namespace` is
    /// used for objects that name none.
    ///
    /// # Errors
    /// A kind is unknown, or the API server refuses an object.
    pub async fn apply(&self, namespace: &str, objects: &[serde_json::Value]) -> Result<()> {
        let known = self.kinds(objects).await?;
        for object in objects {
            let object: DynamicObject = serde_json::from_value(object.clone())
                .context("an object without apiVersion or kind")?;
            let types = object
                .types
                .clone()
                .context("an object without apiVersion or kind")?;
            let kind = GroupVersionKind::try_from(&types)?;
            let Some((resource, capabilities)) = known.resolve_gvk(&kind) else {
                bail!("the API server does not know {kind:?}")
            };
            let api: Api<DynamicObject> = match capabilities.scope {
                kube::discovery::Scope::Cluster => Api::all_with(self.admin(), &resource),
                kube::discovery::Scope::Namespaced => Api::namespaced_with(
                    self.admin(),
                    object.metadata.namespace.as_deref().unwrap_or(namespace),
                    &resource,
                ),
            };
            let name = object.name_any();
            let doing = || format!("applying {} {name}", types.kind);
            api.patch(&name, &apply(), &Patch::Apply(&object))
                .await
                .with_context(doing)?;
            // A status that is a subresource is not written with the object.
            if object.data.get("status").is_some()
                && capabilities.subresources.iter().any(|(sub, _)| {
                    sub.plural == format!("{}/status", resource.plural) || sub.plural == "status"
                })
            {
                api.patch_status(&name, &apply(), &Patch::Apply(&object))
                    .await
                    .with_context(doing)?;
            }
        }
        Ok(())
    }

    /// The API server's kinds, queried until they include those of `objects`: a new kind is served
    /// before it is listed.
    async fn kinds(&self, objects: &[serde_json::Value]) -> Result<Discovery> {
        let deadline = Instant::now() + Duration::from_secs(START_SECONDS_MAX);
        loop {
            let known = Discovery::new(self.admin()).run_aggregated().await;
            let known = known.context("asking which kinds there are")?;
            let is_known = |object: &serde_json::Value| {
                let types: TypeMeta = serde_json::from_value(object.clone()).unwrap_or_default();
                GroupVersionKind::try_from(&types)
                    .is_ok_and(|kind| known.resolve_gvk(&kind).is_some())
            };
            if objects.iter().all(is_known) || Instant::now() > deadline {
                return Ok(known);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The requests of all ServiceAccounts so far.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn audit(&self) -> Result<std::collections::BTreeSet<Use>> {
        audit::read(&self.directory.join("audit.log"))
    }

    /// Kills the API server, as when its node is lost; etcd keeps the data.
    pub async fn stop_api_server(&self) {
        let process = self.api_server().take();
        if let Some(process) = process {
            process.kill().await;
        }
    }

    /// Starts the API server and waits until it is ready.
    ///
    /// # Errors
    /// The API server is not ready within a minute.
    pub async fn start_api_server(&self) -> Result<()> {
        let command = servers::api_server(self.setup, &self.instance, &self.directory);
        let process = Process::start(
            "kube-apiserver",
            command,
            &self.directory.join("kube-apiserver.log"),
        )?;
        let deadline = Instant::now() + Duration::from_secs(START_SECONDS_MAX);
        // Readiness can only be polled.
        while self
            .admin
            .request_text(http::Request::get("/readyz").body(Vec::new())?)
            .await
            .is_err()
        {
            if Instant::now() > deadline || process.exit_status().is_some() {
                return Err(process.error_with_log("not ready"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        *self.api_server() = Some(process);
        Ok(())
    }

    /// Suspends the API server (SIGSTOP): connections stay open and get no response.
    pub fn suspend_api_server(&self) {
        self.api_server()
            .as_ref()
            .inspect(|process| process.suspend());
    }

    /// Resumes the API server.
    pub fn resume_api_server(&self) {
        self.api_server()
            .as_ref()
            .inspect(|process| process.resume());
    }

    fn api_server(&self) -> MutexGuard<'_, Option<Process>> {
        self.api_server
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forced server-side apply: the harness acts for operators and people alike.
fn apply() -> PatchParams {
    PatchParams::apply(FIELD_MANAGER).force()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Secret;

    use super::*;

    /// One control plane for all checks, because starting one takes seconds.
    #[tokio::test]
    async fn it_serves_checks_permissions_remembers_them_and_comes_back() {
        let plane = ControlPlane::start().await.unwrap();
        plane.namespace("mastodon").await.unwrap();
        plane.service_account("mastodon", "reader").await.unwrap();
        let role = |verbs: &[&str]| {
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
                "metadata": {"name": "reader"},
                "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": verbs}]
            })
        };
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": "reader"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
            "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": "mastodon"}]
        });
        let resource = json!({
            "apiVersion": "acid.zalan.do/v1", "kind": "postgresql", "metadata": {"name": "c"},
            "spec": {
                "teamId": "t", "numberOfInstances": 2, "postgresql": {"version": "17"},
                "volume": {"size": "1Gi"}
            },
            "status": {"PostgresClusterStatus": "Running"}
        });
        plane
            .apply("mastodon", &[role(&["get"]), binding, resource])
            .await
            .unwrap();

        let kubeconfig =
            Kubeconfig::from_yaml(&plane.kubeconfig("mastodon", "reader").await.unwrap()).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .unwrap();
        let secrets: Api<Secret> = Api::default_namespaced(Client::try_from(config).unwrap());
        assert_eq!(code(secrets.get("absent").await), 404);
        assert_eq!(
            code(secrets.list(&kube::api::ListParams::default()).await),
            403
        );
        let uses: Vec<_> = plane
            .audit()
            .unwrap()
            .into_iter()
            .map(|used| (used.verb, used.name, used.code))
            .collect();
        assert_eq!(
            uses,
            [
                ("get".to_owned(), "absent".to_owned(), 404),
                ("list".to_owned(), String::new(), 403)
            ]
        );

        plane.stop_api_server().await;
        assert!(matches!(
            secrets.get("absent").await, Err(error) if !matches!(error, kube::Error::Api(_))
        ));
        plane.start_api_server().await.unwrap();
        assert_eq!(code(secrets.get("absent").await), 404);
        let status = http::Request::get("/apis/acid.zalan.do/v1/namespaces/mastodon/postgresqls/c")
            .body(Vec::new())
            .unwrap();
        let status: serde_json::Value = plane.admin().request(status).await.unwrap();
        assert_eq!(status["status"]["PostgresClusterStatus"], "Running");
    }

    fn code<T>(answer: kube::Result<T>) -> u16 {
        match answer {
            Err(kube::Error::Api(status)) => status.code,
            Err(error) => panic!("{error}"),
            Ok(_) => 200,
        }
    }
}
