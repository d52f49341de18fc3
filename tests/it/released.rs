//! The programs as they are released, and the image that they go into, as far as no container
//! engine is needed.

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command, time::Duration};

use harness::{
    kubelet,
    manifests::{self, of_kind},
    setup::Setup,
    start_probe::{Start, StartProbe},
};
use object::{
    LittleEndian, Object as _, ObjectKind,
    elf::PT_INTERP,
    read::elf::{ElfFile64, ProgramHeader as _},
};

const PROGRAM_BYTES_MAX: usize = 11_000_000;
/// What a program may add to the compressed image, on average.
const COMPRESSED_BYTES_MAX: usize = 4_500_000;
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

fn is_static_movable_and_stripped(bytes: &[u8]) -> Result<(), String> {
    let file = ElfFile64::<LittleEndian>::parse(bytes).map_err(|error| error.to_string())?;
    let mut segments = file.elf_program_headers().iter();
    if segments.any(|segment| segment.p_type(LittleEndian) == PT_INTERP) {
        return Err("it asks for a dynamic loader".into());
    }
    if file.kind() != ObjectKind::Dynamic {
        return Err("it always lies at the same address".into());
    }
    if file.symbols().next().is_some() {
        return Err("it has symbols".into());
    }
    Ok(())
}

#[tokio::test]
async fn programs_are_small_static_and_all_there() {
    let directory = kubelet::released().await.unwrap();
    let mut total = 0;
    for name in names() {
        let file = fs::read(directory.join(&name)).unwrap();
        let gzip = Command::new("gzip")
            .arg("--stdout")
            .arg(directory.join(&name))
            .output()
            .unwrap();
        let (bytes, compressed) = (file.len(), gzip.stdout.len());
        eprintln!("{name}: {bytes} bytes, {compressed} compressed");
        assert!(bytes <= PROGRAM_BYTES_MAX, "{name} has {bytes} bytes");
        assert_eq!(is_static_movable_and_stripped(&file), Ok(()), "{name}");
        total += compressed;
    }
    eprintln!("all programs: {total} bytes compressed");
    assert!(
        total <= COMPRESSED_BYTES_MAX * names().len(),
        "the image's layer has {total} bytes"
    );
    // The check itself works: this test's own executable is not stripped.
    let own = fs::read(std::env::current_exe().unwrap()).unwrap();
    assert_eq!(
        is_static_movable_and_stripped(&own),
        Err("it has symbols".into())
    );
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

/// Measures processor time rather than elapsed time, because other tests run at the same time.
#[tokio::test]
async fn a_step_calls_the_api_at_once_and_needs_little_memory() {
    let (directory, probe) = (
        kubelet::released().await.unwrap(),
        StartProbe::new().await.unwrap(),
    );
    for step in names().iter().filter(|name| *name != "adopt-pgdata") {
        let mut starts: Vec<Start> = Vec::new();
        for _ in 0..STARTS {
            starts.push(probe.start(&directory.join(step), step).await.unwrap());
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
}
