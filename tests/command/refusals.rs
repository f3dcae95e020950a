//! What goes wrong at start-up, and what the sentence says to do about it.

use super::server::Home;

const FREE_PORTS: [&str; 4] = ["--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"];

fn serve<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["serve"], more, &FREE_PORTS].concat()
}

#[test]
fn a_port_in_use_says_what_to_try() {
    let home = Home::new();
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = holder.local_addr().unwrap().to_string();
    let said = home.refused(&["serve", "--listen", &address, "--ops-listen", "127.0.0.1:0"]);
    let port = address.rsplit(':').next().unwrap();
    assert!(said.contains(&format!("port {port} is in use")) && said.contains("try --listen"), "{said}");
}

#[test]
fn a_data_directory_in_use_says_by_whom() {
    let home = Home::new();
    let server = home.serve(&[]);
    let said = home.refused(&serve(&[]));
    assert!(said.contains("in use by another myriad process") && said.contains("--data"), "{said}");
    drop(server);
}

#[test]
fn a_model_that_is_nothing_says_what_can_be_named() {
    let said = Home::new().refused(&serve(&["--model", "./no-such-folder"]));
    assert!(said.contains("no-such-folder") && said.contains("ORG/NAME"), "{said}");
}

#[test]
fn an_architecture_that_is_not_supported_lists_those_that_are() {
    let home = Home::new();
    let folder = home.path("odd");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("config.json"), r#"{"architectures": ["OddForCausalLM"], "model_type": "odd"}"#)
        .unwrap();
    let said = home.refused(&serve(&["--model", folder.to_str().unwrap()]));
    assert!(said.contains("OddForCausalLM"), "{said}");
    for family in ["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"] {
        assert!(said.contains(family), "{family} is not listed: {said}");
    }
}

#[test]
fn a_chat_template_that_cannot_be_read_is_told_its_line() {
    let home = Home::new();
    let folder = home.path("model");
    std::fs::create_dir_all(&folder).unwrap();
    let model = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle/fixtures/models/llama3");
    for entry in std::fs::read_dir(model).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
        }
    }
    std::fs::write(folder.join("chat_template.jinja"), "{{ bos_token }}\n{% for message in %}\n").unwrap();
    let said = home.refused(&serve(&["--model", folder.to_str().unwrap()]));
    assert!(said.contains("chat_template.jinja: line 2"), "{said}");
}

#[test]
fn a_bootstrap_key_of_the_wrong_form_is_refused() {
    let home = Home::new();
    let output = home.myriad(&serve(&[])).env("MYRIAD_BOOTSTRAP_KEY", "hunter2").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("sk-myriad-"), "{said}");
    assert!(!said.contains("hunter2"), "the key was printed: {said}");
}

#[test]
fn a_first_start_that_fails_late_does_not_lose_the_key() {
    let home = Home::new();
    let said = home.refused(&serve(&["--adapters", "/no/such/folder"]));
    assert!(said.contains("/no/such/folder"), "{said}");
    let _server = home.serve(&[]);
    assert!(!home.printed(&["chat", "-m", "hello"]).trim().is_empty());
}
