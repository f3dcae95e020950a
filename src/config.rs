//! Everything that a server operator can set, in one typed place: flag, environment variable, configuration file.
//!
//! A flag wins over its environment variable, that over the file, that over the default. A key of the file is the flag's
//! long name with `_` for `-`, so there is nothing to keep in step: `--help` and `docs/configuration.md` are made from
//! this struct.

use std::path::{Path, PathBuf};

use clap::builder::OsStr;
use clap::{Arg, ArgAction, Args, Command, ValueEnum};

/// Largest configuration file, in bytes.
const CONFIG_FILE_BYTES: u64 = 1 << 20;

#[derive(Debug, Clone, Args)]
pub struct ServeConfig {
    /// Address of the API and the playground
    #[arg(long, env = "MYRIAD_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:8000")]
    pub listen: String,

    /// Address of health, metrics and operators' endpoints; keep it off the public network
    #[arg(long, env = "MYRIAD_OPS_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:9090")]
    pub ops_listen: String,

    /// Data directory [default: myriad in the XDG data home]
    #[arg(long, env = "MYRIAD_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,

    /// Base model: a folder, or ORG/NAME[@REVISION] on the hub; repeatable [default: the built-in myriad-mini]
    #[arg(long, env = "MYRIAD_MODEL", value_name = "DIR_OR_ID", value_delimiter = ',')]
    pub model: Vec<String>,

    /// Folder whose every sub-folder is an adapter to offer under the first account; repeatable
    #[arg(long, env = "MYRIAD_ADAPTERS", value_name = "DIR", value_delimiter = ',')]
    pub adapters: Vec<PathBuf>,

    /// Database [default: sqlite in the data directory]
    #[arg(long, env = "MYRIAD_DATABASE", value_name = "URL", hide_env_values = true, hide_default_value = true)]
    pub database: Option<String>,

    /// Store of adapters' files [default: a folder in the data directory]
    #[arg(long, env = "MYRIAD_BLOBS", value_name = "URL")]
    pub blobs: Option<String>,

    /// How weights are held; auto takes bf16 where this CPU is fast at it
    #[arg(long, env = "MYRIAD_DTYPE", value_enum, value_name = "TYPE", default_value = "auto")]
    pub dtype: DTypeChoice,

    /// Round the base model's weights further; adapters and the KV cache stay bf16
    #[arg(long, env = "MYRIAD_QUANTIZATION", value_enum, value_name = "KIND", conflicts_with = "dtype")]
    pub quantization: Option<Quantization>,

    /// Instruction set of the kernels; answers are bit-identical within one
    #[arg(long, env = "MYRIAD_CPU", value_enum, value_name = "PATH", default_value = "auto")]
    pub cpu: CpuChoice,

    /// Threads that compute [default: all cores]
    #[arg(long, env = "MYRIAD_THREADS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,

    /// Memory for the KV cache of each base model, in MiB
    #[arg(long, env = "MYRIAD_KV_MEMORY_MIB", value_name = "MIB", default_value = "1024",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub kv_memory_mib: u32,

    /// Disk for the prefix cache of each base model where memory has no room for it, in MiB; 0: none. Nothing of it outlives the process
    #[arg(long, env = "MYRIAD_KV_DISK_MIB", value_name = "MIB", default_value = "0")]
    pub kv_disk_mib: u32,

    /// Memory for adapters that are ready to run, in MiB
    #[arg(long, env = "MYRIAD_ADAPTER_MEMORY_MIB", value_name = "MIB", default_value = "1024",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub adapter_memory_mib: u32,

    /// Different adapters in one step of each base model
    #[arg(long, env = "MYRIAD_ADAPTER_SLOTS", value_name = "N", default_value = "64",
          value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub adapter_slots: u32,

    /// Answers that are generated at the same time, per base model
    #[arg(long, env = "MYRIAD_MAX_RUNNING", value_name = "N", default_value = "64",
          value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub max_running: u32,

    /// Requests that may wait; over it a request gets 503 with Retry-After
    #[arg(long, env = "MYRIAD_QUEUE", value_name = "N", default_value = "1024",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub queue: u32,

    /// How many of these may be of one account; over it a request gets 429 with Retry-After [default: three quarters of the queue]
    #[arg(long, env = "MYRIAD_QUEUE_PER_ACCOUNT", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub queue_per_account: Option<u32>,

    /// Guess what comes next from the text itself while a step has fewer rows than this; 0: never. Answers are the same
    #[arg(long, env = "MYRIAD_SPECULATIVE_ROWS", value_name = "N", default_value = "8",
          value_parser = clap::value_parser!(u32).range(0..=65536))]
    pub speculative_rows: u32,

    /// Tokens that one step computes, prompt chunks and answers together
    #[arg(long, env = "MYRIAD_STEP_TOKENS", value_name = "N", default_value = "256",
          value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub step_tokens: u32,

    /// How long running requests may finish after SIGTERM, in seconds
    #[arg(long, env = "MYRIAD_DRAIN_TIMEOUT_S", value_name = "SECONDS", default_value = "30")]
    pub drain_timeout_s: u64,

    /// Name of the first account
    #[arg(long, env = "MYRIAD_ACCOUNT", value_name = "NAME", default_value = "local")]
    pub account: String,

    /// The first account's API key, instead of a random one; prefer the variable or the file, arguments can be read by others
    #[arg(long, env = "MYRIAD_BOOTSTRAP_KEY", value_name = "KEY", hide_env_values = true)]
    pub bootstrap_key: Option<String>,

    /// File that holds the first account's API key
    #[arg(long, env = "MYRIAD_BOOTSTRAP_KEY_FILE", value_name = "FILE", conflicts_with = "bootstrap_key")]
    pub bootstrap_key_file: Option<PathBuf>,

    /// Let webhooks lead to private addresses and plain HTTP; only where every account is trusted with this network
    #[arg(long, env = "MYRIAD_PRIVATE_WEBHOOKS", action = ArgAction::SetTrue)]
    pub private_webhooks: bool,

    /// Secret key of the account at Stripe to which revenue is exported; prefer the variable, arguments can be read by others
    #[arg(long, env = "MYRIAD_STRIPE_KEY", value_name = "KEY", hide_env_values = true, hide_default_value = true)]
    pub stripe_key: Option<String>,

    /// Event name of the meter at Stripe that sums nano-dollars
    #[arg(long, env = "MYRIAD_STRIPE_METER", value_name = "NAME")]
    pub stripe_meter: Option<String>,

    /// Address of Stripe's API
    #[arg(long, env = "MYRIAD_STRIPE_URL", value_name = "URL", default_value = "https://api.stripe.com")]
    pub stripe_url: String,

    /// How long deliveries to webhooks and Stripe are listed after they arrived
    #[arg(long, env = "MYRIAD_KEEP_DELIVERIES_DAYS", value_name = "DAYS", default_value = "30",
          value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub keep_deliveries_days: u32,

    /// Let pages of any origin call the API (CORS)
    #[arg(long, env = "MYRIAD_CORS", action = ArgAction::SetTrue)]
    pub cors: bool,

    /// What is logged, for instance `info` or `warn,gateway=debug`
    #[arg(long, env = "MYRIAD_LOG", value_name = "FILTER", default_value = "warn")]
    pub log: String,

    /// How it is logged
    #[arg(long, env = "MYRIAD_LOG_FORMAT", value_enum, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,

    /// Write no rows and charge nothing: for the benchmark of what metering costs
    #[arg(long, action = ArgAction::SetTrue, hide = true)]
    pub without_metering: bool,

    /// Configuration file [default: myriad/config.toml in the XDG configuration home, where there is one]
    #[arg(long, env = "MYRIAD_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DTypeChoice {
    Auto,
    F32,
    Bf16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Quantization {
    /// 8 bits, a scale for each output
    Int8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CpuChoice {
    Auto,
    Avx512Bf16,
    Avx512,
    Avx2,
    Portable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("configuration file {path}: {reason}")]
    File { path: PathBuf, reason: String },
    #[error("configuration file {path}: unknown key {key:?}{hint}")]
    UnknownKey { path: PathBuf, key: String, hint: String },
    #[error("configuration file {path}: {key} must be a string, a number, true or false, or a list of strings")]
    Value { path: PathBuf, key: String },
    #[error("neither HOME nor XDG_DATA_HOME is set; say where the data goes with --data DIR")]
    NoHome,
}

/// Makes the values of the configuration file, which has `serve`'s keys, the defaults of a command's flags: all of `serve`'s, or
/// those that another command shares with it.
pub fn with_file_defaults(command: Command, serve: &Command, file: Option<&Path>) -> Result<Command, ConfigError> {
    let path = match file {
        Some(path) => path.to_owned(),
        None => match config_home().map(|home| home.join("myriad/config.toml")) {
            Some(path) if path.exists() => path,
            _ => return Ok(command),
        },
    };
    let failed = |reason: String| ConfigError::File { path: path.clone(), reason };
    let size = std::fs::metadata(&path).map_err(|e| failed(e.to_string()))?.len();
    if size > CONFIG_FILE_BYTES {
        return Err(failed(format!("is over {CONFIG_FILE_BYTES} bytes")));
    }
    let text = std::fs::read_to_string(&path).map_err(|e| failed(e.to_string()))?;
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| failed(e.to_string()))?;
    let mut command = command;
    for (key, value) in table {
        let values = plain_values(value).ok_or_else(|| ConfigError::Value { path: path.clone(), key: key.clone() })?;
        let known = settable(serve).any(|arg| arg.get_id() == key.as_str());
        if !known {
            let hint = nearest(&key, settable(serve).map(|arg| arg.get_id().as_str()));
            return Err(ConfigError::UnknownKey { path, key, hint });
        }
        let shared = settable(&command).find(|arg| is_called(arg, &key)).map(|arg| arg.get_id().clone());
        if let Some(shared) = shared {
            command = command.mut_arg(shared, |arg| arg.default_values(values));
        }
    }
    Ok(command)
}

/// Arguments that the configuration file may hold.
fn settable(command: &Command) -> impl Iterator<Item = &Arg> {
    command
        .get_arguments()
        .filter(|arg| !matches!(arg.get_id().as_str(), "help" | "config" | "bootstrap_key" | "without_metering"))
}

/// `migrate` calls its database `--from`, and `--database` as well.
fn is_called(arg: &Arg, key: &str) -> bool {
    arg.get_id() == key || arg.get_visible_aliases().is_some_and(|aliases| aliases.contains(&key))
}

fn plain_values(value: toml::Value) -> Option<Vec<OsStr>> {
    let plain = |value: toml::Value| -> Option<OsStr> {
        match value {
            toml::Value::String(text) => Some(text.into()),
            toml::Value::Integer(number) => Some(number.to_string().into()),
            toml::Value::Boolean(on) => Some(on.to_string().into()),
            _ => None,
        }
    };
    match value {
        toml::Value::Array(items) => items.into_iter().map(plain).collect(),
        single => plain(single).map(|value| vec![value]),
    }
}

fn nearest<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> String {
    gateway::nearest_names(key, known).first().map(|near| format!("; did you mean {near:?}?")).unwrap_or_default()
}

/// A reference of all settings, as Markdown: the text of `docs/configuration.md`.
pub fn reference(serve: &Command) -> String {
    let mut text = String::from(
        "# Configuration\n\n\
         Made by `myriad configuration`; a test keeps it true. Each setting of `myriad serve` can be given as a flag, as an\n\
         environment variable, or as a key of the configuration file (TOML); the first of these that is there wins.\n\n\
         | flag | environment variable | file | default | what it does |\n|---|---|---|---|---|\n",
    );
    for arg in serve.get_arguments().filter(|arg| arg.get_id() != "help" && !arg.is_hide_set()) {
        let Some(long) = arg.get_long() else { continue };
        let value = arg.get_value_names().and_then(|names| names.first()).filter(|_| arg.get_action().takes_values());
        let flag = value.map_or_else(|| format!("--{long}"), |value| format!("--{long} {value}"));
        let environment = arg.get_env().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let file = settable(serve).any(|known| known.get_id() == arg.get_id());
        let key = if file { format!("`{}`", arg.get_id()) } else { "-".into() };
        let default = arg.get_default_values().iter().map(|v| v.to_string_lossy()).collect::<Vec<_>>().join(", ");
        let default = if default.is_empty() { "-".into() } else { format!("`{default}`") };
        let choices: Vec<String> = arg
            .get_possible_values()
            .iter()
            .filter(|_| arg.get_action().takes_values())
            .map(|value| format!("`{}`", value.get_name()))
            .collect();
        let mut help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        if !choices.is_empty() {
            help = format!("{help} ({})", choices.join(", "));
        }
        let help = help.replace('|', "\\|");
        text.push_str(&format!("| `{flag}` | `{environment}` | {key} | {default} | {help} |\n"));
    }
    text.push_str(
        "\nThe file is `myriad/config.toml` in the XDG configuration home (usually `~/.config`), or the one that `--config` names:\n\n\
         ```toml\n\
         listen = \"0.0.0.0:8000\"\n\
         model = [\"Qwen/Qwen3-0.6B\"]\n\
         adapters = [\"/srv/adapters\"]\n\
         kv_memory_mib = 4096\n\
         ```\n",
    );
    text
}

impl ServeConfig {
    /// Where the data goes: always absolute, never relative to where the command ran by accident.
    pub fn data_dir(&self) -> Result<PathBuf, ConfigError> {
        data_dir(self.data.as_deref())
    }
}

/// The data directory that `--data` names, or the usual one.
pub fn data_dir(named: Option<&Path>) -> Result<PathBuf, ConfigError> {
    match named {
        Some(data) => {
            std::path::absolute(data).map_err(|e| ConfigError::File { path: data.to_owned(), reason: e.to_string() })
        }
        None => data_home().map(|home| home.join("myriad")).ok_or(ConfigError::NoHome),
    }
}

fn absolute_variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

fn data_home() -> Option<PathBuf> {
    absolute_variable("XDG_DATA_HOME").or_else(|| absolute_variable("HOME").map(|home| home.join(".local/share")))
}

/// The XDG configuration home.
pub fn config_home() -> Option<PathBuf> {
    absolute_variable("XDG_CONFIG_HOME").or_else(|| absolute_variable("HOME").map(|home| home.join(".config")))
}
