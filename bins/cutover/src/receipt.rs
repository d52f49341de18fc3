//! The receipt's ConfigMap: written once, immutable. What it holds is `protocol::receipt`.

use jiff::Timestamp;
use job::{
    error::{Context as _, Error, ErrorKind, Result, is_conflict},
    kubernetes,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client, api::PostParams};
use protocol::{
    receipt::{Receipt, data},
    record::{Record, Start, labels, receipt_name},
};

/// The program, as the receipt names it.
const PROGRAM: &str = concat!("cutover ", env!("CARGO_PKG_VERSION"));

/// Writes the receipt of the cutover to `target`; one of the same cutover may exist already.
///
/// # Errors
/// Unsafe when it is another cutover's, which is never overwritten.
pub async fn write(
    client: &Client,
    namespace: &str,
    target: &str,
    start: &Start,
    record: &Record,
) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let mut map = ConfigMap {
        immutable: Some(true),
        data: Some(data(start, record, PROGRAM)),
        ..ConfigMap::default()
    };
    map.metadata.name = Some(receipt_name(target));
    map.metadata.labels = Some(labels());
    match maps.create(&PostParams::default(), &map).await {
        Ok(_) => Ok(()),
        Err(error) if is_conflict(&error) => {
            match kubernetes::get(&maps, &receipt_name(target)).await? {
                Some(existing) if began_at(&existing) != Some(start.at) => {
                    let name = receipt_name(target);
                    Err(another(target, &existing).hint(format!(
                        "keep it (kubectl get configmap {name} -o yaml), delete it, and start the \
                         cutover again: it writes the one of this cutover"
                    )))
                }
                _ => Ok(()),
            }
        }
        Err(error) => Err(error).context("writing the receipt"),
    }
}

/// When the cutover of a receipt began.
fn began_at(receipt: &ConfigMap) -> Option<Timestamp> {
    let receipt = Receipt::parse(receipt.data.as_ref()?).ok()?;
    Some(receipt.started.at)
}

fn another(target: &str, receipt: &ConfigMap) -> Error {
    let began = began_at(receipt).map_or_else(
        || "whose start is unknown".to_owned(),
        |at| format!("that began at {at:.0}"),
    );
    let name = receipt_name(target);
    Error::manual_intervention(format!("the receipt {name} is of another cutover, {began}"))
}

/// Checks that no receipt exists yet. One without a record is left from an earlier cutover of this
/// cluster, which is now prepared for another one.
///
/// # Errors
/// Refused when a receipt exists.
pub async fn none_yet(client: &Client, namespace: &str, target: &str) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    match kubernetes::get(&maps, &receipt_name(target)).await? {
        Some(existing) => Err(another(target, &existing).of_kind(ErrorKind::Refused).hint(
            format!(
                "if that cutover has promoted {target}, all is done, and its manifest must not be \
                 applied with replica.enabled: true; only for a target that was cloned since, keep \
                 a copy of the receipt, delete it, and start the cutover again"
            ),
        )),
        None => Ok(()),
    }
}
