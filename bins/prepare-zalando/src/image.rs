//! What the name of a target image tells: the version of PostgreSQL, the version of glibc (and so
//! the sort orders), and the extensions.
//!
//! The images of CloudNativePG (repository cloudnative-pg/postgres-containers) are tagged
//! `17.6-standard-trixie`, with a time stamp between version and kind in tags that do not move; a
//! bare `17` or `17.6` is a system image on bullseye.

/// The parts of an image reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Major version.
    pub major: u32,
    /// Minor version; None when the tag has none.
    pub minor: Option<u32>,
    /// Kind of CloudNativePG's image; None when the tag names none.
    pub kind: Option<Kind>,
    /// Version of glibc; None when the tag names no known Debian release.
    pub glibc: Option<&'static str>,
}

/// Kind of an image of CloudNativePG (repository cloudnative-pg/postgres-containers).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Server and contrib; the locales C, C.UTF-8 and POSIX only.
    Minimal,
    /// As minimal, with all locales, pgaudit and pgvector.
    Standard,
    /// As standard, with barman; deprecated.
    System,
}

/// Extensions that every image has: PostgreSQL's own (its documentation, appendix F), as Debian
/// packages them.
#[rustfmt::skip]
const CONTRIB: &[&str] = &[
    "amcheck", "autoinc", "bloom", "btree_gin", "btree_gist", "citext", "cube", "dblink",
    "dict_int", "dict_xsyn", "earthdistance", "file_fdw", "fuzzystrmatch", "hstore",
    "insert_username", "intagg", "intarray", "isn", "lo", "ltree", "moddatetime", "pageinspect",
    "pg_buffercache", "pg_freespacemap", "pg_prewarm", "pg_stat_statements", "pg_surgery",
    "pg_trgm", "pg_visibility", "pg_walinspect", "pgcrypto", "pgrowlocks", "pgstattuple", "plpgsql",
    "postgres_fdw", "refint", "seg", "sslinfo", "tablefunc", "tcn", "tsm_system_rows",
    "tsm_system_time", "unaccent", "uuid-ossp", "xml2",
];
/// Those that PostgreSQL 17 has removed (its release notes).
const CONTRIB_UNTIL_16: &[&str] = &["adminpack", "old_snapshot"];
/// Extensions that standard and system images have in addition.
const STANDARD: &[&str] = &["pgaudit", "vector"];
/// Contributed libraries without an extension of their own.
const LIBRARIES: &[&str] = &[
    "auto_explain",
    "auth_delay",
    "passwordcheck",
    "sepgsql",
    "test_decoding",
    "basic_archive",
];

/// Extensions that Spilo creates in every database for its own use; no application needs them
/// (docs/operators/zalando.md).
pub const SPILO_EXTENSIONS: &[&str] = &[
    "pg_auth_mon",
    "pg_cron",
    "pg_stat_kcache",
    "plpython3u",
    "set_user",
    "bg_mon",
];

/// Libraries that Spilo preloads by default (Spilo's
/// postgres-appliance/scripts/configure_spilo.py). Where an extension of one of them is installed,
/// that is a finding of its own.
pub const SPILO_LIBRARIES: &[&str] = &[
    "bg_mon",
    "pg_auth_mon",
    "pg_cron",
    "pg_stat_kcache",
    "pg_stat_statements",
    "pgextwlist",
    "set_user",
    "timescaledb",
];

impl Image {
    /// Parses an image reference.
    ///
    /// # Errors
    /// The reason why CloudNativePG's webhook would refuse it.
    pub fn parse(reference: &str) -> Result<Self, String> {
        let (path, _digest) = reference.split_once('@').unwrap_or((reference, ""));
        let name = path.rsplit('/').next().unwrap_or(path);
        let (_, tag) = name.split_once(':').ok_or_else(|| {
            format!("{reference} has no tag; CloudNativePG reads the version of PostgreSQL from it")
        })?;
        let mut words = tag.split('-');
        let (major, minor) = version(words.next().unwrap_or("")).ok_or_else(|| {
            format!("the tag {tag} does not begin with a version of PostgreSQL, such as 17.6")
        })?;
        let words: Vec<&str> = words.collect();
        let known = path.ends_with(&format!("cloudnative-pg/postgresql:{tag}"));
        let bare = known && words.is_empty();
        let kind = if words.contains(&"minimal") {
            Some(Kind::Minimal)
        } else if words.contains(&"standard") {
            Some(Kind::Standard)
        } else if words.contains(&"system") || bare {
            Some(Kind::System)
        } else {
            None
        };
        let glibc = if words.contains(&"trixie") {
            Some("2.41")
        } else if words.contains(&"bookworm") {
            Some("2.36")
        } else if words.contains(&"bullseye") || bare {
            Some("2.31")
        } else {
            None
        };
        Ok(Self {
            major,
            minor,
            kind,
            glibc,
        })
    }

    /// Whether the image has this extension; None when its name does not tell.
    pub fn has_extension(&self, name: &str) -> Option<bool> {
        let contrib =
            CONTRIB.contains(&name) || (self.major <= 16 && CONTRIB_UNTIL_16.contains(&name));
        match (contrib, STANDARD.contains(&name), self.kind) {
            (true, _, _) => Some(true),
            (false, true, Some(Kind::Standard | Kind::System)) => Some(true),
            (false, _, Some(_)) => Some(false),
            (false, _, None) => None,
        }
    }

    /// Whether the image certainly has this library, given by name or path.
    pub fn has_library(&self, name: &str) -> bool {
        let name = name
            .rsplit('/')
            .next()
            .unwrap_or(name)
            .trim_end_matches(".so");
        LIBRARIES.contains(&name) || self.has_extension(name) == Some(true)
    }

    /// Whether the image has locales such as en_US.UTF-8.
    pub fn has_locales(&self) -> bool {
        self.kind != Some(Kind::Minimal)
    }
}

fn version(text: &str) -> Option<(u32, Option<u32>)> {
    let mut numbers = text.split('.');
    let major = numbers.next()?.parse().ok()?;
    let minor = match numbers.next() {
        Some(minor) => Some(minor.parse().ok()?),
        None => None,
    };
    Some((major, minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_gives_version_kind_and_glibc() {
        let image = Image::parse(
            "ghcr.io/cloudnative-pg/postgresql:17.6-202509151215-standard-trixie@sha256:0123",
        )
        .unwrap();
        assert_eq!(
            image,
            Image {
                major: 17,
                minor: Some(6),
                kind: Some(Kind::Standard),
                glibc: Some("2.41")
            }
        );
        assert_eq!(image.has_extension("vector"), Some(true));
        assert_eq!(image.has_extension("timescaledb"), Some(false));
        for (tag, has) in [
            ("16.9-standard-trixie", true),
            ("17.6-standard-trixie", false),
        ] {
            let image = Image::parse(&format!("postgresql:{tag}")).unwrap();
            assert_eq!(image.has_extension("adminpack"), Some(has), "{tag}");
        }
    }

    #[test]
    fn a_bare_tag_is_a_system_image_on_bullseye() {
        let image = Image::parse("ghcr.io/cloudnative-pg/postgresql:17").unwrap();
        assert_eq!(
            (image.kind, image.glibc),
            (Some(Kind::System), Some("2.31"))
        );
    }

    #[test]
    fn an_image_of_another_vendor_has_an_unknown_kind_and_glibc() {
        let image = Image::parse("registry:5000/own/postgresql:17.11").unwrap();
        assert_eq!(
            (image.minor, image.kind, image.glibc),
            (Some(11), None, None)
        );
        assert_eq!(image.has_extension("timescaledb"), None);
        assert_eq!(image.has_extension("pg_trgm"), Some(true));
        assert!(image.has_locales());
    }

    #[test]
    fn references_that_cloudnativepg_refuses_are_refused() {
        for wrong in [
            "postgresql",
            "postgresql:latest",
            "postgresql@sha256:01",
            "registry:5000/postgresql",
            "p:17.x",
        ] {
            assert!(Image::parse(wrong).is_err(), "{wrong}");
        }
    }
}
