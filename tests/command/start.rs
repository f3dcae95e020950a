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
