//! One definition of each setting: the document, the file and the flags agree.

use super::server::Home;

#[test]
fn the_reference_of_settings_is_the_one_in_the_repository() {
    let printed = Home::new().printed(&["configuration"]);
    let committed = include_str!("../../docs/configuration.md");
    assert!(
        printed == committed,
        "docs/configuration.md is out of date: cargo run --release -- configuration > docs/configuration.md"
    );
}

#[test]
fn every_setting_is_explained_by_help() {
    let help = Home::new().printed(&["serve", "--help"]);
    for word in ["--listen", "MYRIAD_LISTEN", "--ops-listen", "--data", "--model", "--adapters", "--dtype", "bf16"] {
        assert!(help.contains(word), "{word} is not in --help:\n{help}");
    }
}

#[test]
fn a_configuration_file_with_a_wrong_key_says_which_was_meant() {
    let home = Home::new();
    let file = home.path("myriad.toml");
    std::fs::write(&file, "lisen = '127.0.0.1:0'\n").unwrap();
    let said = home.refused(&["serve", "--config", file.to_str().unwrap()]);
    assert!(said.contains("\"lisen\"") && said.contains("did you mean \"listen\""), "{said}");
}

#[test]
fn a_value_from_the_file_is_checked_like_a_flag_and_a_flag_wins_over_it() {
    let home = Home::new();
    std::fs::create_dir_all(home.path(".config/myriad")).unwrap();
    std::fs::write(home.path(".config/myriad/config.toml"), "dtype = 'f64'\n").unwrap();
    let said = home.refused(&["serve"]);
    assert!(said.contains("f64") && said.contains("bf16"), "{said}");

    std::fs::write(home.path(".config/myriad/config.toml"), "model = ['nowhere']\nthreads = 1\n").unwrap();
    let said = home.refused(&["serve", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"]);
    assert!(said.contains("\"nowhere\""), "{said}");
    let said =
        home.refused(&["serve", "--model", "elsewhere", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"]);
    assert!(said.contains("\"elsewhere\"") && !said.contains("nowhere\""), "{said}");
}

#[test]
fn commands_that_open_the_database_find_it_in_the_file() {
    let home = Home::new();
    let (usual, other) = (home.path(".config/myriad/config.toml"), home.path("other.toml"));
    std::fs::create_dir_all(usual.parent().unwrap()).unwrap();
    let (data, database) = (home.path("srv"), format!("sqlite:{}", home.path("there.sqlite").display()));
    std::fs::write(&usual, format!("data = {data:?}\nthreads = 1\naccount = 'acme'\n")).unwrap();
    std::fs::write(&other, format!("database = '{database}'\n")).unwrap();
    for command in [&["migrate"][..], &["accounts", "recover"]] {
        let refused = |more: &[&str]| home.refused(&[command, more].concat());
        assert!(refused(&[]).contains("srv/myriad.sqlite"), "{command:?}");
        assert!(refused(&["--data", "elsewhere"]).contains("elsewhere/myriad.sqlite"), "{command:?}");
        assert!(refused(&["--config", other.to_str().unwrap()]).contains("there.sqlite"), "{command:?}");
        assert!(refused(&["--config", "none.toml"]).contains("none.toml"), "{command:?}");
    }
    std::fs::write(&other, "databas = 'sqlite:x'\n").unwrap();
    assert!(home.refused(&["migrate", "--config", other.to_str().unwrap()]).contains("did you mean \"database\""));
}
