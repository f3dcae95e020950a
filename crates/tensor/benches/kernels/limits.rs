//! What the machine can do at most, measured: the kernels are held against these figures.

use std::time::Instant;

use tensor::cpu::Pool;

/// Read bandwidth in bytes per second, and arithmetic per second (multiply and add are two), on all threads of the pool.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    pub read: f64,
    pub f32: f64,
    pub bf16: f64,
    pub int8: f64,
}

/// Each limit is the best of so many rounds: others on the machine can only slow one down.
const ROUNDS: usize = 7;
/// More than the caches that one process can hope for, in bytes.
const BUFFER: usize = 1 << 30;
const LOOPS: usize = 2_000_000;

pub fn measure(pool: &Pool) -> Limits {
    let threads = pool.threads();
    let buffer = vec![1u64; BUFFER / 8];
    let part = buffer.len() / threads;
    let seconds = best(|| {
        pool.run(threads, &|thread| {
            std::hint::black_box(read(&buffer[thread * part..(thread + 1) * part]));
        });
    });
    let mut limits = Limits { read: (part * threads * 8) as f64 / seconds, ..Limits::default() };
    #[cfg(target_arch = "x86_64")]
    {
        let rate = |per_loop: usize, kernel: unsafe fn(usize)| {
            // SAFETY: each kernel is only timed where its instructions were found.
            let seconds = best(|| pool.run(threads, &|_| unsafe { kernel(LOOPS) }));
            (LOOPS * per_loop * threads) as f64 / seconds
        };
        if is_x86_feature_detected!("avx512f") {
            limits.f32 = rate(CHAINS * 32, x86::f32_avx512);
        } else if is_x86_feature_detected!("fma") {
            limits.f32 = rate(CHAINS * 16, x86::f32_avx2);
        }
        if is_x86_feature_detected!("avx512bf16") {
            limits.bf16 = rate(CHAINS * 64, x86::bf16_avx512);
        }
        if is_x86_feature_detected!("avx512vnni") {
            limits.int8 = rate(CHAINS * 128, x86::int8_avx512);
        }
    }
    limits
}

pub fn best(mut run: impl FnMut()) -> f64 {
    let time = |run: &mut dyn FnMut()| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    (0..ROUNDS).map(|_| time(&mut run)).fold(f64::INFINITY, f64::min)
}

/// Eight streams side by side, as many as the prefetchers follow, each read a cache line at a time.
fn read(buffer: &[u64]) -> u64 {
    let stream = buffer.len() / 8;
    let mut sums = [0u64; 8];
    for at in (0..stream - 7).step_by(8) {
        for (index, sum) in sums.iter_mut().enumerate() {
            // One word of a line brings all of it in.
            *sum ^= buffer[index * stream + at];
        }
    }
    sums.iter().fold(0, |a, b| a ^ b)
}

/// Independent chains: enough to hide the latency of two units.
const CHAINS: usize = 16;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::CHAINS;

    macro_rules! peak {
        ($name:ident, $features:literal, $type:ty, $zero:expr, |$sum:ident, $a:ident| $step:expr) => {
            #[target_feature(enable = $features)]
            pub unsafe fn $name(loops: usize) {
                let zero: $type = $zero;
                let mut sums = [zero; CHAINS];
                let $a = black_box(zero);
                for _ in 0..loops {
                    for $sum in &mut sums {
                        *$sum = $step;
                    }
                }
                black_box(sums);
            }
        };
    }

    peak!(f32_avx512, "avx512f", __m512, _mm512_setzero_ps(), |sum, a| _mm512_fmadd_ps(a, a, *sum));
    peak!(f32_avx2, "avx2,fma", __m256, _mm256_setzero_ps(), |sum, a| _mm256_fmadd_ps(a, a, *sum));
    peak!(bf16_avx512, "avx512f,avx512bf16", __m512, _mm512_setzero_ps(), |sum, a| {
        // SAFETY: both types are 64 bytes of plain numbers.
        let a: __m512bh = unsafe { std::mem::transmute(a) };
        _mm512_dpbf16_ps(*sum, a, a)
    });
    peak!(int8_avx512, "avx512f,avx512vnni", __m512i, _mm512_setzero_si512(), |sum, a| _mm512_dpbusd_epi32(*sum, a, a));
}
