//! The operating system's users that may log in as `postgres` over the instance's Unix socket: in a
//! pod its only user, here the user of the harness and the servers' user.

use std::fs;

use anyhow::{Context, Result};

use crate::setup::ServerUser;

/// The names of both users.
///
/// # Errors
/// A user has no name in /etc/passwd; PostgreSQL's peer authentication needs one.
pub fn users(servers: &ServerUser) -> Result<Vec<String>> {
    let mut ids = vec![rustix::process::geteuid().as_raw()];
    if let ServerUser::Other { uid, .. } = servers {
        ids.push(*uid);
    }
    let passwd = fs::read_to_string("/etc/passwd").context("reading /etc/passwd")?;
    ids.into_iter()
        .map(|id| {
            name(&passwd, id).with_context(|| format!("user {id} has no name in /etc/passwd"))
        })
        .collect()
}

fn name(passwd: &str, id: u32) -> Option<String> {
    let fields = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>());
    let found = fields
        .into_iter()
        .find(|fields| fields.get(2).is_some_and(|field| *field == id.to_string()));
    found.map(|fields| fields[0].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_by_number() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nsync:x:65534:65534::/:/usr/sbin/nologin\n";
        assert_eq!(name(passwd, 65_534).as_deref(), Some("sync"));
        assert_eq!(name(passwd, 7), None);
    }
}
