//! The programs as they are released, and the image that they go into, as far as no container
//! engine is needed.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use harness::{
    kubelet,
    manifests::{self, of_kind},
    setup::Setup,
    start_probe::{Start, StartProbe},
};

const PROGRAM_BYTES_MAX: u64 = 9_000_000;
/// Of the image's 30 MB; the base is 1 MB, and the programs that are still to come need room.
const COMPRESSED_BYTES_MAX: usize = 28_000_000;
const PROCESSOR_MAX: Duration = Duration::from_millis(50);
const RESIDENT_BYTES_MAX: u64 = 40_000_000;
const STARTS: usize = 5;

fn checkout() -> PathBuf {
    manifests::folder().join("..")
}

/// The folders of `bins/`: each is a program of this name.
fn names() -> BTreeSet<String> {
    let folders = fs::read_dir(checkout().join("bins")).unwrap();
    folders
        .map(|folder| folder.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// A little-endian number in a file.
fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    let bytes = &bytes[at..at + length];
    bytes
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Types of an ELF file's segments or sections (elf(5)): where the headers are, their size and
/// number, and the type's place.
fn types(file: &[u8], [offset, size, count, place]: [usize; 4]) -> Vec<u64> {
    let (offset, size) = (
        number(file, offset, 8) as usize,
        number(file, size, 2) as usize,
    );
    let count = number(file, count, 2) as usize;
    (0..count)
        .map(|n| number(file, offset + n * size + place, 4))
        .collect()
}

fn is_static_movable_and_stripped(file: &[u8]) -> Result<(), &'static str> {
    let (dynamic, interpreter, symbols) = (3, 3, 2);
    let (segments, sections) = (types(file, [32, 54, 56, 0]), types(file, [40, 58, 60, 4]));
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return Err("it is no ELF file of 64 bits");
    }
    if segments.contains(&interpreter) {
        return Err("it asks for a dynamic loader");
    }
    if number(file, 16, 2) != dynamic {
        return Err("it always lies at the same address");
    }
    if sections.contains(&symbols) {
        return Err("it has symbols");
    }
    Ok(())
}

#[tokio::test]
async fn programs_are_small_static_and_all_there() {
    let directory = kubelet::released().await.unwrap();
    let mut compressed = 0;
    for name in names() {
        let file = fs::read(directory.join(&name)).unwrap();
        assert!(
            file.len() as u64 <= PROGRAM_BYTES_MAX,
            "{name} has {} bytes",
            file.len()
        );
        assert_eq!(is_static_movable_and_stripped(&file), Ok(()), "{name}");
        let gzip = Command::new("gzip")
            .arg("--stdout")
            .arg(directory.join(&name))
            .output()
            .unwrap();
        compressed += gzip.stdout.len();
    }
    assert!(
        compressed <= COMPRESSED_BYTES_MAX,
        "the image's layer has {compressed} bytes"
    );
    // That it can tell: this very test is neither stripped nor the like.
    let own = fs::read(std::env::current_exe().unwrap()).unwrap();
    assert_eq!(is_static_movable_and_stripped(&own), Err("it has symbols"));
}

#[tokio::test]
async fn every_program_is_a_step_or_the_init_container() {
    let objects = manifests::example(Setup::ready().await.unwrap()).unwrap();
    let steps = of_kind(&objects, "Job").map(|job| {
        let command = &job["spec"]["template"]["spec"]["containers"][0]["command"][0];
        command.as_str().unwrap().trim_start_matches('/').to_owned()
    });
    let mut used: BTreeSet<String> = steps.collect();
    used.insert("adopt-pgdata".to_owned());
    assert_eq!(names(), used);
}

/// Processor time instead of time: another test may be busy beside it.
#[tokio::test]
async fn a_step_calls_the_api_at_once_and_needs_little_memory() {
    let (directory, door) = (
        kubelet::released().await.unwrap(),
        StartProbe::new().await.unwrap(),
    );
    for step in names().iter().filter(|name| *name != "adopt-pgdata") {
        let mut starts: Vec<Start> = Vec::new();
        for _ in 0..STARTS {
            starts.push(door.start(&directory.join(step), step).await.unwrap());
        }
        starts.sort_by_key(|start| start.processor);
        let median = starts[STARTS / 2];
        eprintln!("{step}: {median:?}");
        assert!(median.processor <= PROCESSOR_MAX, "{step}: {median:?}");
        assert!(
            median.resident_bytes <= RESIDENT_BYTES_MAX,
            "{step}: {median:?}"
        );
    }
}

#[test]
fn the_image_has_the_programs_and_nothing_else() {
    let text = fs::read_to_string(checkout().join("Dockerfile")).unwrap();
    let joined = text.replace("\\\n", " ");
    let (build, last) = joined.rsplit_once("\nFROM ").unwrap();
    let instructions: Vec<&str> = last.lines().filter(|line| !line.starts_with('#')).collect();
    let verbs: BTreeSet<&str> = instructions[1..]
        .iter()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(
        verbs,
        ["ARG", "COPY", "LABEL", "USER"].into(),
        "a last stage without RUN needs no shell"
    );
    assert_eq!(instructions[0], "--platform=${TARGETPLATFORM} ${BASE}");
    for wanted in [
        "ARG BASE=gcr.io/distroless/static-debian12:nonroot",
        "ARG BUILD_BASE=rust:1.95-slim-bookworm",
        "--workspace --exclude tests --bins",
        "amd64) target=x86_64-unknown-linux-gnu ;; arm64) target=aarch64-unknown-linux-gnu ;;",
        "SOURCE_DATE_EPOCH",
    ] {
        assert!(build.contains(wanted), "{wanted}");
    }
    assert!(
        instructions.contains(&"COPY --from=build /programs/ /")
            && instructions.contains(&"USER 65532:65532")
    );
    let label = "org.opencontainers.image.";
    for wanted in [
        "title",
        "description",
        "licenses",
        "version",
        "revision",
        "base.name",
    ] {
        assert!(last.contains(&format!("{label}{wanted}=\"")), "{wanted}");
    }
}

/// What the Makefile passes to an engine is what the Dockerfile takes.
#[test]
fn the_makefile_knows_the_build_arguments() {
    let read = |file: &str| fs::read_to_string(checkout().join(file)).unwrap();
    let (makefile, dockerfile) = (read("Makefile"), read("Dockerfile"));
    let passed: BTreeSet<&str> = makefile
        .split("--build-arg ")
        .skip(1)
        .filter_map(|rest| rest.split('=').next())
        .collect();
    let taken: BTreeSet<&str> = dockerfile
        .lines()
        .filter_map(|line| line.strip_prefix("ARG "))
        .filter_map(|line| line.split('=').next())
        .collect();
    let differences: BTreeSet<&str> = taken.symmetric_difference(&passed).copied().collect();
    assert_eq!(
        differences,
        ["BUILDPLATFORM", "TARGETARCH", "TARGETPLATFORM"].into(),
        "the engine's own"
    );
    for engine in ["docker", "podman", "buildah"] {
        assert!(makefile.contains(&format!("FOR_{engine} = ")), "{engine}");
    }
    for default in ["BASE", "BUILD_BASE"] {
        let value = |text: &str, sign: &str| {
            let lines = text.lines().map(|line| line.trim_start_matches("ARG "));
            let mut found = lines.filter_map(|line| line.strip_prefix(&format!("{default}{sign}")));
            found.next().map(str::to_owned)
        };
        assert_eq!(
            value(&makefile, " ?= "),
            value(&dockerfile, "="),
            "{default}"
        );
    }
    assert!(Path::new(&checkout().join(".dockerignore")).is_file());
}
