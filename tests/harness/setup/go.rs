//! kube-apiserver, etcd, kustomize and kubectl: provided, found by setup-envtest or in PATH, or
//! built with Go from their modules.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::{Directories, ServerUser, progress, tools};

const KUBERNETES: &str = "1.34.4";
/// The first kubectl that embeds kustomize 5, which the manifests need.
const KUBECTL_MINOR_MIN: u64 = 27;

/// The programs of the control plane.
pub(super) struct ControlPlane {
    pub(super) kube_apiserver: PathBuf,
    pub(super) etcd: PathBuf,
    pub(super) kustomize: PathBuf,
    pub(super) kubectl: PathBuf,
}

/// A Go module of this repository: its go.mod, go.sum and tools.go.
struct Module {
    files: [(&'static str, &'static str); 3],
    /// How long all its programs take together.
    estimate: &'static str,
}

/// A program that Go builds.
struct Part {
    name: &'static str,
    version: &'static str,
    package: &'static str,
    /// What `go build` calls it.
    output: &'static str,
}

const KUBERNETES_MODULE: Module = Module {
    files: [
        ("go.mod", include_str!("../control-plane/go.mod")),
        ("go.sum", include_str!("../control-plane/go.sum")),
        ("tools.go", include_str!("../control-plane/tools.go")),
    ],
    estimate: "about 5 minutes",
};
/// Apart from Kubernetes, because their dependencies do not agree.
const ETCD_MODULE: Module = Module {
    files: [
        ("go.mod", include_str!("../etcd/go.mod")),
        ("go.sum", include_str!("../etcd/go.sum")),
        ("tools.go", include_str!("../etcd/tools.go")),
    ],
    estimate: "about a minute",
};
const VERSITYGW_MODULE: Module = Module {
    files: [
        ("go.mod", include_str!("../versitygw/go.mod")),
        ("go.sum", include_str!("../versitygw/go.sum")),
        ("tools.go", include_str!("../versitygw/tools.go")),
    ],
    estimate: "about a minute and a half",
};

const KUBE_APISERVER: Part = Part {
    name: "kube-apiserver",
    version: KUBERNETES,
    package: "k8s.io/kubernetes/cmd/kube-apiserver",
    output: "kube-apiserver",
};
const KUBECTL: Part = Part {
    name: "kubectl",
    version: KUBERNETES,
    package: "k8s.io/kubernetes/cmd/kubectl",
    output: "kubectl",
};
const KUSTOMIZE: Part = Part {
    name: "kustomize",
    version: "5.7.1",
    package: "sigs.k8s.io/kustomize/kustomize/v5",
    output: "kustomize",
};
const ETCD: Part = Part {
    name: "etcd",
    version: "3.6.16",
    package: "go.etcd.io/etcd/server/v3",
    output: "server",
};
const VERSITYGW: Part = Part {
    name: "versitygw",
    version: "1.8.0",
    package: "github.com/versity/versitygw/cmd/versitygw",
    output: "versitygw",
};

impl Part {
    fn directory(&self, directories: &Directories) -> PathBuf {
        directories
            .cache
            .join(format!("{}-{}", self.name, self.version))
    }

    /// Where the finished program is, or will be.
    fn program(&self, directories: &Directories) -> PathBuf {
        self.directory(directories).join(self.name)
    }
}

/// An S3 server over a directory; only the tests of the backup need it.
pub(super) fn s3_server(directories: &Directories) -> Result<PathBuf> {
    build(&VERSITYGW_MODULE, &[&VERSITYGW], directories)?;
    Ok(VERSITYGW.program(directories))
}

/// Where the programs of the control plane come from: decided before any of them is built.
pub(super) struct Sources {
    /// kube-apiserver and etcd that are there already.
    servers: Option<[PathBuf; 2]>,
    /// The kubectl of the machine, if it is new enough.
    kubectl: Option<PathBuf>,
}

/// kube-apiserver and etcd are taken from `$KUBEBUILDER_ASSETS`, else from setup-envtest when it
/// has them without a network, else built. kustomize is always built, kubectl unless the machine
/// has one.
pub(super) fn sources(directories: &Directories, user: &ServerUser) -> Result<Sources> {
    let given = env::var_os("KUBEBUILDER_ASSETS").filter(|value| !value.is_empty());
    let servers = if let Some(directory) = given {
        Some(assets(Path::new(&directory), directories, user).context("KUBEBUILDER_ASSETS")?)
    } else {
        envtest().and_then(|directory| assets(&directory, directories, user).ok())
    };
    Ok(Sources {
        servers,
        kubectl: installed_kubectl(),
    })
}

/// kube-apiserver, kustomize and kubectl, as far as they have to be built: one build, because they
/// share many packages.
pub(super) fn kubernetes(sources: &Sources, directories: &Directories) -> Result<()> {
    let mut parts = Vec::new();
    if sources.servers.is_none() {
        parts.push(&KUBE_APISERVER);
    }
    if sources.kubectl.is_none() {
        parts.push(&KUBECTL);
    }
    parts.push(&KUSTOMIZE);
    build(&KUBERNETES_MODULE, &parts, directories)
}

/// etcd, if it has to be built.
pub(super) fn etcd(sources: &Sources, directories: &Directories) -> Result<()> {
    if sources.servers.is_some() {
        return Ok(());
    }
    build(&ETCD_MODULE, &[&ETCD], directories)
}

/// The programs, after [`kubernetes`] and [`etcd`].
pub(super) fn control_plane(sources: Sources, directories: &Directories) -> ControlPlane {
    let [kube_apiserver, etcd] = sources.servers.unwrap_or_else(|| {
        [
            KUBE_APISERVER.program(directories),
            ETCD.program(directories),
        ]
    });
    ControlPlane {
        kube_apiserver,
        etcd,
        kustomize: KUSTOMIZE.program(directories),
        kubectl: sources
            .kubectl
            .unwrap_or_else(|| KUBECTL.program(directories)),
    }
}

fn assets(directory: &Path, directories: &Directories, user: &ServerUser) -> Result<[PathBuf; 2]> {
    let program = |name: &str| {
        let file = directory.join(name);
        if !tools::is_program(&file) {
            bail!("{} is not a program", file.display());
        }
        if user.reaches(&file) {
            Ok(file)
        } else {
            copy(&file, name, directories)
        }
    };
    Ok([program("kube-apiserver")?, program("etcd")?])
}

/// The kubectl in PATH, if it is recent enough.
fn installed_kubectl() -> Option<PathBuf> {
    let kubectl = tools::find("kubectl")?;
    let output = Command::new(&kubectl)
        .args(["version", "--client", "--output=json"])
        .output()
        .ok()?;
    let version: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let minor = version.pointer("/clientVersion/minor")?.as_str()?;
    // Some distributions report `32+`.
    let minor: u64 = minor.trim_end_matches('+').parse().ok()?;
    (minor >= KUBECTL_MINOR_MIN).then_some(kubectl)
}

/// A copy in the cache, for a program where the servers' user has no access, for example below
/// root's home.
fn copy(file: &Path, name: &str, directories: &Directories) -> Result<PathBuf> {
    let directory = directories.cache.join("given");
    let (finished, unfinished) = (directory.join(name), directory.join("unfinished"));
    let stamp = |file: &Path| {
        fs::metadata(file)
            .and_then(|found| Ok((found.len(), found.modified()?)))
            .ok()
    };
    if stamp(file) != stamp(&finished) {
        fs::create_dir_all(&directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        fs::copy(file, &unfinished).with_context(|| format!("copying {}", file.display()))?;
        let modified = fs::metadata(file)?.modified()?;
        fs::File::options()
            .write(true)
            .open(&unfinished)?
            .set_modified(modified)?;
        super::directories::readable(&directory)?;
        super::directories::readable(&unfinished)?;
        fs::rename(&unfinished, &finished)
            .with_context(|| format!("putting {} into place", finished.display()))?;
    }
    Ok(finished)
}

/// The directory that setup-envtest reports without downloading, if it is installed.
fn envtest() -> Option<PathBuf> {
    let output = Command::new(tools::find("setup-envtest")?)
        .args(["use", "--installed-only", "--print", "path"])
        .output()
        .ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    Some(PathBuf::from(path.trim())).filter(|path| output.status.success() && path.is_dir())
}

/// Builds those of the parts that are not in the cache yet, all of one module, with one command:
/// what they share is compiled once. A part appears in its place when it is complete.
fn build(module: &Module, parts: &[&Part], directories: &Directories) -> Result<()> {
    let missing: Vec<&Part> = parts
        .iter()
        .copied()
        .filter(|part| !tools::is_program(&part.program(directories)))
        .collect();
    let Some(first) = missing.first() else {
        return Ok(());
    };
    let go = tools::need("go")?;
    let names: Vec<String> = missing
        .iter()
        .map(|part| format!("{} {}", part.name, part.version))
        .collect();
    progress::report(&names.join(", "), module.estimate, || {
        let directory = first.directory(directories);
        let unfinished = fresh(&directory)?;
        go_build(&go, module, &missing, &directory, &unfinished)?;
        for part in &missing {
            put_into_place(part, &unfinished, directories)?;
        }
        fs::remove_dir_all(&unfinished)
            .with_context(|| format!("removing {}", unfinished.display()))
    })
}

/// An empty directory for what is being built. What an interrupted build left is removed; a build
/// that outlived its parent cannot write here, because the name is this process's.
fn fresh(directory: &Path) -> Result<PathBuf> {
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with("unfinished")
        {
            let removed = if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())
            } else {
                fs::remove_file(entry.path())
            };
            removed.with_context(|| format!("removing {}", entry.path().display()))?;
        }
    }
    let unfinished = directory.join(format!("unfinished-{}", std::process::id()));
    fs::create_dir(&unfinished).with_context(|| format!("creating {}", unfinished.display()))?;
    Ok(unfinished)
}

fn go_build(
    go: &Path,
    module: &Module,
    parts: &[&Part],
    directory: &Path,
    output: &Path,
) -> Result<()> {
    let source = directory.join("module");
    fs::create_dir_all(&source).with_context(|| format!("creating {}", source.display()))?;
    for (name, text) in module.files {
        fs::write(source.join(name), text).with_context(|| format!("writing {name}"))?;
    }
    let mut command = Command::new(go);
    // A version is stamped in because Kubernetes compares its own with what its features need. With
    // the slash at its end, -o is a directory also for a single program.
    command
        .args(["build", "-trimpath", "-ldflags", &linker_flags(), "-o"])
        .arg(output.join(""))
        .args(parts.iter().map(|part| part.package))
        .current_dir(&source)
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-mod=readonly -buildvcs=false")
        .stdin(Stdio::null());
    let built = command.output().context("starting go")?;
    if !built.status.success() {
        bail!(
            "go build failed (`make prerequisites` checks whether Go is new enough): {}",
            String::from_utf8_lossy(&built.stderr).trim()
        );
    }
    Ok(())
}

fn put_into_place(part: &Part, unfinished: &Path, directories: &Directories) -> Result<()> {
    let (built, program) = (unfinished.join(part.output), part.program(directories));
    let directory = part.directory(directories);
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    super::directories::readable(&directory)?;
    super::directories::readable(&built)?;
    fs::rename(&built, &program)
        .with_context(|| format!("putting {} into place", program.display()))
}

fn linker_flags() -> String {
    let stamp = |variable: &str, value: &str| {
        format!(" -X k8s.io/component-base/version.{variable}={value}")
    };
    let version = format!("v{KUBERNETES}");
    [
        "-s -w".to_owned(),
        stamp("gitVersion", &version),
        stamp("gitMajor", "1"),
        stamp("gitMinor", "34"),
    ]
    .concat()
        + &format!(" -X k8s.io/client-go/pkg/version.gitVersion={version}")
}
