//! Example reports: one that passed, one that failed, and an unusual one.

use std::{collections::BTreeMap, time::Duration};

use harness::ledger::{Bucket, Gap, Key, Verdict};

use super::{Mark, Names, Program, Report, Span, Step, UnmanagedWriter};

const BLOCK_MS: u64 = 8_000;
const ACKNOWLEDGED: u32 = 4_812;

pub fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A run with ROUTE=config: the application is scaled to zero and starts again with another
/// DB_HOST.
pub fn passed() -> Report {
    Report {
        began: "2025-11-23T12:51:07Z".parse().unwrap(),
        took: at(97_000),
        names: names(),
        verdict: verdict(),
        series: series(),
        block: Some(at(BLOCK_MS)),
        first_write: Some(at(11_195)),
        steps: steps(),
        promoting: Some(span(8_660, 9_610)),
        restarting: Some(span(9_620, 11_150)),
        marks: marks(),
        unmanaged: Some(UnmanagedWriter {
            name: "mastodon-unmanaged".into(),
            acknowledged: 402,
            found: 402,
            lost: 0,
        }),
        errors: Some(3),
        receipt: receipt(),
        programs: programs(),
        broken: None,
    }
}

/// Three acknowledged writes are missing, one of them is on the source only, and the cutover
/// failed.
pub fn failed() -> Report {
    let mut report = passed();
    let lost: Vec<Key> = [211, 212, 215]
        .map(|sequence| Key {
            client: "mastodon-sidekiq-federation-1".into(),
            sequence,
        })
        .into();
    report.verdict.only_on_source = lost[..1].to_vec();
    report.verdict.found -= lost.len();
    report.verdict.lost = lost;
    let cutover = report.programs.last_mut().unwrap();
    cutover.exit = Some(4);
    *cutover.lines.last_mut().unwrap() =
        "00:07.552 ✗ looking once more: the source's member mastodon-postgresql-0 runs again → \
         stop it before a client writes to it"
            .into();
    report
}

/// Unusual content: long names, a short gap, a second wait, a step that never ended, different
/// PostgreSQL versions.
pub fn odd() -> Report {
    let mut report = passed();
    report.names.source_cluster = "social-network-production-postgresql-main".into();
    report.names.target_postgres = "17.11".into();
    report.steps[6].name =
        "verify from the target's control file that nothing can come after the shutdown checkpoint"
            .into();
    let last = report.steps.last_mut().unwrap();
    last.to = None;
    let gap = |(from, to)| Gap {
        from: at(from),
        to: at(to),
    };
    report.verdict.gap = Some(gap((8_110, 8_900)));
    report.verdict.later_gaps = [(9_700, 11_200), (12_900, 13_400)].map(gap).into();
    report.unmanaged = None;
    report
}

fn span(from: u64, to: u64) -> Span {
    Span {
        from: at(from),
        to: at(to),
    }
}

fn names() -> Names {
    Names {
        source_cluster: "mastodon-postgresql".into(),
        target_cluster: "database".into(),
        namespace: "mastodon".into(),
        source_postgres: "17.10".into(),
        target_postgres: "17.10".into(),
        patroni: "4.0.4".into(),
        kubernetes: "1.34.4".into(),
    }
}

fn verdict() -> Verdict {
    let gap = |(client, from, to): (&str, u64, u64)| {
        let gap = Gap {
            from: at(from),
            to: at(to),
        };
        (client.to_owned(), gap)
    };
    Verdict {
        acknowledged: ACKNOWLEDGED as usize,
        found: ACKNOWLEDGED as usize,
        refused: 61,
        unknown_found: 1,
        unknown_missing: 2,
        gap: Some(Gap {
            from: at(8_110),
            to: at(11_790),
        }),
        gap_by_client: [
            ("mastodon-sidekiq-background-1", 8_061, 11_800),
            ("mastodon-sidekiq-default-1", 8_110, 12_010),
            ("mastodon-sidekiq-federation-1", 8_098, 11_790),
            ("mastodon-sidekiq-scheduler-1", 8_074, 12_212),
            ("mastodon-streaming-1", 8_105, 12_350),
            ("mastodon-web-1", 8_090, 12_380),
            ("mastodon-web-2", 8_031, 12_390),
        ]
        .map(gap)
        .into(),
        ..Verdict::default()
    }
}

/// All acknowledged writes, spread unevenly over the slices with active clients.
fn series() -> Vec<Bucket> {
    let busy = |n: u64| n <= 80 || (118..200).contains(&n);
    let slices = u32::try_from((0..200).filter(|n| busy(*n)).count()).unwrap();
    let (mut seen, mut noise, mut owed) = (0, 7_u32, 0_u32);
    (0..200)
        .map(|n| {
            let mut bucket = Bucket {
                start: at(n * 100),
                ..Bucket::default()
            };
            if !busy(n) {
                return bucket;
            }
            seen += 1;
            let even = ACKNOWLEDGED * seen / slices - ACKNOWLEDGED * (seen - 1) / slices;
            // A surplus in one slice is taken from the next.
            let count = if owed > 0 {
                even - std::mem::take(&mut owed)
            } else if seen < slices {
                noise = noise.wrapping_mul(1_103_515_245).wrapping_add(12_345);
                owed = noise / 65_536 % 9;
                even + owed
            } else {
                even
            };
            if n <= 80 {
                bucket.source = count
            } else {
                bucket.target = count
            }
            bucket
        })
        .collect()
}

fn steps() -> Vec<Step> {
    [
        ("check everything", 4_900, 6_300),
        ("checkpoint both sides", 6_310, 7_650),
        ("block writes", 8_000, 8_185),
        ("end the client sessions", 8_185, 8_230),
        ("catch up to the marker", 8_230, 8_262),
        ("fence the source", 8_262, 8_540),
        ("verify the fence", 8_540, 8_610),
        ("record the promotion", 8_612, 8_640),
        ("promote and restart the target", 8_640, 11_180),
        ("verify a write", 11_180, 11_205),
        ("route the application", 11_205, 11_250),
        ("scale the application up", 11_250, 12_410),
        ("write the receipt", 12_410, 12_440),
    ]
    .map(|(name, from, to)| Step {
        name: name.into(),
        from: at(from),
        to: Some(at(to)),
    })
    .into()
}

fn marks() -> Vec<Mark> {
    [
        ("DOWNTIME BEGINS", BLOCK_MS),
        ("POINT OF NO RETURN", 8_612),
        ("DOWNTIME ENDS", 12_410),
    ]
    .map(|(name, ms)| Mark {
        name: name.into(),
        at: at(ms),
    })
    .into()
}

fn receipt() -> BTreeMap<String, String> {
    let proof = "The source 7571234567890123456 (timeline 3) was stopped cleanly. The last record \
        that it wrote is its shutdown \
                 checkpoint at 0/18000028;\nthe target had replayed exactly to its end, \
        0/180000A0, when its promotion was recorded. \
                 So everything the source ever\nacknowledged is on the target, and nothing was \
        written on the source after it. The \
                 target is primary on timeline 4.\n";
    let summary = r#"{
  "blocked": "2025-11-23T12:52:19.412Z",
  "ms_since_block": {
    "marker": 230,
    "caught_up": 262,
    "source_stopped": 612,
    "write_verified": 3195,
    "routed": 3250,
    "serving": 4410
  },
  "marker": { "lsn": "0/17FFFE48", "sessions_ended": 14 },
  "promotion": { "shutdown_checkpoint": "0/18000028", "replayed": "0/180000A0", "timeline": 3 },
  "replicas": { "mastodon-sidekiq-default": 1, "mastodon-streaming": 1, "mastodon-web": 2 }
}"#;
    [
        ("proof.txt", proof),
        ("summary.json", summary),
        ("program", "cutover 0.1.0"),
    ]
    .map(|(key, text)| (key.to_owned(), text.to_owned()))
    .into()
}

fn programs() -> Vec<Program> {
    let program = |name: &str, lines: &[&str]| Program {
        name: name.into(),
        exit: Some(0),
        lines: lines.iter().map(|line| (*line).to_owned()).collect(),
    };
    vec![
        program(
            "prepare-zalando",
            &[
                "00:00.031 ✓ leader mastodon-postgresql-0, PostgreSQL 17.10, timeline 3, system \
                 7571234567890123456",
                "00:00.118 ! password_encryption is md5: it stays in force on the target, the \
                 manifest sets scram-sha-256",
                "00:00.342 ✓ manifest in the ConfigMap database-cluster-replica",
                "00:00.343 ✓ done",
            ],
        ),
        program(
            "extract-certs",
            &[
                "00:00.212 ✓ handshake with mastodon-postgresql.mastodon.svc, verify-full",
                "00:00.213 ✓ done",
            ],
        ),
        program(
            "validate-replication",
            &[
                "00:00.095 … cloning: 61 %, 118 MB/s, 2 s left",
                "00:04.310 ✓ lag 0 B at 0/16A01F30",
                "00:04.311 ✓ done",
            ],
        ),
        program(
            "cutover",
            &[
                "00:01.402 ✓ recorded: system 7571234567890123456, timeline 3, leader \
                 mastodon-postgresql-0, 6 Deployments with 7 replicas",
                "00:02.751 ✓ both sides have just written a checkpoint",
                "00:03.101 · DOWNTIME BEGINS: blocking writes at the source, scaling the \
                 application to 0",
                "00:03.331 ✓ +230 ms writes are blocked, 14 sessions ended, marker 0/17FFFE48",
                "00:03.713 ✓ POINT OF NO RETURN: the promotion is recorded, the cutover only \
                 goes forward from here",
                "00:06.296 ✓ +3195 ms the target is primary on timeline 4, its restart is over, a \
                 write is verified",
                "00:07.511 ✓ DOWNTIME ENDS: the application is ready on the target, 4410 ms after \
                 the block",
                "00:07.545 ✓ receipt: kubectl get configmap cutover-database-receipt -n mastodon \
                 -o yaml",
                "00:07.546 ✓ done",
            ],
        ),
    ]
}
