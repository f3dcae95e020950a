//! `myriad serve`: the whole platform in one process.

mod adapters;
mod builtin;
pub mod data_dir;
mod first_screen;
mod models;

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use adapter_store::{AdapterStore, Version};
use billing::{Journal, Ledger, Prices, Wallets};
use gateway::{
    Accounts, Audit, FirstKey, GivenKey, Grammars, Metrics, Outside, Platform, Replies, ServedModel, StoreImages,
    Stripe,
};
use model::{Executor, GenerationDefaults, LoadOptions};
use platform::{AccountName, Blobs, Db};
use serving_engine::{BaseModel, Engine, Limits, PageFile};
use tensor::cpu::{Cpu, Path as CpuPath, Pool};
use tensor::{DType, Format};
use text::Text;

use crate::config::{ConfigError, CpuChoice, DTypeChoice, LogFormat, Quantization, ServeConfig};
use crate::credentials::{self, Credentials, Entry};
use data_dir::DataDir;
use first_screen::{FirstScreen, KeyNote};
use models::ModelSource;

const MIB: usize = 1 << 20;
/// How long a server that stops waits for the database.
const SIGN_OFF: Duration = Duration::from_secs(10);
/// Largest key file, in bytes.
const KEY_FILE_BYTES: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    DataDir(#[from] data_dir::DataDirError),
    #[error("port {port} is in use; try {flag} {suggestion}")]
    PortInUse { port: u16, flag: &'static str, suggestion: String },
    #[error("{flag} {address}: {reason}")]
    Listen { flag: &'static str, address: String, reason: String },
    #[error(transparent)]
    Source(#[from] models::ModelSourceError),
    #[error(transparent)]
    Model(#[from] model::ModelError),
    #[error(transparent)]
    Text(#[from] text::TextError),
    #[error(transparent)]
    Db(#[from] platform::DbError),
    #[error(transparent)]
    Blob(#[from] platform::BlobError),
    #[error(transparent)]
    Journal(#[from] billing::BillingError),
    #[error(transparent)]
    Account(#[from] gateway::AccountError),
    #[error("--account: {0}")]
    AccountName(platform::ids::IdError),
    #[error(
        "an account may not be named {0:?}: base models of that organisation are loaded, and its adapters would look like them"
    )]
    AccountIsOrganisation(String),
    #[error("--bootstrap-key-file {path}: {reason}")]
    KeyFile { path: String, reason: String },
    #[error("--cpu {0}: this machine's CPU does not have it")]
    Cpu(&'static str),
    #[error("--adapters {0}")]
    Adapters(String),
    #[error(transparent)]
    Stripe(#[from] gateway::StripeError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Runs until SIGTERM or Ctrl-C.
pub async fn run(config: ServeConfig) -> Result<(), ServeError> {
    let started = Instant::now();
    start_log(&config);
    let data = DataDir::open(&config.data_dir()?)?;
    let api = listen("--listen", &config.listen)?;
    let ops = listen("--ops-listen", &config.ops_listen)?;
    let account: AccountName = config.account.parse().map_err(ServeError::AccountName)?;
    let given_key = bootstrap_key(&config)?;
    let stripe = Stripe::new(&config.stripe_url, config.stripe_key.as_deref(), config.stripe_meter.as_deref())?;

    let cpu = cpu(&config)?;
    let sources = locate(&config, data.path()).await?;
    if sources
        .iter()
        .any(|source| source.id.split_once('/').is_some_and(|(organisation, _)| organisation == account.as_str()))
    {
        return Err(ServeError::AccountIsOrganisation(account.to_string()));
    }
    let loaded = load(&config, &sources, &cpu)?;
    let device = format!("cpu {} {}", cpu.path.name(), loaded.first().map_or("", |model| model.format.name()));

    let database = config.database.clone().unwrap_or_else(|| crate::database::default_url(data.path()));
    let blobs = config.blobs.clone().unwrap_or_else(|| format!("file:{}", data.join("blobs").display()));
    let db = Db::open(&database).await?;
    let outside = Outside::new(db.clone(), config.private_webhooks, stripe);
    let parts = Parts { db: db.clone(), blobs: Blobs::open(&blobs).await?, loaded, outside };
    let platform = Arc::new(assemble(&config, &account, parts).await?);
    gateway::follow_changes(&platform, db.clone());
    gateway::run_reconciler(&platform);
    gateway::run_alerts(&platform);
    gateway::run_outbox(&platform);
    let keep_deliveries = Duration::from_secs(u64::from(config.keep_deliveries_days) * 86_400);
    gateway::run_purge(&platform, db.clone(), keep_deliveries);
    gateway::run_expiry(&platform);
    gateway::run_storage(&platform);
    let first_key = platform.accounts.bootstrap(&account, given_key.as_deref()).await?;

    let url = format!("http://{}", api.local_addr()?);
    // Before anything else can fail: a key that was made and not saved is lost.
    let key = note_key(&config, &url, data.path(), first_key);
    let servers = gateway::serve(platform.clone(), api, ops)?;
    let adapters = adapters::import(&platform, &account, &config.adapters, &sources).await?;
    platform.ready.store(true, std::sync::atomic::Ordering::Relaxed);
    let example = example(&platform, &adapters);
    let screen = FirstScreen {
        ready_in: started.elapsed(),
        device,
        toy: sources.iter().all(ModelSource::is_builtin),
        models: sources.into_iter().map(|source| source.id).collect(),
        key,
        url,
        adapters: adapters.into_iter().map(|version| version.name.to_string()).collect(),
        example,
    };
    println!("{screen}");
    servers.run_until(stop_signal(), Duration::from_secs(config.drain_timeout_s)).await?;
    sign_off(&platform, &db).await;
    Ok(())
}

/// Gives credit back and writes what is left. A database that is away must not keep the server: another one, or the next start,
/// closes what it leaves behind.
async fn sign_off(platform: &Platform, db: &Db) {
    let signed_off = async {
        platform.wallets.give_back_all().await?;
        platform.journal.close().await?;
        Ok::<_, ServeError>(platform.accounts.write_last_used().await?)
    };
    match tokio::time::timeout(SIGN_OFF, signed_off).await {
        Ok(Ok(())) => db.close().await,
        Ok(Err(error)) => tracing::warn!(%error, "not all could be written at the end"),
        Err(_) => tracing::warn!("the database does not answer; what was not written is settled at its last marks"),
    }
}

fn start_log(config: &ServeConfig) {
    let filter = tracing_subscriber::EnvFilter::new(&config.log);
    // What cannot be logged, as on a full disk, is lost. To say so on the same stream would panic in the middle of a request.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    match config.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}

fn listen(flag: &'static str, address: &str) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).map_err(|error| {
        let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
        match (error.kind(), port.parse::<u16>()) {
            (std::io::ErrorKind::AddrInUse, Ok(port)) => {
                let suggestion = format!("{host}:{}", port.checked_add(1).unwrap_or(8001));
                ServeError::PortInUse { port, flag, suggestion }
            }
            _ => ServeError::Listen { flag, address: address.into(), reason: format!("{error}; write HOST:PORT") },
        }
    })
}

fn bootstrap_key(config: &ServeConfig) -> Result<Option<String>, ServeError> {
    let Some(path) = &config.bootstrap_key_file else { return Ok(config.bootstrap_key.clone()) };
    let failed = |reason: String| ServeError::KeyFile { path: path.display().to_string(), reason };
    let size = std::fs::metadata(path).map_err(|e| failed(e.to_string()))?.len();
    if size > KEY_FILE_BYTES {
        return Err(failed(format!("is over {KEY_FILE_BYTES} bytes")));
    }
    let key = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
    Ok(Some(key.trim().to_owned()))
}

fn cpu(config: &ServeConfig) -> Result<Cpu, ServeError> {
    let path = match config.cpu {
        CpuChoice::Auto => CpuPath::detect(),
        CpuChoice::Avx512Bf16 => CpuPath::Avx512Bf16,
        CpuChoice::Avx512 => CpuPath::Avx512,
        CpuChoice::Avx2 => CpuPath::Avx2,
        CpuChoice::Portable => CpuPath::Portable,
    };
    if !path.available() {
        return Err(ServeError::Cpu(path.name()));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = config.threads.map_or(cores, usize::from);
    Ok(Cpu { path, pool: Arc::new(Pool::new(threads)) })
}

/// Fetching can take long and blocks, so it has a thread of its own.
async fn locate(config: &ServeConfig, data: &Path) -> Result<Vec<ModelSource>, ServeError> {
    let (named, data) = (config.model.clone(), data.to_owned());
    let located = tokio::task::spawn_blocking(move || models::locate(&named, &data)).await;
    Ok(located.map_err(std::io::Error::other)??)
}

/// A base model that was read and packed.
struct Loaded {
    id: Arc<str>,
    executor: Box<dyn Executor>,
    format: Format,
    text: Text,
    defaults: GenerationDefaults,
}

fn load(config: &ServeConfig, sources: &[ModelSource], cpu: &Cpu) -> Result<Vec<Loaded>, ServeError> {
    let options = LoadOptions {
        format: match (config.quantization, config.dtype) {
            (Some(Quantization::Int8), _) => Some(Format::Int8),
            (None, DTypeChoice::Auto) => None,
            (None, DTypeChoice::F32) => Some(Format::Plain(DType::F32)),
            (None, DTypeChoice::Bf16) => Some(Format::Plain(DType::Bf16)),
        },
        kv_bytes: config.kv_memory_mib as usize * MIB,
        slots: config.adapter_slots,
    };
    let one = |source: &ModelSource| {
        let executor = model::load(&source.folder, &options, cpu)?;
        Ok(Loaded {
            id: source.id.as_str().into(),
            format: executor.format(),
            executor: Box::new(executor),
            text: Text::load(&source.folder)?,
            defaults: GenerationDefaults::load(&source.folder)?,
        })
    };
    sources.iter().map(one).collect()
}

/// What was opened and loaded, and is put together to a platform.
struct Parts {
    db: Db,
    blobs: Blobs,
    loaded: Vec<Loaded>,
    outside: Outside,
}

async fn assemble(config: &ServeConfig, operator: &AccountName, parts: Parts) -> Result<Platform, ServeError> {
    let Parts { db, blobs, loaded, outside } = parts;
    let bases = loaded.iter().map(|model| adapter_store::Base {
        id: model.id.to_string(),
        shape: model.executor.shape().clone(),
        dtype: model.format.dtype(),
    });
    let adapter_bytes = config.adapter_memory_mib as usize * MIB;
    let store = AdapterStore::new(db.clone(), blobs, bases.collect(), adapter_bytes);
    let limits = Limits {
        queue: config.queue as usize,
        lane_queue: config.queue_per_account.unwrap_or((config.queue - config.queue / 4).max(1)) as usize,
        running: config.max_running as usize,
        step_rows: config.step_tokens as usize,
        speculative_rows: config.speculative_rows as usize,
        adapter_bytes,
        ..Limits::default()
    };
    let (mut bases, mut texts) = (Vec::new(), Vec::new());
    for model in loaded {
        let page_file = match config.kv_disk_mib {
            0 => None,
            mib => Some(PageFile::create(&config.data_dir()?.join("kv"), u64::from(mib) * MIB as u64)?),
        };
        bases.push(BaseModel {
            id: model.id.clone(),
            executor: model.executor,
            vocabulary: model.text.token_bytes(),
            page_file,
        });
        texts.push((model.id, model.text, model.defaults));
    }
    let engine = Engine::start(bases, Arc::new(StoreImages(store.clone())), limits);
    let loaded_s = platform::units::now_ms() / 1000;
    let served = texts.into_iter().filter_map(|(id, text, defaults)| {
        let base = engine.base(&id)?;
        let (context, vocabulary, fingerprint) = (base.context, base.shape.vocabulary, base.fingerprint.clone());
        let mut ends = defaults.eos_token_ids.clone();
        ends.extend(text.eos_token_id());
        ends.sort_unstable();
        ends.dedup();
        let grammars = Grammars::new(vocabulary, ends);
        Some(ServedModel { id, text, defaults, context, vocabulary, grammars, fingerprint, loaded_s })
    });
    let models = served.collect();
    let prices = Prices::open(db.clone()).await?;
    let (journal, interrupted) = Journal::open(db.clone(), prices.clone()).await?;
    let journal = if config.without_metering { journal.silent() } else { journal };
    if interrupted > 0 {
        tracing::warn!(
            interrupted,
            "requests were running when the server last ended; they are closed at their last mark"
        );
    }
    let mut cache_secret = [0u8; 32];
    getrandom::fill(&mut cache_secret).map_err(std::io::Error::other)?;
    let ledger = Ledger::new(db.clone());
    let caps = billing::Limits::open(db.clone()).await?;
    Ok(Platform {
        engine,
        models,
        store,
        storage: billing::Storage::new(ledger.clone(), prices.clone()),
        prices,
        wallets: Wallets::new(ledger.clone(), journal.clone(), caps.clone()),
        limits: caps,
        reconciler: gateway::Reconciler::default(),
        outside,
        ledger,
        journal,
        accounts: Accounts::open(db.clone()).await?,
        audit: Audit::new(db.clone()),
        operator: operator.clone(),
        replies: Replies::new(db),
        metrics: Metrics::default(),
        cache_secret,
        cors: config.cors,
        ready: false.into(),
        version: env!("CARGO_PKG_VERSION"),
    })
}

/// What to talk to first: the built-in adapter that changes the answer to anything one says, another adapter, a base model;
/// nothing that has no chat template.
fn example(platform: &Platform, adapters: &[Version]) -> Option<String> {
    let speaks = |base: &str| platform.model(base).is_some_and(|model| model.text.has_template());
    let mut able = adapters.iter().filter(|version| speaks(&version.base)).map(|version| version.name.as_str());
    let first = able.clone().find(|&name| name == "support").or_else(|| able.next());
    let base = || platform.models.iter().map(|model| &*model.id).find(|id| speaks(id));
    first.or_else(base).map(str::to_owned)
}

/// Puts this server into the user's credentials file, and says where the key is.
fn note_key(config: &ServeConfig, url: &str, data: &Path, first: FirstKey) -> KeyNote {
    let made = match first {
        FirstKey::Made(key) => Some(key),
        FirstKey::MadeBefore => None,
        FirstKey::Given(given) => return note_given(config, &given),
    };
    let saved = credentials::path().and_then(|path| {
        let mut known = Credentials::load(&path)?;
        let key = made.clone().or_else(|| known.of_data(data).map(|entry| entry.key.clone()));
        if let Some(key) = key.clone() {
            known.remember(Entry { base_url: url.to_owned(), data: Some(data.to_owned()), key });
            known.save(&path)?;
        }
        Ok((path, key))
    });
    match (saved, made) {
        (Ok((path, _)), Some(key)) => KeyNote::Saved { key, path },
        (Ok((path, Some(key))), None) => KeyNote::Known { hint: key[key.len().saturating_sub(4)..].to_owned(), path },
        (Err(error), Some(key)) => KeyNote::Unsaved { key, reason: error.to_string() },
        (Ok((_, None)) | Err(_), None) => KeyNote::Elsewhere,
    }
}

/// A server whose key was revoked starts all the same: others' keys open it, and a start must not undo a revocation.
fn note_given(config: &ServeConfig, given: &GivenKey) -> KeyNote {
    let what = if config.bootstrap_key_file.is_some() { "MYRIAD_BOOTSTRAP_KEY_FILE" } else { "MYRIAD_BOOTSTRAP_KEY" };
    let account = &config.account;
    let dead = match given {
        GivenKey::Opens => return KeyNote::Given,
        GivenKey::Revoked => "was revoked",
        GivenKey::Expired => "has expired",
        GivenKey::OfAnother(of) => {
            tracing::warn!("the key in {what} is one of the account {of} and opens that one, not {account}");
            return KeyNote::Given;
        }
    };
    tracing::warn!(
        "the key in {what} {dead}, stays so and opens nothing: put another one there, or remove it and make one for the account \
         {account} with `myriad accounts recover`"
    );
    KeyNote::Dead(dead)
}

async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        }
        Err(_) => {
            let _ = tokio::signal::ctrl_c().await;
        }
    }
}
