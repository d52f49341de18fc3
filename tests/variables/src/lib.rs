//! The variables that each program reads, as a table that two tests share.
//!
//! A unit test of each program compares `variables.tsv` with its own structs by [`check`], which
//! asks serde for the fields. A test of `tests/it` compares [`table`] with settings.env and with
//! the rendered manifests. So neither test reads source text, and no program is linked into the
//! other's tests.
//!
//! For tests only; everything here panics instead of returning an error.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use serde_aux::serde_introspection::serde_introspect;

/// Program, variable, and whether the program starts without it.
const TABLE: &str = include_str!("../variables.tsv");
/// The values that users begin with.
const SETTINGS: &str = include_str!("../../../manifests/base/settings.env");
/// The rows that hold for every Job.
pub const EVERY_JOB: &str = "every-job";
/// Values that settings.env leaves to the overlay.
const OVERLAY: [(&str, &str); 1] = [("BACKUP_TO", "/backup")];

/// The variables of a program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variables {
    /// The program does not start without them.
    pub required: BTreeSet<String>,
    /// They have a default.
    pub optional: BTreeSet<String>,
}

impl Variables {
    /// The fields of a settings struct, as variables that begin with `prefix`.
    ///
    /// A variable is required when loading the struct fails for want of it and of nothing else.
    pub fn of<T: DeserializeOwned>(prefix: &str) -> Self {
        let names = serde_introspect::<T>()
            .iter()
            .map(|field| format!("{prefix}{}", field.to_uppercase()));
        let environment: BTreeMap<String, String> =
            names.map(|name| (name.clone(), value(&name))).collect();
        let load = |without: Option<&String>| {
            let pairs = environment
                .iter()
                .filter(|(name, _)| Some(*name) != without);
            let pairs = pairs.map(|(name, value)| (name.clone(), value.clone()));
            envy::prefixed(prefix).from_iter::<_, T>(pairs).map(drop)
        };
        if let Err(error) = load(None) {
            panic!("the example's values cannot be used: {error}: {environment:?}");
        }
        let (required, optional) = environment
            .keys()
            .cloned()
            .partition(|name| matches!(load(Some(name)), Err(envy::Error::MissingValue(_))));
        Self { required, optional }
    }

    /// Adds the variables of another struct that the same program reads.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.required.extend(other.required);
        self.optional.extend(other.optional);
        self.optional.retain(|name| !self.required.contains(name));
        self
    }

    /// Required and optional ones.
    pub fn all(&self) -> BTreeSet<String> {
        self.required.union(&self.optional).cloned().collect()
    }

    fn rows(&self, program: &str) -> BTreeSet<String> {
        let row = |kind: &str, name: &String| format!("{program}\t{name}\t{kind}");
        let required = self.required.iter().map(|name| row("required", name));
        let optional = self.optional.iter().map(|name| row("optional", name));
        required.chain(optional).collect()
    }
}

/// That the table says of a program what its structs say.
///
/// # Panics
/// With the lines to add and to remove, when it does not.
pub fn check(program: &str, read: &Variables) {
    let (wanted, found) = (read.rows(program), table(program).rows(program));
    let missing: Vec<_> = wanted.difference(&found).cloned().collect();
    let stale: Vec<_> = found.difference(&wanted).cloned().collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "tests/variables/variables.tsv\nlacks:\n{}\nhas, and {program} does not:\n{}",
        missing.join("\n"),
        stale.join("\n")
    );
}

/// The rows of a program, without those of [`EVERY_JOB`].
pub fn table(program: &str) -> Variables {
    let mut variables = Variables::default();
    for line in TABLE.lines().skip(1) {
        let [of, name, kind] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("not three columns: {line:?}")
        };
        let side = match kind {
            "required" => &mut variables.required,
            "optional" => &mut variables.optional,
            other => panic!("{other:?} is neither required nor optional"),
        };
        if of == program {
            side.insert(name.to_owned());
        }
    }
    variables
}

/// The value of the example, or a path for a variable that the manifests set.
fn value(name: &str) -> String {
    let set = SETTINGS.lines().filter_map(|line| line.split_once('='));
    let overlay = OVERLAY.into_iter().find(|(key, _)| *key == name);
    let known = overlay.or_else(|| set.into_iter().find(|(key, _)| *key == name));
    match known {
        Some((_, value)) => value.to_owned(),
        // Optional, and empty is the same as absent.
        None if SETTINGS.contains(&format!("\n#{name}=")) => String::new(),
        None => "/file".to_owned(),
    }
}
