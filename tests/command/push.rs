//! `myriad push`: which folders and which name are meant, and what it says of each.

use std::path::Path;
use std::process::Output;

use super::server::{Home, adapter};

/// Copies a built-in adapter to `name` in this home.
fn copy(home: &Home, from: &str, name: &str) {
    let to = home.path(name);
    std::fs::create_dir_all(&to).unwrap();
    for entry in std::fs::read_dir(adapter(from)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// Runs `myriad push` in this home's folder.
fn push(home: &Home, arguments: &[&str]) -> Output {
    let all = [&["push"], arguments].concat();
    home.myriad(&all).current_dir(home.path("")).output().expect("the binary runs")
}

fn pushed(home: &Home, arguments: &[&str]) -> String {
    let output = push(home, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn refused(home: &Home, arguments: &[&str]) -> String {
    let output = push(home, arguments);
    assert!(!output.status.success(), "{arguments:?} was accepted");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Changes a value of an adapter's configuration.
fn configure(folder: &Path, from: &str, to: &str) {
    let path = folder.join("adapter_config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    assert!(config.contains(from), "{config}");
    std::fs::write(path, config.replace(from, to)).unwrap();
}

#[test]
fn a_folder_that_holds_only_a_checkpoint_is_an_adapter() {
    let home = Home::new();
    let _server = home.serve(&[]);
    copy(&home, "sql", "run/checkpoint-100");
    assert!(pushed(&home, &["./run"]).contains("as run@1"));
    copy(&home, "sql", "run/checkpoint-200");
    let said = refused(&home, &["./run"]);
    assert!(said.contains("checkpoint-100, checkpoint-200"), "{said}");
}

#[test]
fn a_word_that_names_the_pushed_folder_is_its_name_and_another_folder_is_not_guessed() {
    let home = Home::new();
    let _server = home.serve(&[]);
    copy(&home, "sql", "my-lora");
    copy(&home, "sql", "keep");
    for folder in ["./my-lora", "my-lora", "my-lora/"] {
        assert!(pushed(&home, &[folder, "my-lora"]).contains("as my-lora@1"), "{folder}");
    }
    assert!(pushed(&home, &["./my-lora", "other"]).contains("as other@1"));
    let said = refused(&home, &["./my-lora", "keep"]);
    assert!(said.contains("./keep") && said.contains("--name keep"), "{said}");
    assert!(pushed(&home, &["./my-lora", "--name", "keep"]).contains("as keep@1"));
    let table = pushed(&home, &["./my-lora", "./keep"]);
    assert_eq!(table.matches("live").count(), 2, "{table}");
    let said = refused(&home, &["./my-lora", "./keep", "--name", "both"]);
    assert!(said.contains("one folder"), "{said}");
}

#[test]
fn warnings_are_shown_under_the_table_of_many() {
    let home = Home::new();
    let _server = home.serve(&[]);
    copy(&home, "sql", "one");
    copy(&home, "sql", "two");
    configure(&home.path("two"), "\"lora_alpha\": 16", "\"lora_alpha\": 0");
    let table = pushed(&home, &["./one", "./two"]);
    assert!(table.contains("warning: two@1: ") && table.contains("lora_alpha"), "{table}");
    assert!(!table.contains("warning: one@1"), "{table}");
}
