//! Rewrites mount paths in values and arguments.

use std::path::PathBuf;

/// `text` with every mount path replaced by its directory on this machine. A path counts only as a
/// whole: it must start at the beginning or after a character that cannot be part of a path, and
/// end at a slash or such a character.
pub(super) fn rewritten(text: &str, mounts: &[(String, PathBuf)]) -> String {
    let mut longest_first: Vec<&(String, PathBuf)> = mounts.iter().collect();
    longest_first.sort_by_key(|(mount, _)| std::cmp::Reverse(mount.len()));
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let begins =
            !out.ends_with(|before: char| before.is_alphanumeric() || "/._-".contains(before));
        let found = longest_first
            .iter()
            .filter(|_| begins)
            .find_map(|(mount, place)| {
                let behind = rest.strip_prefix(mount.as_str())?;
                let ends = !behind
                    .starts_with(|next: char| next.is_alphanumeric() || "._-".contains(next));
                ends.then_some((place, behind))
            });
        match found {
            Some((place, behind)) => {
                out.push_str(&place.to_string_lossy());
                rest = behind;
            }
            None => {
                let mut characters = rest.chars();
                out.extend(characters.next());
                rest = characters.as_str();
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_paths_are_rewritten() {
        let mounts = [
            ("/etc/ca".to_owned(), PathBuf::from("/run/1/etc/ca")),
            ("/etc/ca-two".to_owned(), PathBuf::from("/run/2")),
        ];
        for (text, wanted) in [
            ("/etc/ca/ca.crt", "/run/1/etc/ca/ca.crt"),
            ("/etc/ca", "/run/1/etc/ca"),
            ("/etc/ca-two/x", "/run/2/x"),
            ("/etc/cart", "/etc/cart"),
            ("/mnt/etc/ca", "/mnt/etc/ca"),
            ("a=/etc/ca,b=/etc/ca-two", "a=/run/1/etc/ca,b=/run/2"),
            ("ä /etc/ca", "ä /run/1/etc/ca"),
            ("", ""),
        ] {
            assert_eq!(rewritten(text, &mounts), wanted, "{text}");
        }
    }
}
