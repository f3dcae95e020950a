//! The first screen: what a person needs to take the next step, and nothing else.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// What became of the first account's key.
#[derive(Debug)]
pub enum KeyNote {
    /// Made just now and written to the credentials file.
    Saved { key: String, path: PathBuf },
    /// Saved at an earlier start.
    Known { hint: String, path: PathBuf },
    /// Given by the operator.
    Given,
    /// Given by the operator, and opens nothing: it was revoked or has expired.
    Dead(&'static str),
    /// Made just now, but no file could be written: this is the only time it is shown.
    Unsaved { key: String, reason: String },
    /// Made at an earlier start, and not in this user's credentials file.
    Elsewhere,
}

#[derive(Debug)]
pub struct FirstScreen {
    pub ready_in: Duration,
    /// The CPU's instruction path and the weights' type.
    pub device: String,
    pub models: Vec<String>,
    /// Whether the only model is the built-in toy.
    pub toy: bool,
    pub url: String,
    pub key: KeyNote,
    /// Those that can answer now.
    pub adapters: Vec<String>,
    /// A name that answers `myriad chat`, where one does.
    pub example: Option<String>,
}

/// Most adapters that are named; the rest are counted.
const NAMED_ADAPTERS: usize = 8;

impl fmt::Display for FirstScreen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let toy = if self.toy { " (a toy; --model ORG/NAME for a real one)" } else { "" };
        let ready = self.ready_in.as_secs_f64();
        writeln!(f, "Myriad ready in {ready:.1} s    {}    model {}{toy}", self.device, self.models.join(", "))?;
        writeln!(f, "  Start page  {}", self.url)?;
        writeln!(f, "  API         {}/v1", self.url)?;
        writeln!(f, "  Key         {}", self.key)?;
        writeln!(f, "  Adapters    {}", self.adapter_names())?;
        let chat = self.example.as_ref().map(|name| format!("myriad chat {name}   |   ")).unwrap_or_default();
        write!(f, "Next:  {chat}myriad push ./my-lora my-lora   |   myriad serve --model Qwen/Qwen3-0.6B")
    }
}

impl FirstScreen {
    fn adapter_names(&self) -> String {
        if self.adapters.is_empty() {
            return "none yet".into();
        }
        let named = self.adapters.iter().take(NAMED_ADAPTERS).cloned().collect::<Vec<_>>().join(", ");
        match self.adapters.len().saturating_sub(NAMED_ADAPTERS) {
            0 => named,
            more => format!("{named} and {more} more"),
        }
    }
}

impl fmt::Display for KeyNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Saved { key, path } => write!(f, "{key}  saved to {}", path.display()),
            Self::Known { hint, path } => write!(f, "...{hint}  in {}", path.display()),
            Self::Given => f.write_str("the one you gave"),
            Self::Dead(what) => write!(f, "the one you gave {what}; `myriad accounts recover` makes one"),
            Self::Unsaved { key, reason } => write!(f, "{key}  note it down, it could not be saved: {reason}"),
            Self::Elsewhere => f.write_str("the one shown at the first start (not in this user's credentials file)"),
        }
    }
}
