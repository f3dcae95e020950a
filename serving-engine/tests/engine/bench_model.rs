//! A small random Llama (the oracle's), adapters of different ranks, and an engine over them.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use model::{AdapterImage, DType, Executor, Format, ImageBuilder, Linear, LoadOptions, LoraPair, Sampling};
use platform::{Digest, RequestId};
use serving_engine::{
    AdapterImages, BaseModel, Engine, Event, FinishReason, ImageFetchError, Lane, Limits, PageFile, Reply, Request,
    Token, Usage,
};
use tensor::cpu::{Cpu, Path as CpuPath, Pool};
use text::TokenBytes;

/// What an engine is built with.
pub struct Setup {
    pub limits: Limits,
    pub threads: usize,
    pub kv_bytes: usize,
    pub slots: u32,
    pub page_file: Option<PageFile>,
}

impl Default for Setup {
    fn default() -> Self {
        Self { limits: Limits::default(), threads: 2, kv_bytes: 16 << 20, slots: 8, page_file: None }
    }
}

/// Numbers from a seed, in [-1, 1).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn below(&mut self, bound: u32) -> u32 {
        (((self.next() + 1.0) / 2.0 * bound as f32) as u32).min(bound - 1)
    }
}

/// Adapters by digest; what is not there cannot be fetched.
#[derive(Default)]
pub struct Images(pub HashMap<Digest, Arc<AdapterImage>>);

impl AdapterImages for Images {
    fn fetch(&self, digest: Digest) -> BoxFuture<'static, Result<Arc<AdapterImage>, ImageFetchError>> {
        let image = self.0.get(&digest).cloned();
        async move { image.ok_or(ImageFetchError { digest, reason: "it is not there".into() }) }.boxed()
    }
}

/// The digest of adapter number `n`.
pub fn adapter(n: u32) -> Digest {
    Digest::of(&n.to_le_bytes())
}

/// The number of an adapter whose weights are too large: what it answers are no numbers.
pub const OVERFLOWING: u32 = 1000;

fn image(executor: &dyn Executor, n: u32) -> Arc<AdapterImage> {
    let shape = executor.shape();
    let mut builder = ImageBuilder::new(shape, DType::F32);
    let mut numbers = Numbers(u64::from(n) + 1);
    let size = if n == OVERFLOWING { 1e30 } else { 0.3 };
    let rank = [1, 3, 8, 16, 5, 32, 2, 64][n as usize % 8];
    for layer in 0..shape.layers {
        for linear in Linear::ALL {
            // Not every adapter has every module.
            if (layer + linear as usize + n as usize).is_multiple_of(3) {
                continue;
            }
            let (outputs, inputs) = shape.linear(linear);
            let a = (0..rank * inputs).map(|_| numbers.next() * size).collect();
            let b = (0..rank * outputs).map(|_| numbers.next() * size).collect();
            builder.add(layer, linear, LoraPair { rank, a, b }).unwrap();
        }
    }
    Arc::new(builder.finish(adapter(n)))
}

/// Token t is one byte: 'a' to 'z' over and over.
pub fn vocabulary(size: usize) -> Arc<TokenBytes> {
    let bytes: Vec<[u8; 1]> = (0..size).map(|token| [b'a' + (token % 26) as u8]).collect();
    Arc::new(TokenBytes::new(bytes.iter().map(|byte| byte.as_slice())))
}

pub fn engine(setup: Setup) -> Engine {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/oracle/fixtures/models/llama");
    let cpu = Cpu { path: CpuPath::detect(), pool: Arc::new(Pool::new(setup.threads)) };
    let options = LoadOptions { format: Some(Format::Plain(DType::F32)), kv_bytes: setup.kv_bytes, slots: setup.slots };
    let executor = model::load(&folder, &options, &cpu).unwrap();
    let images = (0..8).chain([OVERFLOWING]).map(|n| (adapter(n), image(&executor, n))).collect();
    let vocabulary = vocabulary(executor.shape().vocabulary);
    let base = BaseModel { id: "llama".into(), executor: Box::new(executor), vocabulary, page_file: setup.page_file };
    Engine::start(vec![base], Arc::new(Images(images)), setup.limits)
}

/// A sampled request whose every property follows from its number.
pub fn request(n: u32) -> Request {
    let mut numbers = Numbers(u64::from(n) + 77);
    let prompt: Vec<u32> = (0..5 + numbers.below(60)).map(|_| numbers.below(250)).collect();
    Request {
        id: RequestId::fresh("test"),
        base: "llama".into(),
        adapter: (!n.is_multiple_of(9)).then(|| adapter(n % 8)),
        lane: Lane(u64::from(n % 3)),
        weight: NonZeroU32::MIN,
        cache_salt: 1,
        tokens: prompt.into(),
        sampling: Arc::new(Sampling {
            temperature: if n.is_multiple_of(4) { 0.0 } else { 0.9 },
            top_p: if n.is_multiple_of(3) { 0.9 } else { 1.0 },
            top_k: if n.is_multiple_of(5) { 20 } else { 0 },
            repetition_penalty: if n.is_multiple_of(2) { 1.2 } else { 1.0 },
            ..Sampling::default()
        }),
        seed: u64::from(n),
        choices: 1,
        max_tokens: 12,
        allowance: None,
        min_tokens: 0,
        stop: Vec::new(),
        grammar: None,
        stop_tokens: Arc::new([]),
        ignore_eos: false,
        include_stop: false,
        speculation: true,
        top_logprobs: Some(3),
        score_prompt: n.is_multiple_of(6),
    }
}

/// Everything that a request answered.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Answer {
    pub prompt: Vec<Token>,
    pub tokens: Vec<(u32, Token)>,
    pub ends: Vec<(u32, FinishReason, u64)>,
    pub usage: Usage,
    pub error: Option<String>,
}

impl Answer {
    /// Without what may differ: how much was read from the cache.
    pub fn bits(&self) -> (Vec<Token>, Vec<(u32, Token)>) {
        (self.prompt.clone(), self.tokens.clone())
    }
}

pub async fn answer(engine: &Engine, request: Request) -> Answer {
    collect(engine.submit(request).unwrap()).await
}

pub async fn collect(mut reply: Reply) -> Answer {
    let mut answer = Answer::default();
    let mut finished = 0;
    while let Some(event) = reply.next().await {
        match event {
            Event::Started { .. } => {}
            Event::Prompt(tokens) => answer.prompt = tokens,
            Event::Token { choice, token } => answer.tokens.push((choice, token)),
            Event::Choice { choice, reason, visible_bytes } => answer.ends.push((choice, reason, visible_bytes)),
            Event::Finished(end) => {
                finished += 1;
                (answer.usage, answer.error) = (end.usage, end.error);
            }
        }
    }
    assert_eq!(finished, 1, "a request finishes exactly once");
    answer
}
