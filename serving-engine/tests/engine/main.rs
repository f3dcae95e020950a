//! The engine on the real CPU backend with a small random model.

mod bench_model;
mod crowd;
mod disk;
mod fair;
mod life;
mod speculation;
mod steered;
