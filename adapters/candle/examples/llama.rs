//! A Llama whose rope is posenc's, beside that of candle-transformers: same weights, same tokens, and what happens far away.
//!
//! `cargo run --example llama`. The weights are random and small; nothing is downloaded.

use std::collections::HashMap;

use candle_core::{D, DType, Device, Error, IndexOp, Result, Tensor};
use candle_nn::{VarBuilder, ops};
use candle_transformers::models::llama::{Cache, Llama as CandleLlama, LlamaConfig};
use posenc_candle::{At, Rope, rotary_emb};

/// What the model was trained with, in the words of a `config.json`.
pub const CONFIG: &str = r#"{
    "model_type": "llama", "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "max_position_embeddings": 131072
}"#;
const LAYERS: usize = 3;
const HIDDEN: usize = 64;
const HEADS: usize = 4;
const KEY_HEADS: usize = 2;
const DIM: usize = HIDDEN / HEADS;
const VOCABULARY: usize = 97;
const INNER: usize = 96;

/// Random weights under the names of Hugging Face's checkpoints, the same on every run.
pub fn weights() -> Result<HashMap<String, Tensor>> {
    let mut state = 1u64;
    let mut random = |rows: usize, columns: usize| {
        let scale = (12.0 / columns as f64).sqrt();
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (((state >> 11) as f64 / (1u64 << 53) as f64 - 0.5) * scale) as f32
        };
        let values: Vec<f32> = (0..rows * columns).map(|_| next()).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu)
    };
    let mut weights = HashMap::new();
    weights.insert("model.embed_tokens.weight".into(), random(VOCABULARY, HIDDEN)?);
    weights.insert("lm_head.weight".into(), random(VOCABULARY, HIDDEN)?);
    weights.insert("model.norm.weight".into(), Tensor::ones(HIDDEN, DType::F32, &Device::Cpu)?);
    for layer in 0..LAYERS {
        for (name, rows, columns) in [
            ("self_attn.q_proj", HIDDEN, HIDDEN),
            ("self_attn.k_proj", KEY_HEADS * DIM, HIDDEN),
            ("self_attn.v_proj", KEY_HEADS * DIM, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HIDDEN),
            ("mlp.gate_proj", INNER, HIDDEN),
            ("mlp.up_proj", INNER, HIDDEN),
            ("mlp.down_proj", HIDDEN, INNER),
        ] {
            weights.insert(format!("model.layers.{layer}.{name}.weight"), random(rows, columns)?);
        }
        for name in ["input_layernorm", "post_attention_layernorm"] {
            let ones = Tensor::ones(HIDDEN, DType::F32, &Device::Cpu)?;
            weights.insert(format!("model.layers.{layer}.{name}.weight"), ones);
        }
    }
    Ok(weights)
}

/// Rotates queries and keys, `[batch, heads, tokens, dim]`, whose first token is at a position.
pub type Rotate = Box<dyn Fn(&Tensor, &Tensor, usize) -> Result<(Tensor, Tensor)>>;

/// A Llama with a rope of the caller.
pub struct Llama {
    weights: HashMap<String, Tensor>,
    rotate: Rotate,
    cache: Vec<Option<(Tensor, Tensor)>>,
}

impl Llama {
    /// In f32 or f64.
    pub fn new(dtype: DType, rotate: Rotate) -> Result<Self> {
        let typed = |(name, weight): (String, Tensor)| Ok((name, weight.to_dtype(dtype)?));
        let weights = weights()?.into_iter().map(typed).collect::<Result<_>>()?;
        Ok(Self { weights, rotate, cache: vec![None; LAYERS] })
    }

    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        x.broadcast_matmul(&self.weights[&format!("{name}.weight")].t()?)
    }

    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let size = (x.sqr()?.mean_keepdim(D::Minus1)? + 1e-5)?.sqrt()?;
        x.broadcast_div(&size)?.broadcast_mul(&self.weights[&format!("{name}.weight")])
    }

    fn attention(&mut self, x: &Tensor, layer: usize, position: usize) -> Result<Tensor> {
        let name = format!("model.layers.{layer}.self_attn");
        let (batch, tokens, _) = x.dims3()?;
        let heads = |x: Tensor, heads: usize| x.reshape((batch, tokens, heads, DIM))?.transpose(1, 2);
        let q = heads(self.linear(x, &format!("{name}.q_proj"))?, HEADS)?;
        let k = heads(self.linear(x, &format!("{name}.k_proj"))?, KEY_HEADS)?;
        let v = heads(self.linear(x, &format!("{name}.v_proj"))?, KEY_HEADS)?;
        let (q, mut k) = (self.rotate)(&q, &k, position)?;
        let mut v = v.contiguous()?;
        if let Some((old_k, old_v)) = &self.cache[layer] {
            (k, v) = (Tensor::cat(&[old_k, &k], 2)?, Tensor::cat(&[old_v, &v], 2)?);
        }
        self.cache[layer] = Some((k.clone(), v.clone()));

        let repeated = |x: Tensor| candle_transformers::utils::repeat_kv(x, HEADS / KEY_HEADS);
        let (k, v) = (repeated(k)?, repeated(v)?);
        let mut logits = (q.matmul(&k.t()?)? / (DIM as f64).sqrt())?;
        if tokens > 1 {
            let seen = Tensor::tril2(tokens, logits.dtype(), x.device())?;
            logits = logits.broadcast_add(&((seen - 1.0)? * 1e30)?)?;
        }
        let out = ops::softmax(&logits, D::Minus1)?.matmul(&v)?;
        self.linear(&out.transpose(1, 2)?.reshape((batch, tokens, HIDDEN))?, &format!("{name}.o_proj"))
    }

    /// The logits of the token after `tokens`, whose first is at `position`. More than one go into an empty cache alone.
    pub fn forward(&mut self, tokens: &Tensor, position: usize) -> Result<Tensor> {
        let (batch, count) = tokens.dims2()?;
        let embedded = self.weights["model.embed_tokens.weight"].index_select(&tokens.flatten_all()?, 0)?;
        let mut x = embedded.reshape((batch, count, HIDDEN))?;
        for layer in 0..LAYERS {
            let name = format!("model.layers.{layer}");
            let normed = self.norm(&x, &format!("{name}.input_layernorm"))?;
            x = (self.attention(&normed, layer, position)? + x)?;
            let normed = self.norm(&x, &format!("{name}.post_attention_layernorm"))?;
            let gate = ops::silu(&self.linear(&normed, &format!("{name}.mlp.gate_proj"))?)?;
            let up = self.linear(&normed, &format!("{name}.mlp.up_proj"))?;
            x = (self.linear(&(gate * up)?, &format!("{name}.mlp.down_proj"))? + x)?;
        }
        let last = self.norm(&x, "model.norm")?.i((.., count - 1, ..))?;
        self.linear(&last.contiguous()?, "lm_head")
    }
}

/// posenc's rope, from the model's config.
pub fn exact() -> Result<Rotate> {
    let rope = Rope::from_config(CONFIG, 0, &Device::Cpu)?;
    Ok(Box::new(move |q, k, position| rope.apply(q, k, At::Start(position))))
}

/// The truth: angles, cosines and sines in f64.
pub fn in_f64() -> Rotate {
    Box::new(|q, k, position| {
        let tokens = q.dim(2)?;
        let angle = |i: usize| {
            let (token, pair) = (i / (DIM / 2), i % (DIM / 2));
            (position + token) as f64 * 10_000f64.powf(-((2 * pair) as f64) / DIM as f64)
        };
        let table = |wave: fn(f64) -> f64| {
            let values: Vec<f64> = (0..tokens * (DIM / 2)).map(|i| wave(angle(i))).collect();
            Tensor::from_vec(values, (tokens, DIM / 2), &Device::Cpu)
        };
        let (cos, sin) = (table(f64::cos)?, table(f64::sin)?);
        Ok((rotary_emb::rope(q, &cos, &sin)?, rotary_emb::rope(k, &cos, &sin)?))
    })
}

/// The model of candle-transformers, with a cache for one sequence.
pub fn candle() -> Result<impl FnMut(&Tensor, usize) -> Result<Tensor>> {
    let config: LlamaConfig = serde_json::from_str(CONFIG).map_err(Error::wrap)?;
    let config = config.into_config(false);
    let model = CandleLlama::load(VarBuilder::from_tensors(weights()?, DType::F32, &Device::Cpu), &config)?;
    let mut cache = Cache::new(true, DType::F32, &config, &Device::Cpu)?;
    Ok(move |tokens: &Tensor, position: usize| model.forward(tokens, position, &mut cache))
}

/// Logits after each of the prompt's tokens and of those that follow, greedily, from `first` on.
pub fn generate(
    mut forward: impl FnMut(&Tensor, usize) -> Result<Tensor>,
    first: usize,
    prompt: &[u32],
    count: usize,
) -> Result<(Vec<u32>, Vec<Vec<f64>>)> {
    let (mut tokens, mut all) = (Vec::new(), Vec::new());
    // At once from position 0; candle's mask does not know a cache that is empty at another.
    let steps: Vec<&[u32]> = if first == 0 { vec![prompt] } else { prompt.chunks(1).collect() };
    let mut position = first;
    let mut step = |forward: &mut dyn FnMut(&Tensor, usize) -> Result<Tensor>, tokens: &[u32]| {
        let logits = forward(&Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?, position)?;
        position += tokens.len();
        logits.squeeze(0)?.to_dtype(DType::F64)?.to_vec1::<f64>()
    };
    for part in steps {
        all.push(step(&mut forward, part)?);
    }
    for _ in 0..count {
        let logits = all.last().map_or(&[][..], |logits| logits);
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap_or(0) as u32;
        tokens.push(best);
        all.push(step(&mut forward, &[best])?);
    }
    Ok((tokens, all))
}

/// The largest difference of two lists of logits, of the same tokens.
pub fn apart(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    let each = a.iter().zip(b).flat_map(|(a, b)| a.iter().zip(b));
    each.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// The prompt of example and test.
pub const PROMPT: [u32; 12] = [5, 81, 17, 3, 44, 90, 61, 2, 33, 70, 11, 28];

#[allow(dead_code, reason = "the test has no use for it")]
fn main() -> Result<()> {
    println!("largest difference of logits from those of the model in f64, after the same 12 tokens");
    println!("{:>10} {:>20} {:>10} {:>14}", "position", "candle-transformers", "posenc", "largest logit");
    for first in [0, 1000, 10_000, 100_000] {
        let mut truth = Llama::new(DType::F64, in_f64())?;
        let want = generate(|tokens, position| truth.forward(tokens, position), first, &PROMPT, 0)?.1;
        let theirs = generate(candle()?, first, &PROMPT, 0)?.1;
        let mut ours = Llama::new(DType::F32, exact()?)?;
        let ours = generate(|tokens, position| ours.forward(tokens, position), first, &PROMPT, 0)?.1;
        let largest = want.iter().flatten().fold(0.0f64, |largest, logit| largest.max(logit.abs()));
        println!("{first:>10} {:>20.1e} {:>10.1e} {largest:>14.1}", apart(&theirs, &want), apart(&ours, &want));
    }
    let theirs = generate(candle()?, 0, &PROMPT, 40)?.0;
    let mut ours = Llama::new(DType::F32, exact()?)?;
    let ours = generate(|tokens, position| ours.forward(tokens, position), 0, &PROMPT, 40)?.0;
    println!("40 tokens from position {}: {}", PROMPT.len(), if ours == theirs { "the same" } else { "others" });
    Ok(())
}
