//! The `myriad` binary: reads the command line and does what it says.

mod cli;
mod client;
mod commands;
mod config;
mod credentials;
mod database;
mod serve;

use std::process::ExitCode;

use cli::Command;

fn main() -> ExitCode {
    let cli = match cli::parse(std::env::args_os().collect()) {
        Ok(cli) => cli,
        Err(error) => return fail(&error),
    };
    // One provider of cryptography for all connections; a second call would only say that it is there.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    match runtime.block_on(run(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&*error),
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("myriad: {error}");
    ExitCode::FAILURE
}

async fn run(command: Command) -> Result<(), Box<dyn std::error::Error>> {
    match command {
        Command::Serve(config) => serve::run(*config).await?,
        Command::Chat(chat) => commands::chat::run(&chat).await?,
        Command::Push(push) => commands::push::run(&push).await?,
        Command::Models(server) => commands::models::run(&server).await?,
        Command::Promote(promote) => commands::promote::run(&promote).await?,
        Command::Prices(prices) => commands::prices::run(&prices).await?,
        Command::Usage(usage) => commands::usage::run(&usage).await?,
        Command::Statements(statements) => commands::statements::run(&statements).await?,
        Command::Limits(limits) => commands::limits::run(&limits).await?,
        Command::Webhooks(webhooks) => commands::webhooks::run(&webhooks).await?,
        Command::Keys(keys) => commands::keys::run(&keys).await?,
        Command::Members(members) => commands::members::run(&members).await?,
        Command::Ledger(ledger) => commands::ledger::run(&ledger).await?,
        Command::Audit(audit) => commands::audit::run(&audit).await?,
        Command::Exports(exports) => commands::exports::run(&exports).await?,
        Command::Accounts(accounts) => commands::accounts::run(&accounts).await?,
        Command::Migrate(migrate) => commands::migrate::run(&migrate).await?,
        Command::Bench(bench) => commands::bench::run(&bench).await?,
        Command::Configuration => print!("{}", config::reference(&cli::serve_command())),
    }
    Ok(())
}
