//! Element-wise parts of a layer: RMSNorm, rotary positions, SiLU. Each row is computed by itself.

/// y = x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019), over one row. The sum has sixteen lanes, added in a fixed order.
pub fn rms(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let scale = 1.0 / (sum_of_squares(x) / x.len() as f32 + eps).sqrt();
    for ((y, &x), &weight) in y.iter_mut().zip(x).zip(weight) {
        *y = x * scale * weight;
    }
}

/// As `rms`, in place.
pub fn rms_in_place(x: &mut [f32], weight: &[f32], eps: f32) {
    let scale = 1.0 / (sum_of_squares(x) / x.len() as f32 + eps).sqrt();
    for (x, &weight) in x.iter_mut().zip(weight) {
        *x = *x * scale * weight;
    }
}

fn sum_of_squares(x: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let chunks = x.chunks_exact(16);
    for (lane, &value) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane += value * value;
    }
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += value * value;
        }
    }
    lanes.iter().sum()
}

/// Rotary position embedding (Su et al. 2021) in the half-split layout: element i turns with element i + head_dim / 2.
/// `cos` and `sin` hold head_dim / 2 values for the row's position.
pub fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (low, high) = head.split_at_mut(head.len() / 2);
    for (((a, b), &cos), &sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

/// gate = silu(gate) * up, silu(x) = x / (1 + e^-x).
pub fn silu_times(gate: &mut [f32], up: &[f32]) {
    for (gate, &up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + (-*gate).exp()) * up;
    }
}
