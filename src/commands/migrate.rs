//! `myriad migrate`: a database brought up to date, or all that it holds moved into another one.

use billing::Books;
use indicatif::{ProgressBar, ProgressStyle};
use platform::copy::{self, Table as Rows};
use platform::{Db, DbError, DbTransaction, Migrated};

use super::amount;
use super::table::Table;
use crate::cli::{Database, Migrate};
use crate::database::{self, DatabaseError};

pub async fn run(migrate: &Migrate) -> Result<(), DatabaseError> {
    // What it waits for; an index that takes long is no slow statement that sqlx need tell of.
    tracing_subscriber::fmt().with_env_filter("warn,sqlx=error").with_writer(std::io::stderr).init();
    let which = Database { data: migrate.data.clone(), database: migrate.from.clone(), config: None };
    let url = database::url(&which)?;
    let lock = database::lock(&url)?;
    let from = Db::open_existing(&url).await?;
    print!("{}", shown(&from.migrate().await?));
    if let Some(to) = &migrate.to {
        // The lock says more than rows of servers that were killed.
        if lock.is_none() && billing::servers_live(&from).await? {
            return Err(DatabaseError::InUse);
        }
        let to = Db::open(to).await?;
        print!("{}", move_all(&from, &to).await?);
        to.close().await;
    }
    from.close().await;
    Ok(())
}

fn shown(done: &Migrated) -> String {
    if *done == Migrated::default() {
        return "The database is up to date.\n".into();
    }
    let ran = done.migrations.iter().map(|name| format!("ran {name}\n"));
    ran.chain(done.indexes.iter().map(|name| format!("built index {name}\n"))).collect()
}

/// Copies and compares in one transaction: the other database has everything, or nothing.
async fn move_all(from: &Db, to: &Db) -> Result<String, DatabaseError> {
    let tables = copy::tables().await?;
    let (mut reading, mut writing) =
        (from.snapshot().await.map_err(DbError::from)?, to.begin().await.map_err(DbError::from)?);
    copy::be_patient(from, &mut reading).await?;
    copy::be_patient(to, &mut writing).await?;
    for table in &tables {
        let rows = table.rows(&mut writing).await?;
        if rows > table.seeded {
            return Err(DatabaseError::NotEmpty { table: table.name.clone(), rows });
        }
    }
    for table in &tables {
        let rows = table.rows(&mut reading).await?;
        let bar = progress_bar(&table.name, u64::try_from(rows).unwrap_or(0));
        table.copy(&mut reading, &mut writing, |rows| bar.inc(rows as u64)).await?;
        bar.finish();
    }
    let compared = compare(&tables, &mut reading, &mut writing).await?;
    billing::nobody_lives(&mut writing).await?;
    writing.commit().await.map_err(DbError::from)?;
    Ok(compared
        + "All is equal and committed. Start the server with the new --database and the same --data or --blobs.\n")
}

fn progress_bar(name: &str, rows: u64) -> ProgressBar {
    let bar = ProgressBar::new(rows).with_message(name.to_owned());
    match ProgressStyle::with_template("  {msg:24} [{bar:32}] {pos}/{len} rows, {elapsed}") {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

/// Rows of each table, and every account's money.
async fn compare(
    tables: &[Rows],
    left: &mut DbTransaction,
    right: &mut DbTransaction,
) -> Result<String, DatabaseError> {
    let mut shown = Table::new(["what", "from", "to"]);
    for table in tables {
        let (rows, copied) = (table.rows(left).await?, table.rows(right).await?);
        if rows != copied {
            return Err(DatabaseError::Differs(format!("the number of rows in {}", table.name)));
        }
        shown.push([format!("rows of {}", table.name), rows.to_string(), copied.to_string()]);
    }
    let (books, copied) = (Books::read(left).await?, Books::read(right).await?);
    if let Some((account, book, ledger, balance)) = books.damaged() {
        let [ledger, balance] = [ledger, balance].map(amount::shown);
        return Err(DatabaseError::Damaged { account: account.into(), book: book.into(), ledger, balance });
    }
    for (what, same) in [
        ("the ledger's sum of some account and book", books.entries == copied.entries),
        ("the balance of some account", books.balances == copied.balances),
        ("the cost of some account's requests", books.costs == copied.costs),
    ] {
        if !same {
            return Err(DatabaseError::Differs(what.into()));
        }
    }
    let others = copied.totals();
    for (what, total) in books.totals() {
        let other = others.get(&what).copied().unwrap_or_default();
        shown.push([what, amount::shown(total), amount::shown(other)]);
    }
    Ok(shown.text())
}
