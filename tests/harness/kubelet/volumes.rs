//! A pod's volumes as files below its directory.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, PodSpec, Volume};

use super::{
    sources::{Data, Sources},
    variables::{PodContext, field_of},
};
use crate::setup::ServerUser;

/// The kubelet's default mode for files of Secrets and ConfigMaps.
const MODE: i32 = 0o644;

/// A file in a volume.
#[derive(Debug, PartialEq, Eq)]
struct File {
    path: String,
    bytes: Vec<u8>,
    mode: u32,
}

/// Writes what the container mounts; returns each mount path with its directory.
///
/// A PersistentVolumeClaim is a directory below `claims`, shared by all pods that mount it.
pub(super) fn mount(
    context: &PodContext<'_>,
    pod: &PodSpec,
    sources: &Sources,
    root: &Path,
    claims: &Path,
    user: &ServerUser,
) -> Result<Vec<(String, PathBuf)>> {
    let mut mounts = Vec::new();
    for mount in context.container.volume_mounts.iter().flatten() {
        if mount.sub_path.is_some() || mount.sub_path_expr.is_some() {
            bail!(
                "the mount {} has a subPath, which is not imitated",
                mount.mount_path
            );
        }
        let volume = pod
            .volumes
            .iter()
            .flatten()
            .find(|volume| volume.name == mount.name);
        let volume = volume.with_context(|| format!("no volume {}", mount.name))?;
        if let Some(claim) = &volume.persistent_volume_claim {
            let directory = claims.join(&claim.claim_name);
            directories(user, claims, &directory)?;
            mounts.push((mount.mount_path.trim_end_matches('/').to_owned(), directory));
            continue;
        }
        let directory = root.join(mount.mount_path.trim_start_matches('/'));
        directories(user, root, &directory)?;
        let doing = || {
            format!(
                "FailedMount: MountVolume.SetUp failed for volume {:?} ",
                volume.name
            )
        };
        for file in files(volume, context, sources).with_context(doing)? {
            write(
                user,
                root,
                &directory.join(&file.path),
                &file.bytes,
                file.mode,
            )?;
        }
        mounts.push((mount.mount_path.trim_end_matches('/').to_owned(), directory));
    }
    Ok(mounts)
}

fn files(volume: &Volume, context: &PodContext<'_>, sources: &Sources) -> Result<Vec<File>> {
    if let Some(secret) = &volume.secret {
        let name = secret.secret_name.as_deref().unwrap_or_default();
        let projection = Projection {
            kind: "secret",
            name,
            items: secret.items.as_deref(),
            mode: secret.default_mode,
            optional: secret.optional,
        };
        projection.files(sources.secrets.get(name))
    } else if let Some(map) = &volume.config_map {
        let projection = Projection {
            kind: "configmap",
            name: &map.name,
            items: map.items.as_deref(),
            mode: map.default_mode,
            optional: map.optional,
        };
        projection.files(sources.config_maps.get(&map.name))
    } else if let Some(downward) = &volume.downward_api {
        downward
            .items
            .iter()
            .flatten()
            .map(|item| downward_api_file(item, context, downward.default_mode))
            .collect()
    } else if volume.empty_dir.is_some() {
        Ok(Vec::new())
    } else if let Some(projected) = &volume.projected {
        let mut all = Vec::new();
        for source in projected.sources.iter().flatten() {
            let mode = projected.default_mode;
            if let Some(secret) = &source.secret {
                let projection = Projection {
                    kind: "secret",
                    name: &secret.name,
                    items: secret.items.as_deref(),
                    mode,
                    optional: secret.optional,
                };
                all.extend(projection.files(sources.secrets.get(&secret.name))?);
            } else if let Some(map) = &source.config_map {
                let projection = Projection {
                    kind: "configmap",
                    name: &map.name,
                    items: map.items.as_deref(),
                    mode,
                    optional: map.optional,
                };
                all.extend(projection.files(sources.config_maps.get(&map.name))?);
            } else if let Some(downward) = &source.downward_api {
                let files = downward
                    .items
                    .iter()
                    .flatten()
                    .map(|item| downward_api_file(item, context, mode));
                all.extend(files.collect::<Result<Vec<_>>>()?);
            } else {
                bail!("this kind of projection is not imitated");
            }
        }
        Ok(all)
    } else {
        bail!("this kind of volume is not imitated")
    }
}

/// A Secret or ConfigMap that a volume projects.
struct Projection<'a> {
    kind: &'a str,
    name: &'a str,
    items: Option<&'a [KeyToPath]>,
    mode: Option<i32>,
    optional: Option<bool>,
}

impl Projection<'_> {
    fn files(&self, found: Option<&Data>) -> Result<Vec<File>> {
        let optional = self.optional == Some(true);
        let data = match found {
            Some(data) => data,
            None if optional => return Ok(Vec::new()),
            None => bail!("{} {:?} not found", self.kind, self.name),
        };
        let mode = self.mode.unwrap_or(MODE);
        let file = |path: &str, bytes: &[u8], mode: i32| File {
            path: path.to_owned(),
            bytes: bytes.to_vec(),
            mode: mode.unsigned_abs(),
        };
        let Some(items) = self.items else {
            return Ok(data
                .iter()
                .map(|(key, bytes)| file(key, bytes, mode))
                .collect());
        };
        let mut files = Vec::new();
        for item in items {
            match data.get(&item.key) {
                Some(bytes) => files.push(file(&item.path, bytes, item.mode.unwrap_or(mode))),
                None if optional => {}
                None => bail!(
                    "references non-existent {} key: {}",
                    if self.kind == "configmap" {
                        "config"
                    } else {
                        self.kind
                    },
                    item.key
                ),
            }
        }
        Ok(files)
    }
}

fn downward_api_file(
    item: &DownwardAPIVolumeFile,
    context: &PodContext<'_>,
    mode: Option<i32>,
) -> Result<File> {
    let field = item
        .field_ref
        .as_ref()
        .context("a resourceFieldRef is not imitated")?;
    let bytes = field_of(field, context)?.into_bytes();
    Ok(File {
        path: item.path.clone(),
        bytes,
        mode: item.mode.or(mode).unwrap_or(MODE).unsigned_abs(),
    })
}

/// Writes a file owned by the servers' user, and creates its parent directories below `root`.
pub(super) fn write(
    user: &ServerUser,
    root: &Path,
    file: &Path,
    bytes: &[u8],
    mode: u32,
) -> Result<()> {
    directories(user, root, file.parent().unwrap_or(root))?;
    let doing = || format!("writing {}", file.display());
    fs::write(file, bytes).with_context(doing)?;
    fs::set_permissions(file, fs::Permissions::from_mode(mode)).with_context(doing)?;
    user.own(file)
}

fn directories(user: &ServerUser, root: &Path, directory: &Path) -> Result<()> {
    let below = directory
        .strip_prefix(root)
        .context("a mount outside of the pod's directory")?;
    let mut path = root.to_owned();
    for part in below {
        path.push(part);
        if !path.exists() {
            fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
            user.own(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> Data {
        [
            ("password".to_owned(), b"p".to_vec()),
            ("username".to_owned(), b"u".to_vec()),
        ]
        .into()
    }

    fn projection<'a>(items: Option<&'a [KeyToPath]>, optional: bool) -> Projection<'a> {
        Projection {
            kind: "secret",
            name: "s",
            items,
            mode: Some(0o440),
            optional: Some(optional),
        }
    }

    fn item(key: &str) -> KeyToPath {
        KeyToPath {
            key: key.into(),
            path: "file".into(),
            ..KeyToPath::default()
        }
    }

    #[test]
    fn items_choose_and_rename_keys() {
        let files = projection(Some(&[item("password")]), false)
            .files(Some(&data()))
            .unwrap();
        assert_eq!(
            files,
            [File {
                path: "file".into(),
                bytes: b"p".to_vec(),
                mode: 0o440
            }]
        );
        assert_eq!(
            projection(None, false).files(Some(&data())).unwrap().len(),
            2
        );
    }

    #[test]
    fn a_missing_object_fails_the_mount_unless_it_is_optional() {
        assert_eq!(
            projection(None, false).files(None).unwrap_err().to_string(),
            "secret \"s\" not found"
        );
        let items = [item("ca.crt")];
        let error = projection(Some(&items), false)
            .files(Some(&data()))
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "references non-existent secret key: ca.crt"
        );
        assert!(projection(None, true).files(None).unwrap().is_empty());
        assert!(
            projection(Some(&items), true)
                .files(Some(&data()))
                .unwrap()
                .is_empty()
        );
    }
}
