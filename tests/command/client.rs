//! The first five minutes: start, chat, push, with no export and no flag.

use super::server::{Home, adapter};

#[test]
fn a_stranger_starts_chats_pushes_and_sees_the_requests() {
    let home = Home::new();
    let server = home.serve(&[]);
    for part in ["Myriad ready in", "myriad-mini", "toy", "sk-myriad-", "support", "extract", "Next:"] {
        assert!(server.screen.contains(part), "{part:?} is not on the first screen: {}", server.screen);
    }

    // The credentials file is found without being told.
    let answer = home.printed(&["chat", "support", "-m", "hello"]);
    assert!(!answer.trim().is_empty());
    let said = home.refused(&["chat", "suport", "-m", "hello"]);
    assert!(said.contains("model \"suport\" not found") && said.contains("Did you mean \"support\"?"), "{said}");

    let pushed = home.printed(&["push", adapter("support").to_str().unwrap(), "desk"]);
    assert!(pushed.contains("tensors bound") && pushed.contains("live in") && pushed.contains("desk@1"), "{pushed}");
    let models = home.printed(&["models"]);
    assert!(models.contains("desk") && models.contains("myriad-mini"), "{models}");
    assert_eq!(home.printed(&["chat", "desk", "-m", "hello"]), answer, "the same weights answer otherwise");

    // The same bytes again are the same version.
    let again = home.printed(&["push", adapter("support").to_str().unwrap(), "desk"]);
    assert!(again.contains("desk@1"), "{again}");
    let second = home.printed(&["push", adapter("extract").to_str().unwrap(), "desk"]);
    assert!(second.contains("desk@2"), "{second}");
    home.printed(&["promote", "desk@1"]);
    assert_eq!(home.printed(&["chat", "desk", "-m", "hello"]), answer, "promote did not roll back");

    let usage = home.printed(&["usage"]);
    assert!(usage.lines().count() >= 4 && usage.contains("stop"), "{usage}");

    let key = home.printed(&["keys", "create", "laptop"]);
    assert!(key.starts_with("sk-myriad-"), "{key}");
    assert!(home.printed(&["keys", "list"]).contains("laptop"));

    let table = home.printed(&[
        "bench",
        "--requests",
        "6",
        "--concurrency",
        "3",
        "--output-tokens",
        "8",
        "--model",
        "support,extract",
    ]);
    assert!(table.contains("time to first token") && table.contains("output tokens/s"), "{table}");
    assert!(server.stop().success(), "SIGTERM was not a clean end");

    // What was pushed, and the key, survive a restart on another port.
    let server = home.serve(&[]);
    assert_eq!(home.printed(&["chat", "desk", "-m", "hello"]), answer);
    assert!(server.port().parse::<u16>().is_ok());
}

#[test]
fn a_folder_that_is_no_adapter_is_refused_and_nothing_is_stored() {
    let home = Home::new();
    let _server = home.serve(&[]);
    let folder = home.path("broken");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("adapter_config.json"), "{}").unwrap();
    let said = home.refused(&["push", folder.to_str().unwrap(), "broken"]);
    assert!(said.contains("Nothing was stored"), "{said}");
    assert!(!home.printed(&["models"]).contains("broken"));
}

#[test]
fn a_client_without_a_server_says_how_to_start_one() {
    let home = Home::new();
    let said = home.refused(&["chat", "-m", "hello", "--base-url", "http://127.0.0.1:9", "--api-key", "sk-myriad-x"]);
    assert!(said.contains("no server answers at http://127.0.0.1:9") && said.contains("myriad serve"), "{said}");
}
