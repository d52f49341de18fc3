//! The manifests used from an application's own repository, as README shows it: by URL, with an
//! overlay of a few lines.

use std::{fs, path::Path, process::Command};

use harness::{
    manifests::{self, Renderer, render_by},
    setup::Setup,
};
use serde_json::Value;

use super::names;

const TAG: &str = "v0.1.0";
/// README's promise about the length of that overlay.
const LINES_MAX: usize = 11;

/// The overlay in README, with `{repository}` in place of this project's URL.
fn overlay() -> String {
    let readme = fs::read_to_string(manifests::folder().join("../README.md")).unwrap();
    let (_, begins) = readme
        .split_once("```yaml\n")
        .expect("README shows an overlay");
    let (overlay, _) = begins.split_once("```").unwrap();
    assert!(overlay.lines().count() <= LINES_MAX + 1, "{overlay}");
    overlay.replace("https://github.com/…/", "{repository}//")
}

/// Makes a git repository of the current manifests, with a tag.
fn publish(folder: &Path) {
    names::copy(&manifests::folder(), &folder.join("manifests"));
    let identity = [
        "-c",
        "user.name=test",
        "-c",
        "user.email=test@example.org",
        "-c",
        "commit.gpgsign=false",
    ];
    let init: &[&str] = &["init", "--quiet", "--initial-branch=main"];
    for arguments in [
        init,
        &["add", "."],
        &["commit", "--quiet", "--message=manifests"],
        &["tag", TAG],
    ] {
        let git = Command::new("git")
            .args(identity)
            .args(arguments)
            .current_dir(folder)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .status();
        assert!(
            git.expect("git is missing; `make prerequisites` installs it or names the command")
                .success(),
            "git {arguments:?}"
        );
    }
}

#[tokio::test]
async fn by_url_and_by_path_kustomize_and_kubectl_render_the_same() {
    let setup = Setup::ready().await.unwrap();
    let (published, application) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    publish(published.path());
    let url = format!("file://{}", published.path().display());
    let by_url = overlay().replace("{repository}", &url);
    assert!(
        by_url.contains(&format!("{url}//manifests/base?ref={TAG}")),
        "{by_url}"
    );
    fs::write(application.path().join("kustomization.yaml"), &by_url).unwrap();
    let patch = "target-patch.yaml";
    let example = manifests::folder().join("overlays/example").join(patch);
    fs::copy(example, application.path().join(patch)).unwrap();

    let by_path = by_url
        .replace(&format!("{url}//manifests"), "../..")
        .replace(&format!("?ref={TAG}"), "");
    let wanted: Vec<Value> = names::render_with(&by_path).await;
    assert!(
        wanted.len() > 20
            && wanted
                .iter()
                .all(|object| object["metadata"]["namespace"] == "shop")
    );
    for renderer in [Renderer::Kustomize, Renderer::Kubectl] {
        let found = render_by(renderer, setup, application.path()).unwrap();
        assert_eq!(found, wanted, "{renderer:?}");
    }
}

#[tokio::test]
async fn kubectl_renders_the_example_and_every_component_as_kustomize_does() {
    let setup = Setup::ready().await.unwrap();
    let example = manifests::folder().join("overlays/example");
    assert_eq!(
        render_by(Renderer::Kubectl, setup, &example).unwrap(),
        manifests::example(setup).unwrap()
    );
    for component in super::components::all() {
        let folder = tempfile::tempdir().unwrap();
        names::copy(&manifests::folder(), folder.path());
        let overlay = folder.path().join("overlays/example");
        fs::write(
            overlay.join("kustomization.yaml"),
            super::components::with(&component),
        )
        .unwrap();
        assert_eq!(
            render_by(Renderer::Kubectl, setup, &overlay).unwrap(),
            manifests::render(setup, &overlay).unwrap(),
            "{component}"
        );
    }
}
