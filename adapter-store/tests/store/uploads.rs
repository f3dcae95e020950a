//! What an upload becomes: a version, or a refusal that leaves nothing behind.

use std::path::{Path, PathBuf};

use adapter_store::{AdapterStore, Base, Selector, StoreError, Upload, UploadFile};
use model::{DType, ModelConfig};
use platform::{AccountName, Blobs, Db};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/oracle/fixtures")
}

fn files(folder: &Path) -> Vec<UploadFile> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let file = |path: PathBuf| UploadFile {
        name: path.file_name().unwrap().to_string_lossy().into_owned(),
        bytes: std::fs::read(&path).unwrap().into(),
    };
    entries.filter(|path| path.is_file()).map(file).collect()
}

fn adapter(name: &str) -> Vec<UploadFile> {
    files(&fixtures().join("models/llama/adapters").join(name))
}

fn account() -> AccountName {
    "local".parse().unwrap()
}

fn upload(name: &str, files: Vec<UploadFile>) -> Upload {
    Upload { account: account(), name: name.parse().unwrap(), base: None, files }
}

async fn open(folder: &Path) -> AdapterStore {
    let db = Db::open(&format!("sqlite:{}", folder.join("db").display())).await.unwrap();
    sqlx::query("INSERT INTO accounts (name, created_ms) VALUES ('local', 0) ON CONFLICT DO NOTHING")
        .execute(db.pool())
        .await
        .unwrap();
    let blobs = Blobs::open(&format!("file:{}", folder.join("blobs").display())).await.unwrap();
    let shape = ModelConfig::load(&fixtures().join("models/llama")).unwrap().shape;
    AdapterStore::new(db, blobs, vec![Base { id: "llama".into(), shape, dtype: DType::Bf16 }], 1 << 30)
}

async fn push(store: &AdapterStore, name: &str, from: &str) -> u32 {
    let checked = store.check(upload(name, adapter(from))).unwrap();
    store.publish(&checked, None, None).await.unwrap().version
}

fn blobs(folder: &Path) -> usize {
    fn count(folder: &Path) -> usize {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.map(|path| if path.is_dir() { count(&path) } else { 1 }).sum()
    }
    count(&folder.join("blobs"))
}

#[tokio::test]
async fn what_would_be_answered_wrongly_is_refused_by_name_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let named = [
        ("bias", "bias"),
        ("dora", "DoRA"),
        ("embedding", "embedding"),
        ("fan-in-fan-out", "fan_in_fan_out"),
        ("ia3", "IA3"),
        ("lm-head", "lm_head"),
        ("lora-bias", "lora_B"),
        ("modules-to-save", "modules_to_save"),
        ("pickle", "pickle"),
        ("pissa", "pissa"),
        ("trainable-tokens", "trainable_token_indices"),
    ];
    for (kind, name) in named {
        let said = store.check(upload("x", files(&fixtures().join("refused").join(kind)))).unwrap_err().to_string();
        assert!(said.contains(name) && said.ends_with("Nothing was stored."), "{kind}: {said}");
    }
    assert_eq!(blobs(folder.path()), 0);
    assert!(store.list(&account(), "", 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn random_damage_is_refused_or_harmless_and_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let whole = adapter("attention");
    let mut state = 42u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below.max(1)
    };
    for _ in 0..400 {
        let mut damaged = whole.clone();
        let file = random(damaged.len());
        let mut bytes = damaged[file].bytes.to_vec();
        // Damage in the header and the configuration tells more than damage in the weights.
        let reach = bytes.len().min(2000);
        for _ in 0..1 + random(4) {
            let at = random(reach);
            bytes[at] = random(256) as u8;
        }
        if random(4) == 0 {
            bytes.truncate(random(bytes.len()));
        }
        damaged[file].bytes = bytes.into();
        if let Err(error) = store.check(upload("x", damaged)) {
            assert!(matches!(error, StoreError::Refused(_) | StoreError::TooLarge(_)), "{error}");
        }
    }
}

#[tokio::test]
async fn versions_aliases_and_restart() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let name = "sql".parse().unwrap();
    assert_eq!([push(&store, "sql", "plain").await, push(&store, "sql", "attention").await], [1, 2]);
    assert_eq!(push(&store, "sql", "plain").await, 1, "the same bytes are another version");
    let default = async |store: &AdapterStore| {
        store.resolve(&account(), &"sql".parse().unwrap(), &Selector::Default).await.unwrap().unwrap().version
    };
    store.set_alias(&account(), &name, "default", 1).await.unwrap();
    assert_eq!(push(&store, "sql", "rslora").await, 3);
    assert_eq!(default(&store).await, 1, "a pinned default moved");
    store.set_alias(&account(), &name, "prod", 3).await.unwrap();
    assert!(store.set_alias(&account(), &name, "3rd", 3).await.is_err());
    assert!(matches!(store.set_alias(&account(), &name, "x", 9).await, Err(StoreError::MissingVersion { .. })));
    assert!(matches!(store.delete_version(&account(), &name, 3).await, Err(StoreError::InUse { .. })));

    let again = open(folder.path()).await;
    assert_eq!(default(&again).await, 1);
    let prod = again.resolve(&account(), &name, &Selector::Alias("prod".into())).await.unwrap().unwrap();
    assert_eq!(prod.version, 3);
    let image = again.image(prod.digest).await.unwrap();
    assert_eq!(image.digest(), prod.digest);
}

#[tokio::test]
async fn the_files_come_back_as_they_were_and_a_lost_or_damaged_image_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let checked = store.check(upload("sql", adapter("patterns"))).unwrap();
    store.publish(&checked, None, None).await.unwrap();
    let mut sent = adapter("patterns");
    sent.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(store.files(checked.digest).await.unwrap(), sent);
    for entry in std::fs::read_dir(folder.path().join("blobs/images/v1")).unwrap() {
        std::fs::write(entry.unwrap().path(), b"MYRIADLA damaged").unwrap();
    }
    let again = open(folder.path()).await;
    assert_eq!(*again.image(checked.digest).await.unwrap(), *checked.image);
}

#[tokio::test(flavor = "multi_thread")]
async fn racing_publishes_get_different_versions() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let (a, b, c) =
        tokio::join!(push(&store, "sql", "plain"), push(&store, "sql", "attention"), push(&store, "sql", "rslora"));
    let mut versions = [a, b, c];
    versions.sort_unstable();
    assert_eq!(versions, [1, 2, 3]);
}

#[tokio::test]
async fn deleting_takes_the_name_and_the_files_that_nobody_else_has() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    push(&store, "one", "plain").await;
    push(&store, "two", "plain").await;
    let digest = store.versions(&account(), &"two".parse().unwrap()).await.unwrap()[0].digest;
    assert!(store.delete(&account(), &"one".parse().unwrap()).await.unwrap().is_empty());
    assert!(store.image(digest).await.is_ok(), "another adapter's files were taken");
    assert_eq!(store.delete(&account(), &"two".parse().unwrap()).await.unwrap(), [digest]);
    assert!(store.image(digest).await.is_err());
    assert!(matches!(store.delete(&account(), &"two".parse().unwrap()).await, Err(StoreError::Missing { .. })));
}
