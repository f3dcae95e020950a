//! What an upload becomes: a version under its names, for good.

use std::path::Path;

use adapter_store::{AdapterStore, Selector, StoreError, Upload, UploadFile};
use platform::testing::{change, noted};

use crate::build::*;

async fn push_kind(store: &AdapterStore, to: &str, kind: &str) -> u32 {
    push(store, to, written_by_peft(kind)).await.version
}

async fn default_of(store: &AdapterStore, of: &str) -> u32 {
    store.resolve(&account("local"), &name(of), &Selector::Default).await.unwrap().unwrap().version
}

fn sorted(mut files: Vec<UploadFile>) -> Vec<UploadFile> {
    files.sort_by(|a, b| a.name.cmp(&b.name));
    files
}

#[tokio::test]
async fn versions_aliases_and_restart() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let (local, sql) = (account("local"), name("sql"));
    assert_eq!([push_kind(&store, "sql", "plain").await, push_kind(&store, "sql", "attention").await], [1, 2]);
    assert_eq!(push_kind(&store, "sql", "plain").await, 1, "the same bytes are another version");
    assert_eq!(default_of(&store, "sql").await, 2, "pushing an old version again took the name from the newest");
    store.set_alias(&local, &sql, "default", 1, &change()).await.unwrap();
    assert_eq!(push_kind(&store, "sql", "rslora").await, 3);
    assert_eq!(default_of(&store, "sql").await, 1, "a pinned default moved");
    let checked = store.check(upload("sql", written_by_peft("attention"))).unwrap();
    assert_eq!(store.publish(&checked, None, Some("prod"), Box::new(noted)).await.unwrap().version, 2);
    store.set_alias(&local, &sql, "prod", 3, &change()).await.unwrap();
    assert!(store.set_alias(&local, &sql, "3rd", 3, &change()).await.is_err());
    assert!(matches!(store.set_alias(&local, &sql, "x", 9, &change()).await, Err(StoreError::MissingVersion { .. })));

    let again = open(folder.path()).await;
    assert_eq!(default_of(&again, "sql").await, 1);
    let prod = again.resolve(&local, &sql, &Selector::Alias("prod".into())).await.unwrap().unwrap();
    assert_eq!(prod.version, 3);
    assert_eq!(again.image(prod.digest).await.unwrap().digest(), prod.digest);
    let shown: Vec<_> = again.aliases(&local, &sql).await.unwrap().into_iter().map(|a| (a.alias, a.version)).collect();
    assert_eq!(shown, [("default".into(), 1), ("prod".into(), 3)]);
}

#[tokio::test]
async fn lists_are_paged_by_name_and_each_account_has_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    for to in ["c", "a", "b"] {
        push(&store, to, Built::good(1).files()).await;
    }
    let names = async |after: &str| {
        let page = store.list(&account("local"), after, 2).await.unwrap();
        page.into_iter().map(|version| version.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!([names("").await, names("b").await], [vec!["a".to_owned(), "b".into()], vec!["c".into()]]);
    assert!(store.list(&account("other"), "", 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn equal_weights_of_two_accounts_keep_each_their_own_files() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let (mut ours, mut theirs) = (Built::good(1), Built::good(1));
    ours.others.push(file("README.md", "our secret"));
    theirs.others.push(file("NOTES.md", "theirs"));
    let first = push(&store, "x", ours.files()).await;
    let checked = store.check(Upload { account: account("other"), ..upload("x", theirs.files()) }).unwrap();
    let second = store.publish(&checked, None, None, Box::new(noted)).await.unwrap();
    assert_eq!(first.digest, second.digest);
    assert_eq!(store.files(&first).await.unwrap(), sorted(ours.files()));
    assert_eq!(store.files(&second).await.unwrap(), sorted(theirs.files()));
}

#[tokio::test]
async fn files_that_come_with_known_weights_are_not_kept_beside_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let mut built = Built::good(1);
    let first = push(&store, "x", built.files()).await;
    let before = blobs(folder.path());
    built.others.push(file("README.md", "new words"));
    assert_eq!(push(&store, "x", built.files()).await, first);
    assert_eq!(blobs(folder.path()), before);
}

#[tokio::test]
async fn an_upload_for_another_base_under_the_same_name_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_with(folder.path(), vec![base("llama"), base("alpaca")]).await;
    push(&store, "x", Built::good(1).files()).await;
    let before = blobs(folder.path());
    let mut built = Built::good(2);
    built.set("base_model_name_or_path", "alpaca".into());
    let checked = built.check(&store).unwrap();
    let error = store.publish(&checked, None, None, Box::new(noted)).await.unwrap_err();
    assert!(matches!(error, StoreError::OtherBase { .. }), "{error}");
    assert_eq!(blobs(folder.path()), before, "nothing was stored, it said");
}

fn image_file(folder: &Path) -> std::path::PathBuf {
    let folder = folder.join(format!("blobs/images/v{}", model::image::IMAGE_VERSION));
    let mut images = std::fs::read_dir(folder).unwrap();
    images.next().unwrap().unwrap().path()
}

#[tokio::test]
async fn a_lost_or_damaged_image_is_made_again_from_the_files_and_put_right() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let checked = store.check(upload("sql", written_by_peft("patterns"))).unwrap();
    let version = store.publish(&checked, None, None, Box::new(noted)).await.unwrap();
    assert_eq!(store.files(&version).await.unwrap(), sorted(written_by_peft("patterns")));
    let path = image_file(folder.path());
    let whole = std::fs::read(&path).unwrap();
    // One bit among the numbers: nothing but the answers would tell.
    let mut flipped = whole.clone();
    let at = flipped.len() - 1000;
    flipped[at] ^= 1;
    for damaged in [Some(flipped), Some(b"MYRIADLA cut".to_vec()), Some(Vec::new()), None] {
        match damaged {
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        assert_eq!(*open(folder.path()).await.image(checked.digest).await.unwrap(), *checked.image);
        assert!(std::fs::read(&path).unwrap() == whole, "the image was not put right");
    }
}

#[tokio::test]
async fn files_that_were_changed_on_disk_are_never_served() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let version = push(&store, "x", Built::good(1).files()).await;
    std::fs::remove_file(image_file(folder.path())).unwrap();
    for entry in std::fs::read_dir(folder.path().join("blobs/files")).unwrap() {
        std::fs::write(entry.unwrap().path(), b"changed").unwrap();
    }
    let again = open(folder.path()).await;
    assert!(matches!(again.files(&version).await, Err(StoreError::Unreadable(..))));
    assert!(matches!(again.image(version.digest).await, Err(StoreError::Unreadable(..))));
}

#[tokio::test]
async fn an_image_on_trial_is_there_until_the_trial_ends_whatever_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    let opened = open_with_budget(folder.path(), 1).await;
    let checked = Built::good(1).check(&opened).unwrap();
    let staged = (opened.stage(&checked), opened.stage(&checked));
    for seed in 2..5 {
        push(&opened, "other", Built::good(seed).files()).await;
    }
    drop(staged.0);
    assert!(opened.image(checked.digest).await.is_ok());
    drop(staged.1);
    assert!(matches!(opened.image(checked.digest).await, Err(StoreError::Gone(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn racing_publishes_get_different_versions_and_equal_ones_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let (a, b, c, d) = tokio::join!(
        push_kind(&store, "sql", "plain"),
        push_kind(&store, "sql", "attention"),
        push_kind(&store, "sql", "rslora"),
        push_kind(&store, "sql", "rslora"),
    );
    assert_eq!(c, d);
    let mut versions = [a, b, c];
    versions.sort_unstable();
    assert_eq!(versions, [1, 2, 3]);
    assert_eq!(default_of(&store, "sql").await, 3);
}
