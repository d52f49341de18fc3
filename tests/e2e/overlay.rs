//! The overlay as a user would keep it: the base, the component that sets names, the image, and the
//! settings of this run.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result};
use harness::manifests;

use crate::settings::Settings;

/// Writes the kustomization into `folder`, to be given to `kubectl apply -k`.
pub fn write(folder: &Path, settings: &Settings) -> Result<PathBuf> {
    let overlay = folder.join("overlay");
    fs::create_dir_all(&overlay)?;
    // kustomize takes no absolute paths.
    let base = from_root(&manifests::folder().canonicalize()?);
    let up = "../".repeat(
        overlay
            .canonicalize()?
            .components()
            .filter(|part| matches!(part, Component::Normal(_)))
            .count(),
    );
    let (name, tag) = settings
        .image
        .rsplit_once(':')
        .context("E2E_IMAGE has no tag")?;
    let namespace = &settings.namespace;
    let restart = settings.archive_restart.as_ref();
    let restart = restart.map_or_else(String::new, |when| format!("  - ARCHIVE_RESTART={when}\n"));
    let text = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: {namespace}
resources: [{up}{base}/base]
components: [{up}{base}/components/names]
images:
- name: replica-migration
  newName: {name}
  newTag: \"{tag}\"
configMapGenerator:
- name: replica-migration
  behavior: merge
  literals:
  - SOURCE_HOST=mastodon-postgresql.{namespace}.svc
  - TARGET_HOST=database-rw.{namespace}.svc
  - TARGET_IMAGE={}
  - TARGET_STORAGE=2Gi
  - ROUTE={}
  - ACCEPT=wal-archive
{restart}",
        settings.target_image,
        settings.route.word()
    );
    let file = overlay.join("kustomization.yaml");
    fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    Ok(overlay)
}

fn from_root(path: &Path) -> String {
    path.display()
        .to_string()
        .trim_start_matches('/')
        .to_owned()
}
