//! Deleting: what goes, what stays, and which number comes next.

use adapter_store::{AdapterStore, Selector, StoreError};
use platform::testing::{change, noted};

use crate::build::*;

async fn default_of(store: &AdapterStore, of: &str) -> Option<u32> {
    let found = store.resolve(&account("local"), &name(of), &Selector::Default).await.unwrap();
    found.map(|version| version.version)
}

#[tokio::test]
async fn deleting_takes_the_name_and_exactly_the_blobs_that_nobody_else_has() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let digest = push(&store, "one", written_by_peft("plain")).await.digest;
    push(&store, "two", written_by_peft("plain")).await;
    assert!(store.delete(&account("local"), &name("one"), &change()).await.unwrap().is_empty());
    let again = open(folder.path()).await;
    assert!(again.image(digest).await.is_ok(), "another adapter's files were taken");
    assert_eq!(again.delete(&account("local"), &name("two"), &change()).await.unwrap(), [digest]);
    assert_eq!(blobs(folder.path()), 0, "files that nobody has stayed");
    assert!(matches!(again.image(digest).await, Err(StoreError::Gone(_))));
    assert!(matches!(again.delete(&account("local"), &name("two"), &change()).await, Err(StoreError::Missing { .. })));
}

#[tokio::test]
async fn what_is_stored_is_summed_by_adapter_and_as_old_as_its_versions() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let sizes = async |since_ms: i64| {
        let stored = store.stored_since(since_ms).await.unwrap();
        stored.into_iter().map(|one| (one.name.to_string(), one.base, one.bytes)).collect::<Vec<_>>()
    };
    assert_eq!(sizes(i64::MAX).await, []);
    let first = push(&store, "x", Built::good(1).files()).await;
    let (one, base) = (first.report.bytes as u64, "llama".to_owned());
    assert!(one > 0);
    // Another millisecond.
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    let two = one + push(&store, "x", Built::good(2).files()).await.report.bytes as u64;
    push(&store, "y", Built::good(1).files()).await;
    assert_eq!(sizes(i64::MAX).await, [("x".into(), base.clone(), two), ("y".into(), base.clone(), one)]);
    assert_eq!(sizes(first.created_ms).await, [("x".into(), base.clone(), one)]);
    assert_eq!(sizes(first.created_ms - 1).await, []);
    store.delete_version(&account("local"), &name("x"), 1, &change()).await.unwrap();
    store.delete(&account("local"), &name("y"), &change()).await.unwrap();
    assert_eq!(sizes(i64::MAX).await, [("x".into(), base, two - one)]);
}

#[tokio::test]
async fn a_number_is_never_given_twice() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let (local, x) = (account("local"), name("x"));
    for version in 1..=2 {
        assert_eq!(push(&store, "x", Built::good(version).files()).await.version, version);
    }
    store.delete_version(&local, &x, 2, &change()).await.unwrap();
    assert_eq!(push(&store, "x", Built::good(2).files()).await.version, 3);
    store.delete(&local, &x, &change()).await.unwrap();
    assert!(store.list(&local, "", 10).await.unwrap().is_empty());
    assert!(matches!(store.versions(&local, &x).await, Err(StoreError::Missing { .. })));
    assert!(store.is_deleted(&local, &x).await.unwrap() && !store.is_deleted(&local, &name("y")).await.unwrap());
    assert_eq!(push(&store, "x", Built::good(1).files()).await.version, 4);
    assert!(!store.is_deleted(&local, &x).await.unwrap(), "a name that was given again is still deleted");
    assert_eq!(store.list(&local, "", 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_version_that_an_alias_needs_stays_and_default_moves_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let (local, x) = (account("local"), name("x"));
    assert_eq!(push(&store, "x", Built::good(1).files()).await.version, 1);
    assert!(matches!(store.delete_version(&local, &x, 1, &change()).await, Err(StoreError::OnlyVersion { .. })));
    push(&store, "x", Built::good(2).files()).await;
    store.set_alias(&local, &x, "prod", 2, &change()).await.unwrap();
    let error = store.delete_version(&local, &x, 2, &change()).await.unwrap_err();
    assert_eq!(error.to_string(), "version 2 is what prod answers with; point that elsewhere first");
    store.remove_alias(&local, &x, "prod", &change()).await.unwrap();
    assert!(matches!(store.remove_alias(&local, &x, "prod", &change()).await, Err(StoreError::MissingAlias { .. })));
    store.delete_version(&local, &x, 2, &change()).await.unwrap();
    assert_eq!(default_of(&store, "x").await, Some(1), "default does not follow the newest that is left");
    assert!(matches!(store.delete_version(&local, &x, 2, &change()).await, Err(StoreError::MissingVersion { .. })));

    push(&store, "x", Built::good(3).files()).await;
    store.set_alias(&local, &x, "default", 1, &change()).await.unwrap();
    assert!(
        matches!(store.delete_version(&local, &x, 1, &change()).await, Err(StoreError::InUse { .. })),
        "a pin was ignored"
    );
    store.remove_alias(&local, &x, "default", &change()).await.unwrap();
    assert_eq!(default_of(&store, "x").await, Some(3), "an unpinned default does not follow the newest");
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_and_deletions_of_the_same_files_do_not_take_each_others_blobs() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let checked = store.check(upload("kept", Built::good(1).files())).unwrap();
    for round in 0..10 {
        let (ours, other) = (format!("kept{round}"), format!("gone{round}"));
        push(&store, &other, Built::good(1).files()).await;
        let mut again = checked.clone();
        again.name = name(&ours);
        let (local, other) = (account("local"), name(&other));
        let deletion = change();
        let (published, deleted) =
            tokio::join!(store.publish(&again, None, None, Box::new(noted)), store.delete(&local, &other, &deletion));
        let (published, _) = (published.unwrap(), deleted.unwrap());
        assert_eq!(store.files(&published).await.unwrap().len(), 2);
        assert!(open(folder.path()).await.image(published.digest).await.is_ok());
        store.delete(&local, &name(&ours), &change()).await.unwrap();
    }
    assert_eq!(blobs(folder.path()), 0);
}
