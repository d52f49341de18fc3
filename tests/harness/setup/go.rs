//! kube-apiserver, etcd, kustomize and kubectl: provided, found by setup-envtest or in PATH, or
//! built with Go from their modules.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{Directories, ServerUser, tools};

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

/// A program that Go builds from one of the harness's go.mod files.
struct Part {
    name: &'static str,
    version: &'static str,
    package: &'static str,
    /// go.mod, go.sum and tools.go; separate where dependencies conflict with those of Kubernetes.
    module: [(&'static str, &'static str); 3],
    minutes: &'static str,
}

const KUBERNETES_MODULE: [(&str, &str); 3] = [
    ("go.mod", include_str!("../control-plane/go.mod")),
    ("go.sum", include_str!("../control-plane/go.sum")),
    ("tools.go", include_str!("../control-plane/tools.go")),
];
const ETCD_MODULE: [(&str, &str); 3] = [
    ("go.mod", include_str!("../etcd/go.mod")),
    ("go.sum", include_str!("../etcd/go.sum")),
    ("tools.go", include_str!("../etcd/tools.go")),
];

const VERSITYGW_MODULE: [(&str, &str); 3] = [
    ("go.mod", include_str!("../versitygw/go.mod")),
    ("go.sum", include_str!("../versitygw/go.sum")),
    ("tools.go", include_str!("../versitygw/tools.go")),
];

const KUBE_APISERVER: Part = Part {
    name: "kube-apiserver",
    version: KUBERNETES,
    package: "k8s.io/kubernetes/cmd/kube-apiserver",
    module: KUBERNETES_MODULE,
    minutes: "about 5 minutes",
};
const KUSTOMIZE: Part = Part {
    name: "kustomize",
    version: "5.7.1",
    package: "sigs.k8s.io/kustomize/kustomize/v5",
    module: KUBERNETES_MODULE,
    minutes: "about half a minute",
};
const KUBECTL: Part = Part {
    name: "kubectl",
    version: KUBERNETES,
    package: "k8s.io/kubernetes/cmd/kubectl",
    module: KUBERNETES_MODULE,
    minutes: "about a minute",
};
const ETCD: Part = Part {
    name: "etcd",
    version: "3.6.16",
    package: "go.etcd.io/etcd/server/v3",
    module: ETCD_MODULE,
    minutes: "about a minute",
};

const VERSITYGW: Part = Part {
    name: "versitygw",
    version: "1.8.0",
    package: "github.com/versity/versitygw/cmd/versitygw",
    module: VERSITYGW_MODULE,
    minutes: "about a minute and a half",
};

/// The S3 server; only backup tests need it.
pub(super) fn s3_server(directories: &Directories) -> Result<PathBuf> {
    build(&VERSITYGW, directories)
}

/// The programs from `$KUBEBUILDER_ASSETS`, otherwise from setup-envtest if installed there,
/// otherwise built. kustomize is always built, kubectl unless the machine has one.
pub(super) fn control_plane(directories: &Directories, user: &ServerUser) -> Result<ControlPlane> {
    let kustomize = build(&KUSTOMIZE, directories)?;
    let given = env::var_os("KUBEBUILDER_ASSETS").filter(|value| !value.is_empty());
    let [kube_apiserver, etcd] = if let Some(directory) = given {
        assets(Path::new(&directory), directories, user).context("KUBEBUILDER_ASSETS")?
    } else if let Some(found) =
        envtest().and_then(|directory| assets(&directory, directories, user).ok())
    {
        found
    } else {
        [
            build(&KUBE_APISERVER, directories)?,
            build(&ETCD, directories)?,
        ]
    };
    Ok(ControlPlane {
        kube_apiserver,
        etcd,
        kustomize,
        kubectl: installed_kubectl().map_or_else(|| build(&KUBECTL, directories), Ok)?,
    })
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

/// The program in the cache; built if missing.
fn build(part: &Part, directories: &Directories) -> Result<PathBuf> {
    let directory = directories
        .cache
        .join(format!("{}-{}", part.name, part.version));
    let finished = directory.join(part.name);
    if tools::is_program(&finished) {
        return Ok(finished);
    }
    let go = tools::need("go", "golang-go")?;
    eprintln!(
        "building {} {}, {} on two cores, once",
        part.name, part.version, part.minutes
    );
    let module = directory.join("module");
    fs::create_dir_all(&module).with_context(|| format!("creating {}", module.display()))?;
    for (name, text) in part.module {
        fs::write(module.join(name), text).with_context(|| format!("writing {name}"))?;
    }
    let unfinished = directory.join("unfinished");
    let mut command = Command::new(go);
    // Kubernetes compares its own version with feature requirements, so a version is linked in.
    command
        .args(["build", "-trimpath", "-ldflags", &linker_flags(), "-o"])
        .arg(&unfinished)
        .arg(part.package);
    let status = command
        .current_dir(&module)
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-mod=readonly -buildvcs=false")
        .status();
    if !status.context("starting go")?.success() {
        bail!(
            "go could not build {} {}; see its output above (Go 1.26 or newer is needed, or a \
             Go that may fetch it)",
            part.name,
            part.version
        );
    }
    super::directories::readable(&unfinished)?;
    fs::rename(&unfinished, &finished)
        .with_context(|| format!("putting {} into place", finished.display()))?;
    Ok(finished)
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
