//! What a start offers: the adapters that can answer now, and none that its owner took away.

use std::path::{Path, PathBuf};

use super::server::{Home, Server, adapter};

/// DELETE with the key that the first screen has shown.
fn delete(server: &Server, key: &str, name: &str) {
    use std::io::{Read, Write};
    let address = server.url.strip_prefix("http://").unwrap();
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(
        stream,
        "DELETE /v1/adapters/local/{name} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
}

fn key(server: &Server) -> String {
    let key = server.screen.split_whitespace().find(|word| word.starts_with("sk-myriad-"));
    key.expect("the first screen shows the key").to_owned()
}

fn other_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle/fixtures/models/llama3")
}

/// The name after `myriad chat` on the first screen.
fn example(server: &Server) -> String {
    let (_, next) = server.screen.split_once("myriad chat ").expect("the screen names something to talk to");
    next.split_whitespace().next().unwrap().to_owned()
}

#[test]
fn adapters_of_a_base_that_is_not_loaded_are_not_offered() {
    let home = Home::new();
    home.serve(&[]).stop();
    let server = home.serve(&["--model", other_model().to_str().unwrap()]);
    for name in ["support", "extract"] {
        assert!(!server.screen.contains(name), "{name}: {}", server.screen);
        assert!(!home.printed(&["models"]).contains(name));
    }
    let example = example(&server);
    assert_eq!(example, "llama3");
    home.printed(&["chat", &example, "-m", "w1 w2", "--max-tokens", "4"]);
}

/// Copies a built-in adapter to a folder.
fn copy(from: &str, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(adapter(from)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

#[test]
fn a_folder_that_cannot_be_used_is_left_out_and_the_others_are_served() {
    let home = Home::new();
    let folder = home.path("adapters");
    copy("sql", &folder.join("My LoRA v2"));
    std::fs::create_dir_all(folder.join(".git")).unwrap();
    std::fs::create_dir_all(folder.join("broken")).unwrap();
    std::fs::write(folder.join("broken/adapter_config.json"), "{}").unwrap();
    let mut server = home.serve(&["--adapters", folder.to_str().unwrap()]);
    assert!(server.screen.contains("my-lora-v2"), "{}", server.screen);
    home.printed(&["chat", "my-lora-v2", "-m", "hello", "--max-tokens", "4"]);
    let said = server.said();
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("left out ")).collect();
    assert!(matches!(lines[..], [line] if line.contains("broken: ") && line.contains("peft_type")), "{said}");

    std::fs::remove_dir_all(folder.join("My LoRA v2")).unwrap();
    let ports = ["--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"];
    let said = home.refused(&[&["serve", "--adapters", folder.to_str().unwrap()], &ports[..]].concat());
    assert!(said.contains("no folder in it could be used") && said.contains("peft_type"), "{said}");
}

#[test]
fn a_built_in_adapter_that_was_deleted_stays_deleted_until_it_is_pushed_again() {
    let home = Home::new();
    let server = home.serve(&[]);
    delete(&server, &key(&server), "extract");
    server.stop();
    let server = home.serve(&[]);
    assert!(!server.screen.contains("extract"), "{}", server.screen);
    assert!(!home.printed(&["models"]).contains("extract"));
    home.printed(&["push", adapter("extract").to_str().unwrap()]);
    assert!(home.printed(&["models"]).contains("extract"));
}
