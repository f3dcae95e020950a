//! What the driver hands to the response: decoded text, scores, endings.

use serving_engine::Usage;

use crate::error::ApiError;

/// A token with its log-probabilities, as text and bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredToken {
    pub id: u32,
    /// `None` for a prompt's first token.
    pub logprob: Option<f32>,
    pub top: Vec<(u32, f32)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Stop,
    Length,
    /// Credit or a cap allowed no more.
    Credit,
}

impl Ending {
    /// OpenAI's word for it: what was cut off has that of a length.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length | Self::Credit => "length",
        }
    }

    /// Why, where OpenAI has no word for it.
    pub const fn stop_reason(self) -> Option<&'static str> {
        match self {
            Self::Stop | Self::Length => None,
            Self::Credit => Some("insufficient_quota"),
        }
    }
}

/// A part of the response. `prompt` counts the request's prompts, `choice` the answers of one prompt.
#[derive(Debug, Clone)]
pub enum Piece {
    /// The prompt's own scores, where they were asked for: one for each of its tokens.
    Prompt {
        prompt: usize,
        tokens: Vec<ScoredToken>,
    },
    Text {
        index: usize,
        text: String,
        tokens: Vec<ScoredToken>,
    },
    /// A choice is complete. Sent when the whole request is settled.
    End {
        index: usize,
        ending: Ending,
    },
    /// The last piece of a request that went well.
    Done {
        usage: Usage,
        cost_nano_usd: i64,
    },
    /// The last piece of one that did not.
    Failed(ApiError),
}
