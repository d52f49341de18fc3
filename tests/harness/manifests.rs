//! Renders the manifests that users apply, by kustomize or by kubectl, and applies them to the API
//! server.

pub mod access;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::{control_plane::ControlPlane, setup::Setup};

/// `manifests/` of this checkout.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests")
}

/// The program that renders; kubectl may embed another version of kustomize.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renderer {
    /// `kustomize build`.
    Kustomize,
    /// `kubectl kustomize`.
    Kubectl,
}

/// The objects that `kustomize build` renders, in the order in which to apply them.
///
/// # Errors
/// kustomize fails; the error holds its output.
pub fn render(setup: &Setup, overlay: &Path) -> Result<Vec<Value>> {
    render_by(Renderer::Kustomize, setup, overlay)
}

/// Like [`render`], with a choice of program.
///
/// # Errors
/// As [`render`].
pub fn render_by(renderer: Renderer, setup: &Setup, overlay: &Path) -> Result<Vec<Value>> {
    let (program, verb) = match renderer {
        Renderer::Kustomize => (&setup.kustomize, "build"),
        Renderer::Kubectl => (&setup.kubectl, "kustomize"),
    };
    let mut command = std::process::Command::new(program);
    // PATH lets kustomize run git for overlays named by URL.
    let path = std::env::var_os("PATH").unwrap_or_default();
    command
        .arg(verb)
        .arg(overlay)
        .env_clear()
        .env("PATH", path)
        .env("HOME", "/");
    let doing = || format!("{} {verb} {}", program.display(), overlay.display());
    let output = command.output().with_context(doing)?;
    if !output.status.success() {
        bail!(
            "{}: {}",
            doing(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let documents = serde_yaml_ng::Deserializer::from_slice(&output.stdout);
    let objects =
        documents.map(|document| Value::deserialize(document).context("reading what was printed"));
    objects
        .filter(|object| !matches!(object, Ok(Value::Null)))
        .collect()
}

/// The objects of `manifests/overlays/example`.
///
/// # Errors
/// As [`render`].
pub fn example(setup: &Setup) -> Result<Vec<Value>> {
    render(setup, &folder().join("overlays/example"))
}

/// The example with additional `manifests/components`, as a user's overlay includes them.
///
/// # Errors
/// As [`render`].
pub fn example_with(setup: &Setup, components: &[&str]) -> Result<Vec<Value>> {
    example_set(setup, components, &[])
}

/// Like [`example_with`], with changed settings, each `KEY=value`.
///
/// # Errors
/// As [`render`].
pub fn example_set(setup: &Setup, components: &[&str], settings: &[&str]) -> Result<Vec<Value>> {
    // kustomize accepts relative paths only, so the overlay is placed in a copy of all manifests.
    let copy = tempfile::tempdir()?;
    copy_folder(&folder(), copy.path())?;
    let overlay = copy.path().join("overlays/with");
    std::fs::create_dir_all(&overlay)?;
    let taken: String = components
        .iter()
        .map(|name| format!("- ../../components/{name}\n"))
        .collect();
    let head = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: \
        [../example]\ncomponents:\n";
    let map = "configMapGenerator:\n- name: replica-migration\n  namespace: mastodon\n  behavior: \
        merge\n  literals:\n";
    let set: String = settings
        .iter()
        .map(|setting| format!("  - {setting}\n"))
        .collect();
    let own = if settings.is_empty() { "" } else { map };
    std::fs::write(
        overlay.join("kustomization.yaml"),
        format!("{head}{taken}{own}{set}"),
    )?;
    render(setup, &overlay)
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?.path();
        let destination = to.join(entry.file_name().context("an entry without a name")?);
        if entry.is_dir() {
            copy_folder(&entry, &destination)?;
        } else {
            std::fs::copy(&entry, &destination)?;
        }
    }
    Ok(())
}

/// Renders the example and applies it, as `kubectl apply -k manifests/overlays/example` does;
/// returns its objects.
///
/// # Errors
/// As [`render`], or the API server refuses an object.
pub async fn apply_example(plane: &ControlPlane) -> Result<Vec<Value>> {
    let objects = example(plane.setup())?;
    let namespace = namespace(&objects)?;
    plane.namespace(namespace).await?;
    plane.apply(namespace, &objects).await?;
    Ok(objects)
}

/// The namespace of all objects.
///
/// # Errors
/// The objects name no namespace, or more than one.
pub fn namespace(objects: &[Value]) -> Result<&str> {
    let mut all: Vec<&str> = objects
        .iter()
        .filter_map(|object| object.pointer("/metadata/namespace")?.as_str())
        .collect();
    all.dedup();
    match all[..] {
        [one] => Ok(one),
        _ => bail!("the objects belong to the namespaces {all:?}"),
    }
}

/// The objects that carry the label of a step, for example `cutover`.
pub fn of_step(objects: &[Value], step: &str) -> Vec<Value> {
    let label = "/metadata/labels/app.kubernetes.io~1component";
    let belongs = |object: &&Value| object.pointer(label).and_then(Value::as_str) == Some(step);
    objects.iter().filter(belongs).cloned().collect()
}

/// The objects of a kind.
pub fn of_kind<'a>(objects: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    objects
        .iter()
        .filter(move |object| object.get("kind").and_then(Value::as_str) == Some(kind))
}
