//! `--model ORG/NAME` against a hub on this machine.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::server::Home;
use super::standin::{COMMIT, Hub, TOKEN};

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle/fixtures/models/llama3")
}

/// `myriad serve --model MODEL` with that hub; it has to end by itself.
fn serve(home: &Home, hub: &str, model: &str, variables: &[(&str, &str)]) -> Output {
    command(home, hub, model, variables).output().expect("the binary runs")
}

fn command(home: &Home, hub: &str, model: &str, variables: &[(&str, &str)]) -> Command {
    let ports = ["--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"];
    let mut command = home.myriad(&[&["serve", "--model", model], &ports[..]].concat());
    command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", hub).env("HF_HOME", home.path("hf"));
    command.envs(variables.iter().copied());
    command
}

fn said(output: &Output) -> String {
    assert!(!output.status.success(), "it was served");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_model_is_fetched_once_and_goes_on_where_a_transfer_broke_off() {
    let home = Home::new();
    let hub = Hub::start(&model(), 1);
    let server = home.serve_with(command(&home, &hub.url, "org/open", &[]));
    assert!(server.screen.contains("org/open"), "{}", server.screen);
    assert!(!home.printed(&["chat", "-m", "w1 w2"]).is_empty());
    assert!(server.stop().success());
    let size = std::fs::metadata(model().join("model.safetensors")).unwrap().len();
    assert_eq!(hub.ranges_of_weights(), ["bytes=0-".to_owned(), format!("bytes={}-", size / 2)]);
    // Where the hub's own tools look for it.
    let snapshot = home.path("hf/hub/models--org--open/snapshots").join(COMMIT);
    let fetched = std::fs::read(snapshot.join("model.safetensors")).unwrap();
    assert!(fetched == std::fs::read(model().join("model.safetensors")).unwrap(), "the joined file is another one");

    // The second start takes the weights from the cache, and so does one with no hub at all.
    home.serve_with(command(&home, &hub.url, "org/open", &[])).stop();
    assert_eq!(hub.ranges_of_weights().len(), 2);
    home.serve_with(command(&home, "http://127.0.0.1:9", "org/open", &[])).stop();
    let before = hub.asked().len();
    home.serve_with(command(&home, &hub.url, "org/open", &[("HF_HUB_OFFLINE", "1")])).stop();
    assert_eq!(hub.asked().len(), before, "offline asked the hub");
}

#[test]
fn a_download_that_was_killed_goes_on_at_the_next_start() {
    let home = Home::new();
    // More breaks than tries: the first start gives up with half the file and more.
    let hub = Hub::start(&model(), 4);
    let said = said(&serve(&home, &hub.url, "org/open", &[]));
    assert!(said.contains("org/open") && said.contains("start again"), "{said}");
    home.serve_with(command(&home, &hub.url, "org/open", &[])).stop();
    let last = hub.ranges_of_weights().pop().unwrap();
    assert!(!last.starts_with("bytes=0-"), "the second start began anew: {last}");
}

#[test]
fn on_a_terminal_a_bar_shows_how_far_a_download_is() {
    let home = Home::new();
    let hub = Hub::start(&model(), 4);
    // `script` gives the command a terminal; the breaks make it end.
    let mut command = Command::new("script");
    let line = format!("{} serve --model org/open --listen 127.0.0.1:0", env!("CARGO_BIN_EXE_myriad"));
    command.args(["-qec", &line, "/dev/null"]).env("HOME", home.path("")).env("TERM", "xterm");
    command.env("HF_ENDPOINT", &hub.url).env("HF_HOME", home.path("hf")).env_remove("HF_HUB_OFFLINE");
    let shown = String::from_utf8_lossy(&command.output().expect("script runs").stdout).into_owned();
    let size = std::fs::metadata(model().join("model.safetensors")).unwrap().len() as f64 / 1024.0;
    assert!(shown.contains("model.safetensors") && shown.contains(&format!("/{size:.2} KiB")), "{shown}");
}

#[test]
fn a_gated_model_says_what_to_set_and_a_token_opens_it() {
    let home = Home::new();
    let hub = Hub::start(&model(), 0);
    let refused = said(&serve(&home, &hub.url, "org/gated", &[]));
    assert!(refused.contains("org/gated is gated") && refused.contains("HF_TOKEN"), "{refused}");
    let refused = said(&serve(&home, &hub.url, "org/gated", &[("HF_TOKEN", "hf_wrong")]));
    assert!(refused.contains("org/gated is gated") && !refused.contains("hf_wrong"), "{refused}");
    let server = home.serve_with(command(&home, &hub.url, "org/gated", &[("HF_TOKEN", TOKEN)]));
    assert!(server.stop().success());
    assert!(hub.asked().iter().any(|asked| asked.token.as_deref() == Some(TOKEN)));
}

#[test]
fn what_cannot_be_fetched_says_why() {
    let home = Home::new();
    let hub = Hub::start(&model(), 0);
    for (model, parts) in [
        ("org/nothing", ["org/nothing is not on the hub", "HF_TOKEN"]),
        ("org/open@v9", ["v9", "revision"]),
        ("org/odd", ["no .safetensors", "org/odd"]),
    ] {
        let refused = said(&serve(&home, &hub.url, model, &[]));
        assert!(parts.iter().all(|part| refused.contains(part)), "{model}: {refused}");
    }
    let refused = said(&serve(&home, &hub.url, "org/never", &[("HF_HUB_OFFLINE", "1")]));
    assert!(refused.contains("not in the cache") && refused.contains("HF_HUB_OFFLINE"), "{refused}");
    let refused = said(&serve(&home, "http://127.0.0.1:9", "org/never", &[]));
    assert!(refused.contains("org/never") && refused.contains("127.0.0.1:9"), "{refused}");
}
