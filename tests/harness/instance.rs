//! One running harness instance: its own loopback network and directory, so that several run in
//! parallel with the ports that PostgreSQL, Patroni and the API server use in a cluster.

use std::{
    collections::hash_map::RandomState,
    env, fs,
    hash::{BuildHasher, Hasher},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::setup::Setup;

/// Listening on this host and port claims the network; the kernel releases the claim when the
/// process ends.
const CLAIM: (u8, u16) = (254, 4254);
/// How long the directory of a failed run is kept.
const LEFT_OVER_AGE: Duration = Duration::from_secs(3600);

/// A network 127.A.B.0/24 and a directory, both released on drop.
///
/// | host | used by |
/// |---|---|
/// | 2 | API server and etcd |
/// | 11, 12 | the source's members |
/// | 21 and up | the target's instances |
/// | 64 to 127 | Services (forwarders) |
#[derive(Debug)]
pub struct Instance {
    a: u8,
    b: u8,
    directory: PathBuf,
    _claim: TcpListener,
}

impl Instance {
    /// Claims a free network and creates an empty directory for the servers' user.
    ///
    /// # Errors
    /// No network is free, or the directory cannot be created.
    pub fn claim(setup: &Setup) -> Result<Self> {
        prune(&setup.directories.runs);
        // RandomState is the standard library's only source of randomness; 127.0.x.y is left to
        // others.
        let chance = RandomState::new().build_hasher().finish();
        for attempt in 0..64 {
            let [a, b, ..] = chance.wrapping_add(attempt * 257).to_le_bytes();
            if a == 0 || a == 255 {
                continue;
            }
            if let Ok(claim) = claim(a, b) {
                let directory = setup.directories.runs.join(format!("127.{a}.{b}.0"));
                empty(&directory)?;
                setup.user.own(&directory)?;
                return Ok(Self {
                    a,
                    b,
                    directory,
                    _claim: claim,
                });
            }
        }
        bail!("no free network 127.x.y.0/24 after 64 attempts")
    }

    /// The address of a host in this network.
    pub fn address(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, self.a, self.b, host)
    }

    /// The addresses of Services, as the API server assigns them: hosts 64 to 127. Unlike those of
    /// pods they are real, because the programs connect to the cluster IP of a Service.
    pub fn cluster_ips(&self) -> String {
        format!("{}/26", self.address(64))
    }

    /// The address that represents the same host in Kubernetes objects, because the API server
    /// refuses loopback addresses in Endpoints. Nothing listens there.
    pub fn kubernetes_address(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.a, self.b, host)
    }

    /// The loopback address that a [`Instance::kubernetes_address`] represents.
    pub fn loopback_address(paper: Ipv4Addr) -> Ipv4Addr {
        let [_, a, b, host] = paper.octets();
        Ipv4Addr::new(127, a, b, host)
    }

    /// The reverse of [`Instance::loopback_address`].
    pub fn kubernetes_address_of(real: Ipv4Addr) -> Ipv4Addr {
        let [_, a, b, host] = real.octets();
        Ipv4Addr::new(10, a, b, host)
    }

    /// The directory of this run: data and logs of all servers.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Creates a directory below [`Instance::directory`] that belongs to the servers' user.
    ///
    /// # Errors
    /// The directory cannot be created.
    pub fn subdirectory(&self, setup: &Setup, name: &str) -> Result<PathBuf> {
        let mut directory = self.directory.clone();
        for part in Path::new(name) {
            directory.push(part);
            if !directory.exists() {
                fs::create_dir(&directory)
                    .with_context(|| format!("creating {}", directory.display()))?;
                setup.user.own(&directory)?;
            }
        }
        Ok(directory)
    }
}

impl Drop for Instance {
    /// Removes the directory, unless a test is failing or `HARNESS_KEEP` is set, so that the logs
    /// can be read.
    fn drop(&mut self) {
        if std::thread::panicking() || env::var_os("HARNESS_KEEP").is_some() {
            eprintln!("the servers' logs are kept in {}", self.directory.display());
        } else {
            // Remains are removed by the next run that claims this network.
            fs::remove_dir_all(&self.directory).ok();
        }
    }
}

/// Removes directories of failed or killed runs after an hour, when their logs have served their
/// purpose. A directory whose network is claimed is in use.
fn prune(runs: &Path) {
    for entry in fs::read_dir(runs).into_iter().flatten().flatten() {
        let age = entry
            .metadata()
            .and_then(|found| found.modified())
            .ok()
            .and_then(|since| since.elapsed().ok());
        let network: Option<Ipv4Addr> = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let (Some(age), Some([127, a, b, 0])) = (age, network.map(|network| network.octets()))
        else {
            continue;
        };
        if age > LEFT_OVER_AGE && claim(a, b).is_ok() {
            fs::remove_dir_all(entry.path()).ok();
        }
    }
}

fn claim(a: u8, b: u8) -> std::io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::new(127, a, b, CLAIM.0), CLAIM.1))
}

/// Removes what a failed or killed run left: owning the network means that no other run uses the
/// directory.
fn empty(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)
            .with_context(|| format!("removing {}", directory.display()))?;
    }
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_instances_share_nothing_and_give_back_everything() {
        let setup = Setup::ready_blocking().unwrap();
        let (one, other) = (
            Instance::claim(setup).unwrap(),
            Instance::claim(setup).unwrap(),
        );
        assert_ne!(one.address(2), other.address(2));
        assert_eq!(
            Instance::loopback_address(one.kubernetes_address(11)),
            one.address(11)
        );
        assert_eq!(
            Instance::kubernetes_address_of(one.address(11)),
            one.kubernetes_address(11)
        );
        let directory = one.directory().to_owned();
        assert!(directory.is_dir());
        drop(one);
        assert!(!directory.exists());
    }
}
