//! The command line: what was typed, as types. Says nothing of what it does.

use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{self, ConfigError, ServeConfig};

#[derive(Debug, Parser)]
#[command(name = "myriad", version, about = "A serverless platform for LoRA adapters", max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the whole platform in one process (what `myriad` alone does)
    Serve(Box<ServeConfig>),
    /// Talk to a model or an adapter
    Chat(Chat),
    /// Upload adapter folders; each is live at once
    Push(Push),
    /// List what can be named as a model
    Models(Server),
    /// Point an adapter's alias at a version
    Promote(Promote),
    /// Show requests, newest first, with their tokens
    Usage(Usage),
    /// List the months of the account, or show one month's statement
    Statements(Statements),
    /// Show prices, or set one
    Prices(Prices),
    /// Show caps and alerts with what was spent, or set one
    Limits(Limits),
    /// List, add or remove webhooks, which are told when an alert is reached
    Webhooks(Webhooks),
    /// List, make or revoke API keys
    Keys(Keys),
    /// List the account's members, set a member's role, or remove one
    Members(Members),
    /// Show the account's last ledger transactions
    Ledger(Ledger),
    /// Show who changed what: accounts, credit, keys, members, prices, limits
    Audit(Audit),
    /// Show what goes to Stripe, those that it has not accepted first, or try again; for the operator
    Exports(Exports),
    /// Make accounts, credit them and give them keys; for the operator
    Accounts(Accounts),
    /// Bring a database up to date, or move everything into another one
    Migrate(Migrate),
    /// Load a server and print latencies and throughput as a table
    Bench(Bench),
    /// Print the reference of all settings of `serve` (docs/configuration.md)
    #[command(hide = true)]
    Configuration,
}

/// Which server a client command talks to, and with which key.
#[derive(Debug, Clone, Args)]
pub struct Server {
    /// Address of the API [default: the last server started on this machine]
    #[arg(long, env = "MYRIAD_BASE_URL", value_name = "URL", global = true)]
    pub base_url: Option<String>,

    /// API key [default: the one saved for that server]
    #[arg(long, env = "MYRIAD_API_KEY", value_name = "KEY", hide_env_values = true, global = true)]
    pub api_key: Option<String>,
}

/// Whose a command's affair is, where the operator asks for another account.
#[derive(Debug, Clone, Args)]
pub struct Whose {
    /// Another account, for the operator [default: the key's own]
    #[arg(long, value_name = "NAME", global = true)]
    pub account: Option<String>,

    /// The operators' listener, where --account is
    #[arg(long, env = "MYRIAD_OPS_URL", value_name = "URL", default_value = "http://127.0.0.1:9090", global = true)]
    pub ops_url: String,
}

#[derive(Debug, Args)]
pub struct Chat {
    /// Base model or adapter: `support`, `account/name`, `name@3`, `name@prod` [default: the first base model]
    pub model: Option<String>,

    /// Send one message, print the answer and leave
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,

    /// System prompt
    #[arg(short, long, value_name = "TEXT")]
    pub system: Option<String>,

    #[arg(short, long, value_name = "T")]
    pub temperature: Option<f32>,

    #[arg(long, value_name = "N")]
    pub max_tokens: Option<u32>,

    #[arg(long, value_name = "N")]
    pub seed: Option<i64>,

    #[command(flatten)]
    pub server: Server,
}

#[derive(Debug, Args)]
pub struct Push {
    /// Adapter folders, then optionally the name: DIR... [NAME | ACCOUNT/NAME]. A last word that is also a folder must say
    /// which it is: `./keep` is the folder, `--name keep` the name
    #[arg(required = true, value_name = "DIR... [NAME]")]
    pub what: Vec<String>,

    /// Name of the adapter, for one folder: NAME or ACCOUNT/NAME [default: the folder's name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Also point this alias at the new version
    #[arg(long, value_name = "ALIAS")]
    pub alias: Option<String>,

    /// Base model, where more than one is loaded and the adapter does not say
    #[arg(long, value_name = "MODEL")]
    pub base: Option<String>,

    #[command(flatten)]
    pub server: Server,
}

#[derive(Debug, Args)]
pub struct Promote {
    /// Adapter and version: `name@3` or `account/name@3`
    pub version: String,

    /// The alias to move; `default` is what a bare name answers with, and stays where it is put
    #[arg(default_value = "default")]
    pub alias: String,

    #[command(flatten)]
    pub server: Server,
}

#[derive(Debug, Args)]
pub struct Usage {
    /// How many requests to show
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub limit: u32,

    /// Show sums in place of requests, grouped by any of key, model, adapter, day, tag
    #[arg(long, value_name = "GROUP", value_delimiter = ',')]
    pub by: Vec<String>,

    /// First day of the sums, such as 2026-11-01 [default: 30 days back]
    #[arg(long, value_name = "DAY", requires = "by")]
    pub from: Option<String>,

    /// Last day of the sums [default: today, UTC]
    #[arg(long, value_name = "DAY", requires = "by")]
    pub to: Option<String>,

    #[command(flatten)]
    pub whose: Whose,

    #[command(flatten)]
    pub server: Server,
}

#[derive(Debug, Args)]
pub struct Statements {
    /// Month to show, such as 2026-11, in UTC [default: list the months]
    pub month: Option<String>,

    /// Print it as CSV
    #[arg(long, requires = "month")]
    pub csv: bool,

    #[command(flatten)]
    pub whose: Whose,

    #[command(flatten)]
    pub server: Server,
}

#[derive(Debug, Args)]
pub struct Prices {
    #[command(subcommand)]
    pub action: Option<PricesAction>,

    #[command(flatten)]
    pub server: Server,
}

#[derive(Debug, Subcommand)]
pub enum PricesAction {
    /// Prices that concern this account (the default); for the operator, all of them
    List(ListPrices),
    /// Set a price from now on, in dollars per million tokens, storage per GB-month; for the operator
    Set(SetPrice),
    /// Show what finished requests would have cost at another version, and with --apply post the difference; for the operator
    Rerate(Rerate),
}

#[derive(Debug, Args)]
pub struct ListPrices {
    /// All prices, those of other accounts and their adapters too; for the operator
    #[arg(long)]
    pub all: bool,

    /// The operators' listener
    #[arg(long, env = "MYRIAD_OPS_URL", value_name = "URL", default_value = "http://127.0.0.1:9090")]
    pub ops_url: String,
}

#[derive(Debug, Args)]
pub struct Rerate {
    /// Requests that started from here on: a day, or a time such as 2026-11-26T12:00:00Z (UTC)
    #[arg(long, value_name = "TIME", value_parser = crate::commands::unix_seconds)]
    pub from: i64,

    /// And before this
    #[arg(long, value_name = "TIME", value_parser = crate::commands::unix_seconds)]
    pub to: i64,

    /// Price version that should have held
    #[arg(long, value_name = "VERSION")]
    pub version: i64,

    /// Only requests that have this version by now
    #[arg(long, value_name = "VERSION")]
    pub instead_of: Option<i64>,

    /// Only this account's
    #[arg(long, value_name = "NAME")]
    pub account: Option<String>,

    /// Only those of a base model, or of an adapter as account/name
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,

    /// Post the differences as corrections; without it nothing changes
    #[arg(long)]
    pub apply: bool,

    /// The operators' listener
    #[arg(long, env = "MYRIAD_OPS_URL", value_name = "URL", default_value = "http://127.0.0.1:9090")]
    pub ops_url: String,
}

#[derive(Debug, Args)]
pub struct SetPrice {
    /// Prompt tokens
    #[arg(long, value_name = "USD", value_parser = crate::commands::amount::parse_cost)]
    pub input: i64,

    /// Prompt tokens that the prefix cache had [default: as other prompt tokens]
    #[arg(long, value_name = "USD", value_parser = crate::commands::amount::parse_cost)]
    pub cached_input: Option<i64>,

    /// Generated tokens
    #[arg(long, value_name = "USD", value_parser = crate::commands::amount::parse_cost)]
    pub output: i64,

    /// Tokens that an adapter is trained on [default: what a wider price says]
    #[arg(long, value_name = "USD", value_parser = crate::commands::amount::parse_cost)]
    pub training: Option<i64>,

    /// Stored adapters, per GB-month (10^9 bytes for 730 hours) [default: what a wider price says]
    #[arg(long, value_name = "USD", value_parser = crate::commands::amount::parse_cost)]
    pub storage: Option<i64>,

    /// Base model, or adapter as account/name [default: all]
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,

    /// Account [default: all]
    #[arg(long, value_name = "NAME")]
    pub account: Option<String>,

    /// When it begins, not in the past: the start of a day, or a time such as 2026-11-26T12:00:00Z (UTC) [default: now]
    #[arg(long, value_name = "TIME", value_parser = crate::commands::unix_seconds)]
    pub starts_at: Option<i64>,

    /// The operators' listener
    #[arg(long, env = "MYRIAD_OPS_URL", value_name = "URL", default_value = "http://127.0.0.1:9090")]
    pub ops_url: String,
}

#[derive(Debug, Args)]
pub struct Limits {
    #[command(subcommand)]
    pub action: Option<LimitsAction>,

    #[command(flatten)]
    pub whose: Whose,

    #[command(flatten)]
    pub server: Server,
}

#[derive(Debug, Subcommand)]
pub enum LimitsAction {
    /// Limits of the account (the default)
    List,
    /// Set a cap, over which nothing is spent, or an alert, at which webhooks are told
    Set(SetLimit),
    /// Remove a limit by its id
    Remove { id: String },
}

#[derive(Debug, Args)]
pub struct SetLimit {
    /// Dollars in each period
    #[arg(value_parser = crate::commands::amount::parse_cost)]
    pub usd: i64,

    /// Day and month are UTC; total never ends
    #[arg(long, value_name = "PERIOD", value_parser = ["day", "month", "total"], default_value = "month")]
    pub per: String,

    /// An alert in place of a cap
    #[arg(long)]
    pub alert: bool,

    /// Only what this key spends, by its id [default: the whole account]
    #[arg(long, value_name = "ID", conflicts_with = "adapter")]
    pub key: Option<String>,

    /// Only what this adapter costs: account/name
    #[arg(long, value_name = "ADAPTER")]
    pub adapter: Option<String>,
}

#[derive(Debug, Args)]
pub struct Webhooks {
    #[command(subcommand)]
    pub action: Option<WebhooksAction>,

    #[command(flatten)]
    pub server: Server,
}

#[derive(Debug, Subcommand)]
pub enum WebhooksAction {
    /// Webhooks of the account (the default)
    List,
    /// Add a webhook; the secret that signs its messages is shown once
    Add {
        /// An address that begins with https://
        url: String,
    },
    /// Remove a webhook by its id
    Remove { id: String },
    /// What was sent to a webhook, newest first, and what became of it
    Deliveries { id: String },
}

#[derive(Debug, Args)]
pub struct Keys {
    #[command(subcommand)]
    pub action: KeysAction,

    #[command(flatten)]
    pub server: Server,
}

#[derive(Debug, Subcommand)]
pub enum KeysAction {
    /// Keys of the account, without their secret part
    List,
    /// Make a key; it is shown once
    Create(NewKey),
    /// Revoke a key by its id
    Revoke { id: String },
}

#[derive(Debug, Args)]
pub struct NewKey {
    #[arg(default_value = "key")]
    pub name: String,

    /// What it may do, of inference, adapters, fine-tuning, billing and admin; repeatable [default: what the caller's key
    /// and the member's role may]
    #[arg(long, value_name = "SCOPE", value_delimiter = ',')]
    pub scope: Vec<String>,

    /// Days until it opens nothing more [default: with the caller's key, or never]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub expires: Option<u32>,

    /// Member whose key it is: it goes with the member, and can do no more than the member's role [default: whose the caller's key is]
    #[arg(long, value_name = "NAME")]
    pub member: Option<String>,
}

#[derive(Debug, Args)]
pub struct Members {
    #[command(subcommand)]
    pub action: Option<MembersAction>,

    #[command(flatten)]
    pub server: Server,
}

#[derive(Debug, Subcommand)]
pub enum MembersAction {
    /// Members and their roles (the default)
    List,
    /// Add a member, or give it another role: owner, admin, developer or billing
    Set { name: String, role: String },
    /// Remove a member and revoke its keys
    Remove { name: String },
}

#[derive(Debug, Args)]
pub struct Ledger {
    /// How many transactions to show, newest first
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub limit: u32,

    #[command(flatten)]
    pub whose: Whose,

    #[command(flatten)]
    pub server: Server,
}

#[derive(Debug, Args)]
pub struct Audit {
    /// How many changes to show, newest first
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub limit: u32,

    /// Of all accounts; for the operator
    #[arg(long, conflicts_with = "account")]
    pub all: bool,

    #[command(flatten)]
    pub whose: Whose,

    #[command(flatten)]
    pub server: Server,
}

#[derive(Debug, Args)]
pub struct Exports {
    #[command(subcommand)]
    pub action: Option<ExportsAction>,

    /// The operators' listener
    #[arg(long, env = "MYRIAD_OPS_URL", value_name = "URL", default_value = "http://127.0.0.1:9090", global = true)]
    pub ops_url: String,

    #[command(flatten)]
    pub server: Server,
}

#[derive(Debug, Subcommand)]
pub enum ExportsAction {
    /// Events with what became of them (the default)
    List,
    /// Take up again what was given up: all that failed for certain, or these events
    Retry { ids: Vec<String> },
}

#[derive(Debug, Args)]
pub struct Accounts {
    #[command(subcommand)]
    pub action: Option<AccountsAction>,

    /// The operators' listener
    #[arg(long, env = "MYRIAD_OPS_URL", value_name = "URL", default_value = "http://127.0.0.1:9090", global = true)]
    pub ops_url: String,

    #[command(flatten)]
    pub server: Server,
}

#[derive(Debug, Subcommand)]
pub enum AccountsAction {
    /// Accounts with their credit and balance (the default)
    List,
    /// Make an account; its key is shown once
    Create {
        name: String,

        /// It can spend only what it has [default: everything is charged, and it may owe]
        #[arg(long)]
        prepaid: bool,

        /// Dollars that it gets to begin with
        #[arg(long, value_name = "USD", value_parser = crate::commands::amount::parse_credit)]
        grant: Option<i64>,
    },
    /// Change what an account has, in dollars
    Credit(ChangeCredit),
    /// Say whether an account may owe
    Set {
        name: String,

        #[arg(long, value_name = "KIND", value_parser = ["prepaid", "unlimited"])]
        credit: String,
    },
    /// Let an account's keys open nothing, until it is resumed
    Suspend { name: String },
    /// Let them open again what they did
    Resume { name: String },
    /// Make a key for an account that has lost its own; it is shown once
    Key { name: String },
    /// Keys of an account, without their secret part
    Keys { name: String },
    /// Revoke a key of an account
    Revoke { name: String, key: String },
    /// Make a key for the account that runs the server, in its database: for who has lost the last one
    Recover {
        /// Name of the account
        #[arg(long, env = "MYRIAD_ACCOUNT", value_name = "NAME", default_value = "local")]
        account: String,

        #[command(flatten)]
        database: Database,
    },
}

#[derive(Debug, Args)]
pub struct ChangeCredit {
    pub name: String,

    /// Dollars; below 0 only with --kind adjust
    #[arg(value_name = "USD", value_parser = crate::commands::amount::parse, allow_negative_numbers = true)]
    pub amount: i64,

    #[arg(long, value_name = "KIND", value_parser = ["grant", "top_up", "refund", "expire", "adjust"], default_value = "grant")]
    pub kind: String,

    /// Name of this change: given again it changes nothing more
    #[arg(long, value_name = "ID")]
    pub id: Option<String>,

    /// What is said of it on the statement
    #[arg(long, value_name = "TEXT")]
    pub memo: Option<String>,

    /// When what is left of a grant expires: the start of a day, or a time such as 2026-11-26T12:00:00Z (UTC) [default: never]
    #[arg(long, value_name = "TIME", value_parser = crate::commands::unix_seconds)]
    pub expires_at: Option<i64>,
}

/// Which database a command works on, named as `serve` names it.
#[derive(Debug, Clone, Args)]
pub struct Database {
    /// Data directory of the server [default: myriad in the XDG data home]
    #[arg(long, env = "MYRIAD_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,

    /// Database of the server [default: sqlite in the data directory]
    #[arg(long, env = "MYRIAD_DATABASE", value_name = "URL", hide_env_values = true, hide_default_value = true)]
    pub database: Option<String>,

    /// The server's configuration file [default: myriad/config.toml in the XDG configuration home, where there is one]
    #[arg(long, env = "MYRIAD_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Migrate {
    /// Empty database that gets everything: postgres://... or sqlite:PATH [default: only bring the other one up to date]
    #[arg(long, value_name = "URL")]
    pub to: Option<String>,

    /// Database of the server [default: sqlite in the data directory]
    #[arg(
        long,
        visible_alias = "database",
        env = "MYRIAD_DATABASE",
        value_name = "URL",
        hide_env_values = true,
        hide_default_value = true
    )]
    pub from: Option<String>,

    /// Data directory of the server [default: myriad in the XDG data home]
    #[arg(long, env = "MYRIAD_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,

    /// The server's configuration file [default: myriad/config.toml in the XDG configuration home, where there is one]
    #[arg(long, env = "MYRIAD_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Bench {
    /// Models or adapters to spread the requests over [default: the first base model]
    #[arg(long, value_name = "MODEL", value_delimiter = ',')]
    pub model: Vec<String>,

    /// How requests choose among them
    #[arg(long, value_enum, default_value = "uniform")]
    pub popularity: Popularity,

    /// Requests in all
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub requests: u32,

    /// Requests at the same time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub concurrency: u32,

    /// Send so many requests per second, evenly spaced, however long the answers take (at most --concurrency at once); latencies
    /// count from when a request was due [default: the next when one ends]
    #[arg(long, value_name = "RPS")]
    pub rate: Option<f64>,

    /// Prompt length in tokens
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub prompt_tokens: u32,

    /// Answer length in tokens (the end-of-sequence token is ignored)
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub output_tokens: u32,

    /// Seed of prompts and of the choice of models
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// Also write the table as Markdown and the figures as JSON: FILE.md and FILE.json
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,

    #[command(flatten)]
    pub server: Server,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Popularity {
    /// All requests name the first model
    Identical,
    /// Each request names the next model in turn
    Distinct,
    /// Each model is as likely as another
    Uniform,
    /// Model k is named in proportion to 1/k
    Zipf,
}

/// Reads the command line. Without a sub-command it is `serve`; the configuration file gives `serve` its defaults, and where the
/// database is to the commands that open it themselves.
pub fn parse(arguments: Vec<std::ffi::OsString>) -> Result<Cli, ConfigError> {
    let arguments = with_default_command(arguments);
    let mut command = Cli::command();
    if let Some(path) = configured(&arguments) {
        command = with_file_defaults(command, path, config_argument(&arguments).as_deref())?;
    }
    let matches = command.get_matches_from(arguments);
    Ok(Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()))
}

/// The names that lead to the command that is meant, where that reads the configuration file.
fn configured(arguments: &[std::ffi::OsString]) -> Option<&'static [&'static str]> {
    match arguments.get(1)?.to_str()? {
        "serve" => Some(&["serve"]),
        "migrate" => Some(&["migrate"]),
        "accounts" if arguments.iter().any(|argument| argument == "recover") => Some(&["accounts", "recover"]),
        _ => None,
    }
}

fn with_file_defaults(
    command: clap::Command,
    path: &[&'static str],
    file: Option<&std::path::Path>,
) -> Result<clap::Command, ConfigError> {
    let [name, rest @ ..] = path else { return config::with_file_defaults(command, &serve_command(), file) };
    let Some(inner) = command.find_subcommand(name).cloned() else { return Ok(command) };
    let inner = with_file_defaults(inner, rest, file)?;
    Ok(command.mut_subcommand(name, |_| inner))
}

/// `serve`'s part of the command line, for its reference.
pub fn serve_command() -> clap::Command {
    Cli::command().find_subcommand("serve").cloned().unwrap_or_default()
}

fn with_default_command(mut arguments: Vec<std::ffi::OsString>) -> Vec<std::ffi::OsString> {
    let asks_for_serve = match arguments.get(1).map(|first| first.to_string_lossy().into_owned()) {
        None => true,
        Some(first) => first.starts_with('-') && !matches!(first.as_str(), "-h" | "--help" | "-V" | "--version"),
    };
    if asks_for_serve {
        arguments.insert(1.min(arguments.len()), "serve".into());
    }
    arguments
}

/// The configuration file must be known before the other arguments are read, since it holds their defaults.
fn config_argument(arguments: &[std::ffi::OsString]) -> Option<PathBuf> {
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if argument == "--config" {
            return rest.next().map(PathBuf::from);
        }
        if let Some(path) = argument.to_str().and_then(|text| text.strip_prefix("--config=")) {
            return Some(path.into());
        }
    }
    std::env::var_os("MYRIAD_CONFIG").map(PathBuf::from)
}
