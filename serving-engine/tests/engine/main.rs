//! The engine on the real CPU backend with a small random model.

mod bench_model;
mod crowd;
mod life;
mod speculation;
