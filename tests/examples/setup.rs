//! Finds or makes everything that the harness needs, and says where it is: `make setup`.

use harness::setup::Setup;

fn main() -> anyhow::Result<()> {
    let setup = Setup::complete_blocking()?;
    let s3_server = setup.s3_server_blocking()?;
    for (part, place) in [
        ("kube-apiserver", &setup.kube_apiserver),
        ("etcd", &setup.etcd),
        ("kustomize", &setup.kustomize),
        ("s3 server", &s3_server),
        ("python with patroni", &setup.python),
        ("postgresql", &setup.postgres_bin),
        ("files of a run", &setup.directories.runs),
    ] {
        println!("{part:<20} {}", place.display());
    }
    Ok(())
}
