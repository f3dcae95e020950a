//! Rotary frequencies with their scaling, as transformers computes them.

use serde_json::{Map, Value};

use crate::config::{ConfigFault, Fields};

/// Frequencies of the rotation, scaling applied.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// head_dim / 2 angular frequencies, in radians per position.
    pub inv_freq: Vec<f32>,
    /// Factor on cos and sin (YaRN's attention temperature); 1 elsewhere.
    pub attention_factor: f32,
}

impl Rope {
    pub(crate) fn parse(fields: &Fields<'_>, head_dim: usize, context: usize) -> Result<Self, ConfigFault> {
        let empty = Map::new();
        let object = |key: &str| fields.json.get(key).and_then(Value::as_object);
        // transformers 5 writes rope_parameters with the base inside; 4 writes rope_theta and rope_scaling.
        let parameters = object("rope_parameters").or(object("rope_scaling")).unwrap_or(&empty);
        let rope = Fields { json: parameters };
        let theta = match rope.real("rope_theta")? {
            Some(theta) => theta,
            None => fields.real("rope_theta")?.unwrap_or(10_000.0),
        };
        let exponents = (0..head_dim / 2).map(|i| (2 * i) as f32 / head_dim as f32);
        let plain: Vec<f32> = exponents.map(|exponent| 1.0 / (theta as f32).powf(exponent)).collect();
        let kind = match rope.text("rope_type")? {
            Some(kind) => kind,
            None => rope.text("type")?.unwrap_or("default"),
        };
        let factor = || rope.real("factor")?.ok_or_else(|| rope.wrong("factor", "is missing"));
        match kind {
            "default" => Ok(Self { inv_freq: plain, attention_factor: 1.0 }),
            "linear" => {
                let factor = factor()? as f32;
                Ok(Self { inv_freq: plain.iter().map(|f| f / factor).collect(), attention_factor: 1.0 })
            }
            "llama3" => llama3(&rope, plain, factor()?),
            "yarn" => yarn(&rope, Yarn { plain, theta, head_dim, context, factor: factor()? }),
            other => {
                Err(rope
                    .wrong("rope_type", format!("{other:?} is not supported; default, linear, llama3 and yarn are")))
            }
        }
    }
}

/// Long wavelengths are slowed by `factor`, short ones kept, those between blended (Llama 3.1 model card).
fn llama3(rope: &Fields<'_>, plain: Vec<f32>, factor: f64) -> Result<Rope, ConfigFault> {
    let low = rope.real("low_freq_factor")?.unwrap_or(1.0);
    let high = rope.real("high_freq_factor")?.unwrap_or(4.0);
    let original = rope.real("original_max_position_embeddings")?.unwrap_or(8192.0);
    let scale = |&frequency: &f32| {
        let frequency = f64::from(frequency);
        let wavelength = 2.0 * std::f64::consts::PI / frequency;
        if wavelength < original / high {
            return frequency as f32;
        }
        if wavelength > original / low {
            return (frequency / factor) as f32;
        }
        let smooth = (original / wavelength - low) / (high - low);
        ((1.0 - smooth) * frequency / factor + smooth * frequency) as f32
    };
    Ok(Rope { inv_freq: plain.iter().map(scale).collect(), attention_factor: 1.0 })
}

struct Yarn {
    plain: Vec<f32>,
    theta: f64,
    head_dim: usize,
    context: usize,
    factor: f64,
}

/// YaRN (Peng et al. 2023): interpolated and plain frequencies blended by a ramp over the dimensions.
fn yarn(rope: &Fields<'_>, yarn: Yarn) -> Result<Rope, ConfigFault> {
    let fast = rope.real("beta_fast")?.unwrap_or(32.0);
    let slow = rope.real("beta_slow")?.unwrap_or(1.0);
    let original = rope.real("original_max_position_embeddings")?.unwrap_or(yarn.context as f64);
    let truncate = rope.flag("truncate")?.unwrap_or(true);
    let dims = yarn.head_dim as f64;
    let dimension =
        |rotations: f64| dims * (original / (rotations * 2.0 * std::f64::consts::PI)).ln() / (2.0 * yarn.theta.ln());
    let (mut low, mut high) = (dimension(fast), dimension(slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dims - 1.0));
    if low == high {
        high += 0.001;
    }
    let blend = |(index, &frequency): (usize, &f32)| {
        let ramp = ((index as f64 - low) / (high - low)).clamp(0.0, 1.0) as f32;
        frequency / yarn.factor as f32 * ramp + frequency * (1.0 - ramp)
    };
    let mscale = |scale: f64, m: f64| {
        if scale <= 1.0 { 1.0 } else { 0.1 * m * scale.ln() + 1.0 }
    };
    let attention_factor = match (rope.real("attention_factor")?, rope.real("mscale")?, rope.real("mscale_all_dim")?) {
        (Some(given), _, _) => given,
        (None, Some(m), Some(all)) if m != 0.0 && all != 0.0 => mscale(yarn.factor, m) / mscale(yarn.factor, all),
        _ => mscale(yarn.factor, 1.0),
    };
    let inv_freq = yarn.plain.iter().enumerate().map(blend).collect();
    Ok(Rope { inv_freq, attention_factor: attention_factor as f32 })
}
