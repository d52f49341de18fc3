//! The variables and the exit codes of the programs, read from their source text. A running program
//! cannot report its variables: an optional one has no effect until it is set.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::{
    Attribute, Expr, ExprCall, Fields, GenericArgument, ItemFn, ItemMod, ItemStruct, Lit, Pat,
    PathArguments,
    visit::{self, Visit},
};

/// Possible names of the struct with a program's own variables.
const SETTINGS: [&str; 2] = ["Settings", "Config"];
/// Variables of every program (shared/src/job.rs).
const COMMON: &str = "Common";
/// Variables of one side, read with a prefix (shared/src/config.rs).
const CONNECTION: &str = "Connection";

/// The variables of a program.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Variables {
    /// The program does not start without them.
    pub(super) required: BTreeSet<String>,
    /// They have a default.
    pub(super) optional: BTreeSet<String>,
}

impl Variables {
    pub(super) fn all(&self) -> BTreeSet<String> {
        self.required.union(&self.optional).cloned().collect()
    }

    fn add(&mut self, prefix: &str, fields: &[Field]) {
        for field in fields {
            let side = if field.optional {
                &mut self.optional
            } else {
                &mut self.required
            };
            side.insert(format!("{prefix}{}", field.name.to_uppercase()));
        }
    }
}

#[derive(Clone, Debug)]
struct Field {
    name: String,
    optional: bool,
}

/// The findings in the sources of one crate.
#[derive(Debug, Default)]
struct Found {
    /// Structs that are deserialized.
    structs: BTreeMap<String, Vec<Field>>,
    /// Prefix and struct of each `prefixed("…")`.
    prefixed: BTreeSet<(String, String)>,
}

/// The variables that a program reads.
pub(super) fn variables(program: &str) -> Variables {
    let mut own = found(&root().join("bins").join(program).join("src"));
    // The settings that cutover and rollback have in common.
    if own.structs.is_empty() {
        own = found(&root().join("cut/src"));
    }
    let shared = found(&root().join("shared/src"));
    let settings: Vec<&Vec<Field>> = SETTINGS
        .iter()
        .filter_map(|name| own.structs.get(*name))
        .collect();
    let [settings] = settings[..] else {
        panic!("{program} has no struct, or more than one, of {SETTINGS:?}")
    };
    let mut variables = Variables::default();
    variables.add("", settings);
    variables.add("", &shared.structs[COMMON]);
    for (prefix, name) in &own.prefixed {
        let fields = own.structs.get(name).or_else(|| shared.structs.get(name));
        variables.add(
            prefix,
            fields.unwrap_or_else(|| panic!("{program}: no struct {name} for {prefix}")),
        );
    }
    variables
}

/// Kinds of errors and their exit codes, from `ErrorKind::code` in shared/src/error.rs.
pub(super) fn exit_codes() -> Vec<(String, i64)> {
    #[derive(Default)]
    struct Codes(Vec<(String, i64)>);
    impl Visit<'_> for Codes {
        fn visit_impl_item_fn(&mut self, function: &syn::ImplItemFn) {
            if function.sig.ident == "code" {
                visit::visit_impl_item_fn(self, function);
            }
        }
        fn visit_item_fn(&mut self, _: &ItemFn) {}
        fn visit_arm(&mut self, arm: &syn::Arm) {
            let Pat::Path(kind) = &arm.pat else {
                panic!("an exit code whose pattern is not an error kind")
            };
            let Expr::Lit(code) = &*arm.body else {
                panic!("an exit code that is not a number")
            };
            let Lit::Int(code) = &code.lit else {
                panic!("an exit code that is not a number")
            };
            self.0.push((
                kind.path.segments.last().unwrap().ident.to_string(),
                code.base10_parse().unwrap(),
            ));
        }
    }
    let mut codes = Codes::default();
    codes.visit_file(&parsed(&root().join("shared/src/error.rs")));
    codes.0
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn parsed(file: &Path) -> syn::File {
    syn::parse_file(&fs::read_to_string(file).unwrap())
        .unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn found(folder: &Path) -> Found {
    let mut found = Found::default();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            let inner = self::found(&path);
            found.structs.extend(inner.structs);
            found.prefixed.extend(inner.prefixed);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.visit_file(&parsed(&path));
        }
    }
    found
}

impl Visit<'_> for Found {
    fn visit_item_struct(&mut self, item: &ItemStruct) {
        let (true, Fields::Named(fields)) = (derives_deserialize(&item.attrs), &item.fields) else {
            return;
        };
        let fields = fields.named.iter().map(|field| {
            let serde = words(&field.attrs, "serde");
            assert!(
                !serde.contains("flatten") && !serde.contains("rename"),
                "{}: the variable of a field is the field's name",
                item.ident
            );
            Field {
                name: field.ident.as_ref().unwrap().to_string(),
                optional: serde.contains("default"),
            }
        });
        // Only structs that are read from the environment matter.
        if SETTINGS.contains(&item.ident.to_string().as_str())
            || [COMMON, CONNECTION].contains(&item.ident.to_string().as_str())
        {
            self.structs
                .insert(item.ident.to_string(), fields.collect());
        }
    }

    fn visit_expr_call(&mut self, call: &ExprCall) {
        if let Expr::Path(function) = &*call.func
            && let Some(last) = function.path.segments.last()
            && last.ident == "prefixed"
            // Not the call inside of `config::prefixed`.
            && function.path.segments[0].ident != "envy"
        {
            let Some(Expr::Lit(literal)) = call.args.first() else {
                panic!("the prefix of prefixed() must be a literal")
            };
            let Lit::Str(prefix) = &literal.lit else {
                panic!("the prefix of prefixed() must be a string")
            };
            let named = match &last.arguments {
                PathArguments::AngleBracketed(given) => given.args.first().and_then(type_name),
                _ => None,
            };
            self.prefixed.insert((
                prefix.value(),
                named.unwrap_or_else(|| CONNECTION.to_owned()),
            ));
        }
        visit::visit_expr_call(self, call);
    }

    fn visit_item_mod(&mut self, module: &ItemMod) {
        if !words(&module.attrs, "cfg").contains("test") {
            visit::visit_item_mod(self, module);
        }
    }
}

fn type_name(argument: &GenericArgument) -> Option<String> {
    match argument {
        GenericArgument::Type(syn::Type::Path(path)) => path
            .path
            .segments
            .last()
            .map(|segment| segment.ident.to_string()),
        _ => None,
    }
}

fn derives_deserialize(attributes: &[Attribute]) -> bool {
    words(attributes, "derive").contains("Deserialize")
}

/// The words in all attributes of a name.
fn words(attributes: &[Attribute], name: &str) -> BTreeSet<String> {
    let lists = attributes
        .iter()
        .filter_map(|attribute| attribute.meta.require_list().ok())
        .filter(|list| list.path.is_ident(name));
    let text: String = lists.map(|list| format!("{} ", list.tokens)).collect();
    text.split(|c: char| !(c.is_alphanumeric() || c == '_'))
        .map(str::to_owned)
        .collect()
}
