//! The manifest: a Cluster made for this source, and its two Poolers, with a comment at each choice
//! that a reader would wonder about.
//!
//! The same source gives the same text, so that a second run changes nothing.

mod parameters;
mod poolers;

use job::config::{ArchiveRestart, SslMode};
use serde_json::{Value, json};

use crate::{
    facts::Facts,
    hba,
    image::Image,
    settings::{CA_SECRET, REPLICATION_SECRET, Settings},
    yaml::Yaml,
};

/// The user and group of PostgreSQL in CloudNativePG's images.
const UID: u32 = 26;
const DATA: &str = "/var/lib/postgresql/data";
/// Role that Patroni's members replicate as.
const STANDBY: &str = "standby";
/// Replaying a large copy's WAL takes as long as it takes; CloudNativePG's default would end the
/// pod after an hour.
const START_SECONDS: u32 = 86_400;

/// The whole text: Cluster and Poolers.
pub fn render(facts: &Facts, settings: &Settings, image: &Image) -> String {
    let mut yaml = Yaml::default();
    head(&mut yaml, facts, settings);
    metadata(&mut yaml, facts, settings);
    spec(&mut yaml, facts, settings);
    source(&mut yaml, facts, settings);
    parameters::postgresql(&mut yaml, facts, settings, image);
    poolers::both(&mut yaml, facts, settings);
    yaml.into_text()
}

fn head(yaml: &mut Yaml, facts: &Facts, settings: &Settings) {
    let identity = facts.server.identity;
    yaml.comment(
        0,
        &format!(
            "Cluster {}: a physical copy of the Zalando cluster {} (PostgreSQL {}.{}, system \
             identifier {}), made by prepare-zalando from what
             that server runs with. Change it before it is applied; afterwards only \
             spec.replica.enabled is changed, by the cutover:
             any other change restarts the only instance.",
            settings.target_cluster,
            settings.source_cluster,
            identity.major(),
            identity.version % 10_000,
            identity.system_identifier
        ),
    );
}

fn metadata(yaml: &mut Yaml, facts: &Facts, settings: &Settings) {
    yaml.line(0, "apiVersion: postgresql.cnpg.io/v1");
    yaml.line(0, "kind: Cluster");
    yaml.line(0, "metadata:");
    yaml.entry(1, "name", &settings.target_cluster);
    yaml.entry(1, "namespace", &facts.namespace);
    yaml.line(1, "annotations:");
    yaml.comment(
        2,
        "The copied postgresql.conf names Patroni's own pg_hba.conf and pg_ident.conf by their \
         path in the old pod, and PostgreSQL does not start
         without them. adopt-pgdata takes such lines out before each start; where there are none \
         left it changes nothing.",
    );
    if settings.archive_restart == ArchiveRestart::Never {
        yaml.comment(
            2,
            "ARCHIVE_RESTART=never: archive_mode is on from the beginning, not CloudNativePG's \
             always, whose end takes a restart. WAL is archived
             from the promotion on; while it follows, the target archives none.",
        );
    }
    let patch = json!([{"op": "add", "path": "/spec/initContainers/-", "value": adopt(settings)}]);
    yaml.block(
        2,
        "cnpg.io/podPatch",
        &serde_json::to_string_pretty(&patch).unwrap_or_default(),
    );
}

/// The init container, as restricted as CloudNativePG's own.
fn adopt(settings: &Settings) -> Value {
    let mut env = vec![json!({"name": "PGDATA", "value": format!("{DATA}/pgdata")})];
    if settings.archive_restart == ArchiveRestart::Never {
        env.push(json!({"name": "ARCHIVE_RESTART", "value": "never"}));
    }
    json!({
        "name": "adopt-pgdata",
        "image": settings.adopt_image.as_str(),
        "command": ["/adopt-pgdata"],
        "env": env,
        "volumeMounts": [{"name": "pgdata", "mountPath": DATA}],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
        "securityContext": {
            "runAsUser": UID,
            "runAsGroup": UID,
            "runAsNonRoot": true,
            "readOnlyRootFilesystem": true,
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"}
        }
    })
}

fn spec(yaml: &mut Yaml, facts: &Facts, settings: &Settings) {
    yaml.line(0, "spec:");
    yaml.comment(
        1,
        "One until the cutover is over: with one, the promotion is quickest and nothing can fail \
         over beside it. Then scale up.",
    );
    yaml.line(1, "instances: 1");
    yaml.entry(1, "imageName", &settings.target_image);
    yaml.line(1, "storage:");
    yaml.entry(2, "size", &settings.target_storage.text);
    if let Some(class) = &settings.target_storage_class {
        yaml.entry(2, "storageClass", class);
    }
    if let Some(resources) = &facts.pod.resources {
        yaml.comment(
            1,
            &format!(
                "As pod {} of the source: shared_buffers below was made for it.",
                facts.pod.name
            ),
        );
        yaml.line(1, &format!("resources: {resources}"));
    }
    yaml.comment(
        1,
        "CloudNativePG restarts the server once after the promotion. While it waited for open \
         sessions to end by themselves it would let
         nobody in, and clients wait for the end of it. To be changed at any time after the \
         cutover; that restarts nothing.",
    );
    yaml.line(1, "smartShutdownTimeout: 0");
    yaml.comment(
        1,
        "Before the first start is over, the WAL written during the copy is replayed; a pod that \
         takes longer than this is killed.",
    );
    yaml.line(1, &format!("startDelay: {START_SECONDS}"));
    yaml.comment(
        1,
        "With false, CloudNativePG would take the password of postgres away at the promotion, and \
         the later steps log in with it.",
    );
    yaml.line(1, "enableSuperuserAccess: true");
    yaml.line(1, "superuserSecret:");
    yaml.entry(2, "name", &settings.superuser_secret());
}

fn source(yaml: &mut Yaml, facts: &Facts, settings: &Settings) {
    let name = settings.source_cluster.as_str();
    let database = facts.database(&settings.database);
    let owner = database.map_or("postgres", |database| &database.owner);
    yaml.line(1, "bootstrap:");
    yaml.line(2, "pg_basebackup:");
    yaml.entry(3, "source", name);
    yaml.comment(
        3,
        "Both must be said: CloudNativePG would go on with a database and a role called app, and \
         be stuck after the promotion.",
    );
    yaml.entry(3, "database", &settings.database);
    yaml.entry(3, "owner", owner);
    if facts.role(owner).is_some_and(|role| role.hash.is_some()) {
        yaml.comment(
            3,
            "CloudNativePG sets the owner's password at the promotion. The Secret holds the hash \
             that the source stores, verbatim, so that
             nothing changes for whoever is logged in or pools sessions.",
        );
        yaml.line(3, "secret:");
        yaml.entry(4, "name", &settings.owner_secret());
    } else {
        yaml.comment(
            3,
            "No secret: the owner has no password. CloudNativePG gives it a random one at the \
             promotion.",
        );
    }
    yaml.comment(
        1,
        "enabled: false is the promotion. The cutover does it, when it has proved that nothing is \
         missing; CloudNativePG does not check.",
    );
    yaml.line(1, "replica:");
    yaml.line(2, "enabled: true");
    yaml.entry(2, "source", name);
    yaml.line(1, "externalClusters:");
    external_cluster(yaml, facts, settings, name);
}

fn external_cluster(yaml: &mut Yaml, facts: &Facts, settings: &Settings, name: &str) {
    yaml.first(1, "name", name);
    yaml.line(2, "connectionParameters:");
    yaml.comment(
        3,
        "The Service of the leader: it is followed through a failover at the source.",
    );
    yaml.entry(3, "host", &facts.host);
    yaml.text(3, "port", &facts.port.to_string());
    yaml.entry(3, "user", settings.source_auth.role());
    yaml.line(3, "dbname: postgres");
    yaml.comment(3, &format!("{}.", sentence(&facts.tls.reason)));
    yaml.entry(3, "sslmode", facts.tls.sslmode.as_str());
    yaml.line(2, "password:");
    yaml.entry(3, "name", REPLICATION_SECRET);
    yaml.line(3, "key: password");
    if facts.tls.sslmode != SslMode::Require {
        yaml.line(2, "sslRootCert:");
        yaml.entry(3, "name", CA_SECRET);
        yaml.line(3, "key: ca.crt");
    }
    yaml.comment(
        2,
        "No sslCert and sslKey: the password suffices, and the source refuses a server's \
         certificate that is shown as a client's
         (\"tls: unsupported certificate\").",
    );
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(letters).collect()
    })
}

/// Lines that come before CloudNativePG's last one, `host all all all scram-sha-256`.
fn pg_hba(yaml: &mut Yaml, facts: &Facts) {
    yaml.line(2, "pg_hba:");
    yaml.comment(
        2,
        "The way back: after the cutover the old cluster can follow this one, as it followed its \
         own leader.",
    );
    yaml.item(2, &format!("hostssl replication {STANDBY} all md5"));
    if hba::refuses_plaintext(&facts.hba) {
        yaml.comment(
            2,
            "As the source does; CloudNativePG would accept connections without TLS.",
        );
        yaml.item(2, "hostnossl all all all reject");
    }
    if !facts.md5_roles().is_empty() {
        yaml.comment(
            2,
            "Some passwords are stored as md5, which scram-sha-256 refuses; md5 accepts both. \
             Remove this line when each has been set anew:
             select rolname from pg_authid where rolpassword like 'md5%'.",
        );
        yaml.item(2, "hostssl all all all md5");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{example, settings::SourceAuth};
    use serde::Deserialize as _;
    use serde_yaml_ng::Value as Yml;

    fn documents(facts: &Facts, settings: &Settings) -> Vec<Yml> {
        let text = render(
            facts,
            settings,
            &Image::parse(&settings.target_image).unwrap(),
        );
        serde_yaml_ng::Deserializer::from_str(&text)
            .map(|document| Yml::deserialize(document).unwrap())
            .collect()
    }

    #[test]
    fn it_is_a_cluster_and_two_poolers_that_yaml_can_read() {
        let documents = documents(&example::facts(), &example::settings());
        let names: Vec<_> = documents
            .iter()
            .map(|d| {
                (
                    d["kind"].as_str().unwrap(),
                    d["metadata"]["name"].as_str().unwrap(),
                )
            })
            .collect();
        assert_eq!(
            names,
            [
                ("Cluster", "database"),
                ("Pooler", "database-pooler-rw"),
                ("Pooler", "database-pooler-ro")
            ]
        );
        let spec = &documents[0]["spec"];
        assert_eq!(spec["bootstrap"]["pg_basebackup"]["owner"], "mastodon");
        assert_eq!(
            spec["bootstrap"]["pg_basebackup"]["secret"]["name"],
            "database-owner"
        );
        assert_eq!(spec["replica"]["enabled"], true);
        assert_eq!(spec["smartShutdownTimeout"], 0);
        assert_eq!(spec["superuserSecret"]["name"], "database-superuser-source");
    }

    #[test]
    fn the_pod_patch_is_a_json_patch_that_runs_adopt_pgdata_restricted() {
        let cluster = &documents(&example::facts(), &example::settings())[0];
        let patch: Value = serde_json::from_str(
            cluster["metadata"]["annotations"]["cnpg.io/podPatch"]
                .as_str()
                .unwrap(),
        )
        .unwrap();
        assert_eq!(patch[0]["path"], "/spec/initContainers/-");
        let container = &patch[0]["value"];
        assert_eq!(container["command"], json!(["/adopt-pgdata"]));
        assert_eq!(
            container["env"][1],
            json!({"name": "ARCHIVE_RESTART", "value": "never"})
        );
        assert_eq!(container["securityContext"]["runAsUser"], 26);
        assert_eq!(
            container["securityContext"]["capabilities"]["drop"],
            json!(["ALL"])
        );
    }

    #[test]
    fn the_source_is_reached_as_it_can_be_checked() {
        let (mut facts, mut settings) = (example::facts(), example::settings());
        let of = |facts: &Facts, settings: &Settings| {
            documents(facts, settings)[0]["spec"]["externalClusters"][0].clone()
        };
        let cluster = of(&facts, &settings);
        assert_eq!(cluster["connectionParameters"]["sslmode"], "verify-full");
        assert_eq!(cluster["connectionParameters"]["user"], "standby");
        assert_eq!(cluster["connectionParameters"]["port"], "5432");
        assert_eq!(cluster["sslRootCert"]["name"], "zalando-replication-ca");
        assert!(cluster.get("sslCert").is_none() && cluster.get("sslKey").is_none());
        (facts.tls.sslmode, settings.source_auth) =
            (SslMode::Require, SourceAuth::StreamingReplica);
        let cluster = of(&facts, &settings);
        assert_eq!(cluster["connectionParameters"]["user"], "streaming_replica");
        assert!(
            cluster.get("sslRootCert").is_none(),
            "libpq checks the chain in require, too, when there is a CA file"
        );
    }

    #[test]
    fn an_owner_without_a_password_gets_no_secret() {
        let mut facts = example::facts();
        facts.roles[2].hash = None;
        assert!(
            documents(&facts, &example::settings())[0]["spec"]["bootstrap"]["pg_basebackup"]
                .get("secret")
                .is_none()
        );
    }

    #[test]
    fn md5_is_accepted_only_while_there_are_such_hashes() {
        let mut facts = example::facts();
        let hba = |facts: &Facts| {
            documents(facts, &example::settings())[0]["spec"]["postgresql"]["pg_hba"]
                .as_sequence()
                .unwrap()
                .len()
        };
        assert_eq!(hba(&facts), 3);
        facts
            .roles
            .iter_mut()
            .for_each(|role| role.hash = Some(crate::scram::Kind::Scram));
        assert_eq!(hba(&facts), 2);
    }

    #[test]
    fn the_pods_resources_are_the_sources() {
        let mut facts = example::facts();
        facts.pod.resources = Some(json!({"limits": {"memory": "4Gi"}, "requests": {"cpu": "1"}}));
        assert_eq!(
            documents(&facts, &example::settings())[0]["spec"]["resources"]["limits"]["memory"],
            "4Gi"
        );
    }
}
