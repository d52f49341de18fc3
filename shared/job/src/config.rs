//! The environment as typed settings: one flat struct per program, field = variable = key in
//! `settings.env`.

use std::{ffi::OsString, fmt, path::PathBuf};

use serde::{Deserialize, Deserializer, de::DeserializeOwned, de::Error as _};

use protocol::route::Route;

use crate::error::{Error, Result};

const WHERE: &str = "set it in the ConfigMap replica-migration (manifests/base/settings.env)";

/// Reads the whole environment into a program's settings.
///
/// # Errors
/// Config, with the name of the variable that is missing or unusable.
pub fn load<C: DeserializeOwned>() -> Result<C> {
    prefixed("")
}

/// Reads the variables that begin with `prefix` (for example `SOURCE_`).
///
/// # Errors
/// As [`load`].
pub fn prefixed<C: DeserializeOwned>(prefix: &str) -> Result<C> {
    let variables: Vec<_> = std::env::vars_os().map(as_text).collect();
    read(&variables, prefix)
}

/// A variable that is not UTF-8 is read with U+FFFD in place of what cannot be decoded. A variable
/// of another program therefore does no harm, and a setting is neither ignored nor replaced by its
/// default: its parser, or the use of what it names, fails with an error that contains it.
fn as_text((name, value): (OsString, OsString)) -> (String, String) {
    let text = |part: OsString| part.to_string_lossy().into_owned();
    (text(name), text(value))
}

fn read<C: DeserializeOwned>(variables: &[(String, String)], prefix: &str) -> Result<C> {
    let error = match envy::prefixed(prefix).from_iter(variables.iter().cloned()) {
        Ok(settings) => return Ok(settings),
        Err(envy::Error::MissingValue(field)) => {
            format!("the variable {prefix}{} is missing", field.to_uppercase())
        }
        Err(envy::Error::Custom(reason)) => match unusable_variable::<C>(variables, prefix) {
            Some(name) => format!("the variable {name} cannot be used: {reason}"),
            None => format!("a variable cannot be used: {reason}"),
        },
    };
    Err(Error::config(error).hint(WHERE))
}

/// The variable that cannot be used, which envy's error does not name: read alone, a usable one
/// fails only because the others are missing.
fn unusable_variable<'a, C: DeserializeOwned>(
    variables: &'a [(String, String)],
    prefix: &str,
) -> Option<&'a str> {
    let unusable = |variable: &&(String, String)| {
        let alone = envy::prefixed(prefix).from_iter::<_, C>([(*variable).clone()]);
        matches!(alone, Err(envy::Error::Custom(_)))
    };
    variables
        .iter()
        .find(unusable)
        .map(|(name, _)| name.as_str())
}

/// A text without white space around it that is not empty; envy accepts "" for a `String`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NonEmptyString(String);

impl NonEmptyString {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&ObjectName> for NonEmptyString {
    fn from(name: &ObjectName) -> Self {
        Self(name.to_string())
    }
}

impl std::ops::Deref for NonEmptyString {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NonEmptyString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for NonEmptyString {
    type Err = &'static str;
    fn from_str(value: &str) -> std::result::Result<Self, Self::Err> {
        match value.trim() {
            "" => Err("it is empty"),
            value => Ok(Self(value.to_owned())),
        }
    }
}

impl<'de> Deserialize<'de> for NonEmptyString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

/// The name of a Kubernetes object: an RFC 1123 subdomain of at most 253 characters. A typing
/// mistake is found before the first call of the API.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName(String);

impl ObjectName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::ops::Deref for ObjectName {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for ObjectName {
    type Err = String;
    fn from_str(value: &str) -> std::result::Result<Self, String> {
        let value = value.trim();
        let edge =
            |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let inside = value
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.');
        if value.is_empty() {
            return Err("a Kubernetes name is empty".into());
        }
        if value.len() > 253
            || !inside
            || !edge(value.chars().next())
            || !edge(value.chars().next_back())
        {
            return Err(format!(
                "{value:?} is not a Kubernetes name (lower-case letters, digits, '-' and '.')"
            ));
        }
        Ok(Self(value.to_owned()))
    }
}

impl<'de> Deserialize<'de> for ObjectName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

/// An entry of the setting APPS: the name of a workload, or a label that workloads carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum App {
    /// A Deployment or StatefulSet of this name.
    Name(ObjectName),
    /// `key=value`; a workload must carry all labels of APPS.
    Label(String),
}

impl fmt::Display for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Label(label) => label.fmt(f),
        }
    }
}

impl std::str::FromStr for App {
    type Err = String;
    fn from_str(word: &str) -> std::result::Result<Self, String> {
        match word.split_once('=') {
            None => word.parse().map(Self::Name),
            Some((key, value)) if !key.is_empty() && !value.is_empty() => {
                Ok(Self::Label(word.to_owned()))
            }
            Some(_) => Err(format!(
                "{word:?} is neither a name nor a label (key=value)"
            )),
        }
    }
}

/// Reads an optional setting; "" is the same as absent, because that is what an empty key of the
/// ConfigMap gives.
///
/// Use as `#[serde(default, deserialize_with = "crate::config::optional")]`.
///
/// # Errors
/// Those of the type's parser.
pub fn optional<'de, D: Deserializer<'de>, T: std::str::FromStr<Err: fmt::Display>>(
    deserializer: D,
) -> std::result::Result<Option<T>, D::Error> {
    let value = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
    match value.trim() {
        "" => Ok(None),
        value => value.parse().map(Some).map_err(D::Error::custom),
    }
}

/// The setting ARCHIVE_RESTART: when CloudNativePG restarts the target because of archive_mode,
/// which the promotion changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArchiveRestart {
    /// Not at all: adopt-pgdata writes the later value into the copy before its first start.
    Never,
    /// After the promotion; the cutover waits for the restart before it resumes client traffic.
    BeforeTraffic,
}

/// Reads the setting ROUTE; None is `auto`.
///
/// Use as `#[serde(deserialize_with = "crate::config::route")]`.
///
/// # Errors
/// Any other text than `auto`, `config` and `service`.
pub fn route<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<Route>, D::Error> {
    match String::deserialize(deserializer)?.trim() {
        "auto" => Ok(None),
        "config" => Ok(Some(Route::Config)),
        "service" => Ok(Some(Route::Service)),
        other => Err(D::Error::custom(format!(
            "{other:?} is none of auto, service, config"
        ))),
    }
}

/// How TLS is used, as libpq's sslmode. Modes weaker than `require` are not offered: Spilo's
/// pg_hba.conf refuses connections without TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SslMode {
    /// Encrypted, the server's certificate is not checked.
    Require,
    /// The chain is checked against the CA.
    VerifyCa,
    /// The chain and the host name are checked.
    VerifyFull,
}

impl SslMode {
    /// The value as libpq and the Cluster manifest write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

/// One side's connection, read with [`prefixed`] from `SOURCE_*` or `TARGET_*`. The password is a
/// mounted file, never a value.
#[derive(Clone, Debug, Deserialize)]
pub struct Connection {
    /// Host name: resolved, sent as SNI, and compared with the certificate.
    pub host: NonEmptyString,
    /// Address to connect to instead of resolving `host` (libpq's hostaddr).
    #[serde(default, deserialize_with = "optional")]
    pub hostaddr: Option<std::net::IpAddr>,
    /// TCP port.
    #[serde(default = "default_port")]
    pub port: u16,
    /// Role to log in as.
    #[serde(default = "default_user")]
    pub user: NonEmptyString,
    /// File that holds the password, mounted from a Secret.
    pub password_file: PathBuf,
    /// TLS mode.
    pub sslmode: SslMode,
    /// File with the CA certificates; needed by the verify modes.
    #[serde(default, deserialize_with = "optional")]
    pub sslrootcert: Option<PathBuf>,
    /// File with a client certificate and its intermediate CAs; a file that does not exist is none.
    #[serde(default, deserialize_with = "optional")]
    pub sslcert: Option<PathBuf>,
    /// File with its key.
    #[serde(default, deserialize_with = "optional")]
    pub sslkey: Option<PathBuf>,
}

fn default_port() -> u16 {
    5432
}

fn default_user() -> NonEmptyString {
    NonEmptyString("postgres".into())
}

/// Values separated by commas, spaces, tabs or line ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommaList<T>(pub Vec<T>);

impl<'de, T: std::str::FromStr<Err: fmt::Display>> Deserialize<'de> for CommaList<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let words = text
            .split([',', ' ', '\n', '\t'])
            .filter(|word| !word.is_empty());
        words
            .map(|word| word.parse().map_err(D::Error::custom))
            .collect::<std::result::Result<_, _>>()
            .map(CommaList)
    }
}

/// Keys and values as `KEY=value,KEY=value`, separated as in [`CommaList`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyValues(pub std::collections::BTreeMap<String, String>);

impl<'de> Deserialize<'de> for KeyValues {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let words = text
            .split([',', ' ', '\n', '\t'])
            .filter(|word| !word.is_empty());
        let pair = |word: &str| match word.split_once('=') {
            Some((key, value)) if !key.is_empty() && !value.is_empty() => {
                Ok((key.to_owned(), value.to_owned()))
            }
            _ => Err(D::Error::custom(format!("{word:?} is not KEY=value"))),
        };
        words
            .map(pair)
            .collect::<std::result::Result<_, _>>()
            .map(KeyValues)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from<C: DeserializeOwned>(pairs: &[(&str, &str)]) -> Result<C> {
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(k, v)| (format!("SOURCE_{k}"), (*v).to_owned()))
            .collect();
        read(&pairs, "SOURCE_")
    }

    #[test]
    fn a_missing_variable_is_named_with_its_prefix() {
        let error = from::<Connection>(&[("PORT", "5432")]).unwrap_err();
        assert_eq!(error.to_string(), "the variable SOURCE_HOST is missing");
        assert_eq!(error.kind(), crate::error::ErrorKind::Config);
    }

    #[test]
    fn an_empty_text_is_refused_and_an_empty_option_is_none() {
        let all = [
            ("HOST", " "),
            ("PASSWORD_FILE", "/p"),
            ("SSLMODE", "require"),
        ];
        let error = from::<Connection>(&all).unwrap_err().to_string();
        assert_eq!(
            error,
            "the variable SOURCE_HOST cannot be used: it is empty"
        );
        let all = [
            ("HOST", "h"),
            ("PASSWORD_FILE", "/p"),
            ("SSLMODE", "verify-ca"),
            ("HOSTADDR", ""),
        ];
        assert_eq!(from::<Connection>(&all).unwrap().hostaddr, None);
    }

    #[test]
    fn a_variable_that_is_not_utf8_is_named_and_other_programs_variables_do_no_harm() {
        use std::os::unix::ffi::OsStringExt as _;
        let variables = [("SOURCE_PORT", &b"54\xff32"[..]), ("OTHER", &b"\xfe"[..])]
            .map(|(name, value)| as_text((name.into(), OsString::from_vec(value.to_vec()))));
        let error = read::<Connection>(&variables, "SOURCE_").unwrap_err();
        assert!(error.to_string().contains("SOURCE_PORT cannot be used"));
        assert!(read::<Nothing>(&variables, "").is_ok());
    }

    #[derive(Deserialize)]
    struct Nothing {}

    #[derive(Deserialize)]
    struct Apps {
        apps: CommaList<ObjectName>,
    }

    #[test]
    fn a_list_takes_commas_and_spaces_and_refuses_what_is_no_name() {
        let apps: Apps = from(&[("APPS", "web, sidekiq\nstreaming")]).unwrap();
        assert_eq!(
            apps.apps
                .0
                .iter()
                .map(ObjectName::as_str)
                .collect::<Vec<_>>(),
            ["web", "sidekiq", "streaming"]
        );
        assert!(from::<Apps>(&[("APPS", "Web")]).is_err());
    }

    #[test]
    fn an_application_is_named_or_labelled() {
        let word = |text: &str| text.parse::<App>();
        assert_eq!(word("web").unwrap().to_string(), "web");
        assert_eq!(
            word("app.kubernetes.io/part-of=shop"),
            Ok(App::Label("app.kubernetes.io/part-of=shop".into()))
        );
        assert!(word("=shop").is_err() && word("Web").is_err());
    }

    #[derive(Deserialize)]
    struct Target {
        app_config_target: KeyValues,
    }

    #[test]
    fn pairs_need_a_key_and_a_value() {
        let target: Target =
            from(&[("APP_CONFIG_TARGET", "DB_HOST=new, REPLICA_DB_HOST=new-ro")]).unwrap();
        assert_eq!(target.app_config_target.0["REPLICA_DB_HOST"], "new-ro");
        assert!(from::<Target>(&[("APP_CONFIG_TARGET", "DB_HOST")]).is_err());
        assert!(from::<Target>(&[("APP_CONFIG_TARGET", "DB_HOST=")]).is_err());
    }
}
