//! What the programs observe and change: PostgreSQL ([`postgres`]), PgBouncer ([`pgbouncer`]),
//! Patroni ([`patroni`]), the resources of both operators and of Kubernetes ([`kubernetes`]), and
//! the certificates of both sides ([`pki`]).

pub mod collector;
pub mod kubernetes;
pub mod patroni;
pub mod pgbouncer;
pub mod pki;
pub mod postgres;
