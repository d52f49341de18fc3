//! The receipt: an immutable ConfigMap that answers, a year later, "was anything lost?".

use std::collections::BTreeMap;

use jiff::Timestamp;
use job::{
    error::{Context as _, Error, ErrorKind, Result, is_conflict},
    kubernetes,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client, api::PostParams};
use protocol::record::{labels, receipt_name as receipt_of_cut};
use serde_json::{Value, json};

use protocol::record::{Record, Start};

/// Writes the receipt of the cut to `target`; one of the same cut may exist already.
///
/// # Errors
/// The API's; Unsafe when it is another cut's, which nobody may overwrite.
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
        data: Some(data(start, record)),
        ..ConfigMap::default()
    };
    map.metadata.name = Some(receipt_of_cut(target));
    map.metadata.labels = Some(labels());
    match maps.create(&PostParams::default(), &map).await {
        Ok(_) => Ok(()),
        Err(error) if is_conflict(&error) => {
            match kubernetes::get(&maps, &receipt_of_cut(target)).await? {
                Some(there) if of(&there) != Some(start.at) => Err(another(target, &there)),
                _ => Ok(()),
            }
        }
        Err(error) => Err(error).context("writing the receipt"),
    }
}

/// When the cut began that a receipt is of.
fn of(receipt: &ConfigMap) -> Option<Timestamp> {
    let record: Value = serde_json::from_str(receipt.data.as_ref()?.get("journal.json")?).ok()?;
    record.pointer("/started/at")?.as_str()?.parse().ok()
}

fn another(target: &str, receipt: &ConfigMap) -> Error {
    let began = of(receipt).map_or_else(
        || "of unknown beginning".to_owned(),
        |at| format!("that began at {at:.0}"),
    );
    let name = receipt_of_cut(target);
    Error::manual_intervention(format!("the receipt {name} is of another cut, {began}")).hint(format!(
        "keep it (kubectl get configmap {name} -o yaml), delete it, and start the cutover again: \
         it writes the one of this cut"
    ))
}

/// A receipt without a record: the cluster was cut over before, and is being prepared for another
/// cut.
///
/// # Errors
/// The API's; Refused when there is one.
pub async fn none_yet(client: &Client, namespace: &str, target: &str) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    match kubernetes::get(&maps, &receipt_of_cut(target)).await? {
        Some(there) => Err(another(target, &there).of_kind(ErrorKind::Refused)),
        None => Ok(()),
    }
}

fn data(start: &Start, record: &Record) -> BTreeMap<String, String> {
    let facts = serde_json::to_string_pretty(record).unwrap_or_default();
    let summary = serde_json::to_string_pretty(&summary(start, record)).unwrap_or_default();
    [
        ("summary.json".to_owned(), summary),
        ("record.json".to_owned(), facts),
        ("proof.txt".to_owned(), proof(start, record)),
        (
            "program".to_owned(),
            format!("cutover {}", env!("CARGO_PKG_VERSION")),
        ),
    ]
    .into()
}

/// Instants, and ms since the block for each step.
fn summary(start: &Start, record: &Record) -> Value {
    let since_block =
        |at: Option<Timestamp>| Some(at?.duration_since(record.blocked?).as_millis() as i64);
    json!({
        "source": start.source, "target": start.target, "route": start.route, "replicas": start.replicas,
        "began": start.at, "blocked": record.blocked, "served": record.serving,
        "ms_since_block": {
            "marker": since_block(record.marker.as_ref().map(|m| m.at)),
            "caught_up": since_block(record.fenced.as_ref().map(|f| f.at)),
            "source_down_and_proved": since_block(record.promotion.as_ref().map(|p| p.at)),
            "primary_restarted_and_written": since_block(record.promoted.as_ref().map(|p| p.at)),
            "routed": since_block(record.routed),
            "serving": since_block(record.serving),
        },
        // From the block to the first write that the target took of ours, and to the first that it
        // could take of a client.
        "write_gap_ms": {"proved": since_block(record.promoted.as_ref().map(|p| p.at)), "clients": since_block(record.serving)},
        "marker": record.marker, "promotion": record.promotion, "promoted": record.promoted,
        "reconnected": record.fenced.as_ref().map(|fenced| &fenced.reconnected),
        "readers_sent_away": record.readers.as_ref().map(|readers| &readers.ended),
        "kept_still_and_given_back": kept(start, false), "kept_still_for_good": kept(start, true),
    })
}

/// Whose fields were changed for the time of the cut, or for good.
fn kept(start: &Start, stays: bool) -> Vec<String> {
    let suspensions = start
        .suspensions
        .iter()
        .filter(|suspension| suspension.permanent == stays);
    suspensions.map(|suspension| suspension.key()).collect()
}

/// The argument in words.
fn proof(start: &Start, record: &Record) -> String {
    let (Some(promotion), Some(promoted)) = (&record.promotion, &record.promoted) else {
        return "the cut was not finished".to_owned();
    };
    format!(
        "The source {} (timeline {}) was stopped cleanly. The last record that it wrote is its \
         shutdown checkpoint at {};\n\
         the target had replayed exactly to its end, {}, when its promotion was recorded. So \
         everything the source ever\n\
         acknowledged is on the target, and nothing was written on the source after it. The target \
         is primary on timeline {}.\n",
        start.source.system_identifier,
        promotion.timeline,
        promotion.shutdown_checkpoint,
        promotion.replayed,
        promoted.timeline
    )
}
