//! The executor of a model on the CPU.

use std::path::Path;
use std::sync::Arc;

use tensor::cpu::{Cpu, sample};
use tensor::{DType, Format, NotANumber, RowOutput};

use crate::error::ModelError;
use crate::executor::{Executor, ExecutorError, PoolShape, Slot, Step, Ticket};
use crate::forward::{PAGE_TOKENS, Pages, Weights, Work};
use crate::image::AdapterImage;
use crate::shape::ModelShape;

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// `None`: bf16 where this CPU widens it as fast as it reads it, else f32.
    pub format: Option<Format>,
    /// Memory for K and V, in bytes.
    pub kv_bytes: usize,
    /// Adapter slots beside the base's.
    pub slots: u32,
}

/// Fewest KV pages that a model is started with.
const PAGES: usize = 8;

/// Loads a model folder onto the CPU.
pub fn load(folder: &Path, options: &LoadOptions, cpu: &Cpu) -> Result<CpuExecutor, ModelError> {
    let format = options.format.unwrap_or_else(|| Format::Plain(cpu.path.best_dtype()));
    let dtype = format.dtype();
    let weights = Weights::load(folder, format, cpu)?;
    let page = Pages::bytes_per_page(&weights.config, dtype);
    // More pages than the longest conversations of all running requests could fill are never touched.
    let pages = options.kv_bytes / page;
    if pages < PAGES {
        let needed_mib = (PAGES * page).div_ceil(1 << 20) as u64;
        return Err(ModelError::KvMemory { pages: pages as u64, needed_mib });
    }
    let pages = Pages::new(&weights.config, dtype, u32::try_from(pages).unwrap_or(u32::MAX));
    let fingerprint = format!("myriad-{}-cpu-{}-{}", env!("CARGO_PKG_VERSION"), cpu.path.name(), format.name());
    let slots = vec![None; options.slots as usize + 1];
    let work = Work::new(&weights.config, cpu.path.activations(dtype));
    Ok(CpuExecutor { cpu: cpu.clone(), weights, pages, slots, work, format, fingerprint, ready: None, tickets: 0 })
}

pub struct CpuExecutor {
    cpu: Cpu,
    weights: Weights,
    pages: Pages,
    slots: Vec<Option<Arc<AdapterImage>>>,
    work: Work,
    format: Format,
    fingerprint: String,
    /// The one step that was computed and not collected.
    ready: Option<Vec<Result<RowOutput, NotANumber>>>,
    tickets: u64,
}

impl CpuExecutor {
    /// How adapters are held.
    pub fn dtype(&self) -> DType {
        self.format.dtype()
    }

    pub fn format(&self) -> Format {
        self.format
    }

    fn check(&self, step: &Step) -> Result<(), ExecutorError> {
        let wrong = |reason: String| Err(ExecutorError::Step(reason));
        let rows = step.tokens.len();
        if rows == 0 || step.positions.len() != rows {
            return wrong("a step has one position for each of its one or more tokens".into());
        }
        if step.sequences.rows() as usize != rows || step.slots.rows() as usize != rows {
            return wrong("the runs do not cover the rows".into());
        }
        if let Some(token) = step.tokens.iter().find(|&&token| token as usize >= self.shape().vocabulary) {
            return wrong(format!("token {token} is outside the vocabulary"));
        }
        for (rows, pages) in step.sequences.iter() {
            let positions = &step.positions[rows];
            let consecutive = positions.windows(2).all(|pair| pair[0] + 1 == pair[1]);
            let last = *positions.last().unwrap_or(&0) as usize;
            if !consecutive || last / PAGE_TOKENS >= pages.len() || last >= self.shape().context {
                return wrong("a sequence's positions are not consecutive, or its pages do not cover them".into());
            }
            if pages.iter().any(|&page| page >= self.pages.pages) {
                return wrong("a page is outside the pool".into());
            }
        }
        let bound = |slot: &Slot| *slot == Slot::BASE || matches!(self.slots.get(slot.0 as usize), Some(Some(_)));
        if !step.slots.iter().all(|(_, slot)| bound(slot)) {
            return wrong("a slot has no adapter".into());
        }
        let ascending = step.asks.windows(2).all(|pair| pair[0].0 < pair[1].0);
        if !ascending || step.asks.last().is_some_and(|(row, _)| *row as usize >= rows) {
            return wrong("asked rows are not ascending rows of the step".into());
        }
        Ok(())
    }
}

impl Executor for CpuExecutor {
    fn shape(&self) -> &ModelShape {
        &self.weights.config.shape
    }

    fn pool(&self) -> PoolShape {
        let page_bytes = Pages::bytes_per_page(&self.weights.config, self.dtype());
        PoolShape { pages: self.pages.pages, page_tokens: PAGE_TOKENS as u32, page_bytes }
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn weight_bytes(&self) -> u64 {
        let bytes = match self.format {
            Format::Plain(dtype) => dtype.bytes() as u64,
            Format::Int8 => 1,
        };
        self.shape().weights() as u64 * bytes
    }

    fn slots(&self) -> u32 {
        self.slots.len() as u32 - 1
    }

    fn bind(&mut self, slot: Slot, image: Arc<AdapterImage>) -> Result<(), ExecutorError> {
        if image.shape() != self.shape() || image.dtype() != self.dtype() {
            return Err(ExecutorError::Device("the adapter's image was made for another model or dtype".into()));
        }
        match self.slots.get_mut(slot.0 as usize) {
            Some(place) if slot != Slot::BASE => *place = Some(image),
            _ => {
                return Err(ExecutorError::Device(format!("there is no adapter slot {}", slot.0)));
            }
        }
        Ok(())
    }

    fn unbind(&mut self, slot: Slot) {
        if let Some(place) = self.slots.get_mut(slot.0 as usize) {
            *place = None;
        }
    }

    fn read_page(&self, page: u32) -> Result<Vec<u8>, ExecutorError> {
        if page >= self.pages.pages {
            return Err(ExecutorError::Device(format!("there is no page {page}")));
        }
        Ok(self.pages.read(page))
    }

    fn write_page(&mut self, page: u32, bytes: &[u8]) -> Result<(), ExecutorError> {
        if page >= self.pages.pages || !self.pages.write(page, bytes) {
            return Err(ExecutorError::Device(format!("{} bytes do not fit page {page}", bytes.len())));
        }
        Ok(())
    }

    fn submit(&mut self, step: Step) -> Result<Ticket, ExecutorError> {
        self.check(&step)?;
        if self.ready.is_some() {
            return Err(ExecutorError::Step("the step before was not collected".into()));
        }
        self.weights.forward(&self.cpu, &mut self.pages, &self.slots, &step, &mut self.work);
        let logits = self.work.logits(self.weights.config.shape.vocabulary);
        let rows: Vec<std::sync::Mutex<&mut [f32]>> = logits.take(step.asks.len()).map(std::sync::Mutex::new).collect();
        let answers: Vec<std::sync::OnceLock<_>> = rows.iter().map(|_| std::sync::OnceLock::new()).collect();
        self.cpu.pool.run(rows.len(), &|index| {
            let mut logits = rows[index].lock().unwrap_or_else(|e| e.into_inner());
            let _ = answers[index].set(sample::answer(self.cpu.path, &step.asks[index].1, &mut logits));
        });
        self.ready = Some(answers.into_iter().filter_map(std::sync::OnceLock::into_inner).collect());
        self.tickets += 1;
        Ok(Ticket(self.tickets))
    }

    fn collect(&mut self, _ticket: Ticket) -> Result<Vec<Result<RowOutput, NotANumber>>, ExecutorError> {
        self.ready.take().ok_or_else(|| ExecutorError::Step("this step was collected already".into()))
    }
}
