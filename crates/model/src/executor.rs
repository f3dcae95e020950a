//! A model on a device, erased: what the engine drives. One thread owns it.

use std::sync::Arc;

use tensor::{Ask, NotANumber, RowOutput, Runs};

use crate::image::AdapterImage;
use crate::shape::ModelShape;

/// An adapter slot. Slot 0 is the base model: its runs contribute nothing and are skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u32);

impl Slot {
    pub const BASE: Self = Self(0);
}

/// The KV pages of one sequence: page `i` holds positions `i * page_tokens ..`.
pub type PageTable = Arc<[u32]>;

/// The KV pool, in pages. Who holds which page is the engine's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolShape {
    pub pages: u32,
    /// Positions per page, the same on every device: prefix-cache keys are cut at it.
    pub page_tokens: u32,
    /// What K and V of a page's positions take in all layers.
    pub page_bytes: usize,
}

/// One pass over the model. Row `r` holds the token at `positions[r]` of its sequence.
///
/// Invariants (checked by the executor): rows of a sequence are consecutive in position; its page table covers its last
/// position; the K and V of all positions before its first row are in the pool already; slot runs coarsen sequence runs.
#[derive(Debug, Clone, Default)]
pub struct Step {
    pub tokens: Vec<u32>,
    pub positions: Vec<u32>,
    pub sequences: Runs<PageTable>,
    pub slots: Runs<Slot>,
    /// (row, what is asked of its logits), ascending by row; a row may be asked once.
    pub asks: Vec<(u32, Ask)>,
}

/// A submitted step, to be collected once.
#[derive(Debug)]
#[must_use]
pub struct Ticket(pub u64);

#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    #[error("step refused: {0}")]
    Step(String),
    #[error("device: {0}")]
    Device(String),
}

pub trait Executor: Send {
    fn shape(&self) -> &ModelShape;

    fn pool(&self) -> PoolShape;

    /// Instruction path, weight dtype, build: answers are bit-identical within one value of it.
    fn fingerprint(&self) -> &str;

    /// What a step reads of the base model's weights, in bytes.
    fn weight_bytes(&self) -> u64;

    /// Slots beside slot 0.
    fn slots(&self) -> u32;

    /// Puts an adapter under `slot` (1 ..= slots()). Not while a submitted step names that slot.
    fn bind(&mut self, slot: Slot, image: Arc<AdapterImage>) -> Result<(), ExecutorError>;

    fn unbind(&mut self, slot: Slot);

    /// A page's K and V, `page_bytes` long, to be given to `write_page` of the same executor. Not while a step is in flight.
    fn read_page(&self, page: u32) -> Result<Vec<u8>, ExecutorError>;

    /// Fills a page with what was read from it, or from another. Not while a step is in flight.
    fn write_page(&mut self, page: u32, bytes: &[u8]) -> Result<(), ExecutorError>;

    /// Starts a step. At most two may be in flight.
    fn submit(&mut self, step: Step) -> Result<Ticket, ExecutorError>;

    /// Waits for a step: one output per ask, in the order asked. Tickets are collected in the order submitted. A row without
    /// an answer leaves the others as they are.
    fn collect(&mut self, ticket: Ticket) -> Result<Vec<Result<RowOutput, NotANumber>>, ExecutorError>;
}
