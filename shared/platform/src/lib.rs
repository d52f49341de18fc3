//! What the programs observe and change outside of themselves. In reading order:
//!
//! 1. [`postgres`]: sessions, what is asked of the source and of the target, and the replication
//!    protocol.
//! 2. [`pki`]: certificates as libpq verifies them; `postgres` uses it for TLS.
//! 3. [`pgbouncer`]: the admin console of a pooler.
//! 4. [`patroni`]: Patroni's REST API.
//! 5. [`kubernetes`]: the resources of both operators, Services, poolers, the application's
//!    workloads, and the Secrets behind the source's TLS.
//!
//! Types that the checks and the cutover's decisions read are defined in `protocol::snapshot`; the
//! functions here fill them. Settings, errors, waiting, and the HTTP and Kubernetes clients are in
//! `job`: `http` lives there because the Kubernetes API client is built on it.
//!
//! Errors are classified in `job`: those of the Kubernetes API by HTTP status, those of PostgreSQL
//! by SQLSTATE. An `# Errors` section names only what goes beyond that.

pub mod collector;
pub mod hex;
pub mod kubernetes;
pub mod patroni;
pub mod pgbouncer;
pub mod pki;
pub mod postgres;
