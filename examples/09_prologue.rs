//! What lies between projection and attention in a decode step of a paged engine, one kernel for each layer: Llama 3, Qwen3 (norms),
//! Gemma 3 (1 + weight) and DeepSeek (latent attention), all in one graph that is replayed with new positions and slots.
//!
//! `cargo run --example 09_prologue`

use anyhow::{Context, Result, ensure};
use cudarc::driver::sys::{CUgraphInstantiate_flags as Flags, CUstreamCaptureMode as Mode};
use cudarc::driver::{CudaContext, CudaSlice};
use half::bf16;
use posenc::accuracy::assert_close;
use posenc::rotate::{
    Branch, Cache, CacheRows, HeadNorm, NormWeight, PrologueCall, ProloguePlan, Qkv, Stored, Vectors,
};
use posenc::{Error, Gpu, Heads, Id, ModelRope, Positions, Prologue, Rope};

/// One token of each sequence.
const BATCH: usize = 3;
const PAGES: usize = 4;
/// Rows of a page.
const PAGE: usize = 4;
/// Positions and slots of two steps; the last sequence of the second one is padding.
const STEPS: [([i32; BATCH], [i32; BATCH]); 2] = [([9, 131_071, 0], [1, 13, 4]), ([10, 131_072, 0], [2, 14, -1])];

/// A model's layer: what is done, heads and channels of queries, keys and values, where each begins in a row of the projection, and
/// the caches of keys and values, both in one buffer.
struct Layer {
    name: &'static str,
    prologue: Prologue,
    sizes: [[usize; 2]; 3],
    first: [usize; 3],
    caches: [Heads; 2],
}

impl Layer {
    /// Queries, keys and values side by side; keys and values in pages `[2, pages, rows, heads, dim]`.
    fn packed(name: &'static str, prologue: Prologue, q_heads: usize, k_heads: usize, dim: usize) -> Self {
        let pages = Heads::bthd(PAGES, PAGE, k_heads, dim);
        let (k, v) = (q_heads * dim, (q_heads + k_heads) * dim);
        Self {
            name,
            prologue,
            sizes: [[q_heads, dim], [k_heads, dim], [k_heads, dim]],
            first: [0, k, v],
            caches: [pages, pages.at(PAGES * PAGE * k_heads * dim)],
        }
    }

    fn row(&self) -> usize {
        self.sizes.iter().map(|[heads, dim]| heads * dim).sum()
    }

    /// Queries, keys or values in the projection.
    fn shape(&self, which: usize) -> Heads {
        let [heads, dim] = self.sizes[which];
        Heads::thd(BATCH, heads, dim).row(self.row()).at(self.first[which])
    }

    /// Channels of the norms' weights.
    fn weights(&self) -> [Option<usize>; 3] {
        [Qkv::Query, Qkv::Key, Qkv::Value].map(|which| {
            let norm = self.prologue.branch(which).norm;
            norm.filter(|norm| norm.weight != NormWeight::None).map(|_| self.sizes[which as usize][1])
        })
    }
}

fn layers() -> Result<Vec<Layer>> {
    let rope = |config: &str| -> Result<Rope> { Ok(ModelRope::from_hf(config)?.rope()?.clone()) };
    let llama = rope(
        r#"{"model_type": "llama", "head_dim": 128, "rope_theta": 500000.0, "max_position_embeddings": 131072,
            "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192}}"#,
    )?;
    let qwen3 = rope(r#"{"model_type": "qwen3", "head_dim": 128, "rope_theta": 1000000.0}"#)?;
    let gemma = Rope::new(256, 1e6);
    let deepseek = rope(
        r#"{"model_type": "deepseek_v3", "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rope_theta": 10000.0}"#,
    )?;
    let normed = |weight| Branch { norm: Some(HeadNorm { weight, ..HeadNorm::rms(1e-6) }), ..Branch::rotated() };
    let both = |rope, branch| Prologue { q: branch, k: branch, ..Prologue::new(rope) };
    // A row of the latent's cache: 512 channels of the latent, which goes where values go, and 64 of the keys' rotary part.
    let latent = Heads { strides: [PAGE * 576, 576, 576], ..Heads::bthd(PAGES, PAGE, 1, 512) };
    Ok(vec![
        Layer::packed("Llama 3", Prologue::new(llama), 8, 2, 128),
        Layer::packed("Qwen3", both(qwen3, normed(NormWeight::Weight)), 8, 1, 128),
        Layer::packed("Gemma 3", both(gemma, normed(NormWeight::OnePlusWeight)), 4, 2, 256),
        Layer {
            name: "DeepSeek-V3",
            prologue: Prologue { v: Branch { rope: false, ..normed(NormWeight::Weight) }, ..Prologue::new(deepseek) },
            sizes: [[4, 192], [1, 64], [1, 512]],
            first: [0, 4 * 192 + 512, 4 * 192],
            caches: [Heads { dim: 64, ..latent }.at(512), latent],
        },
    ])
}

/// A layer on the device.
struct DeviceLayer {
    plan: ProloguePlan<bf16>,
    projection: CudaSlice<bf16>,
    weights: [Option<CudaSlice<bf16>>; 3],
    q: CudaSlice<bf16>,
    cache: CudaSlice<bf16>,
}

impl DeviceLayer {
    /// The one kernel: queries to a tensor of their own, keys and values into the cache.
    fn run(&mut self, layer: &Layer, positions: &CudaSlice<i32>, slots: &CudaSlice<i32>) -> Result<()> {
        let [q_weight, k_weight, v_weight] = self.weights.each_ref();
        let vectors = |weight| Vectors { weight, bias: None };
        let call = PrologueCall {
            q: vectors(q_weight.as_ref().map(|weight| weight as _)),
            k: vectors(k_weight.as_ref().map(|weight| weight as _)),
            v: vectors(v_weight.as_ref().map(|weight| weight as _)),
            cache: Some(Cache {
                k: layer.caches[0].of_mut(&mut self.cache).into(),
                v: Some(Stored::Beside(layer.caches[1])),
                rows: CacheRows::Slots(i32::ids(slots)),
                flag: None,
            }),
            ..PrologueCall::at(Positions::ids(positions))
        };
        let [heads, dim] = layer.sizes[0];
        let q = layer.shape(0).of(&self.projection).to(Heads::thd(BATCH, heads, dim).of_mut(&mut self.q));
        self.plan.apply(q, layer.shape(1).of(&self.projection), layer.shape(2).of(&self.projection), call)?;
        Ok(())
    }
}

pub(crate) fn main() -> Result<()> {
    match Gpu::open(0) {
        Ok(_) => {}
        Err(error @ (Error::NoDevice(_) | Error::NoKernels)) => {
            println!("there is nothing to run on: {error}");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    }
    let context = CudaContext::new(0)?;
    // SAFETY: all buffers are used in one stream.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream()?;
    let gpu = Gpu::new(&stream)?;
    let layers = layers()?;
    let mut numbers = Numbers(1);
    let mut there = Vec::new();
    let mut weights = Vec::new();
    for layer in &layers {
        let own = layer.weights().map(|n| n.map(|n| numbers.take(n)));
        let up = |x: &Option<Vec<bf16>>| x.as_ref().map(|x| stream.clone_htod(x)).transpose();
        let [q, k, v] = own.each_ref().map(up);
        there.push(DeviceLayer {
            plan: ProloguePlan::new(&gpu, &layer.prologue)?,
            projection: stream.alloc_zeros(BATCH * layer.row())?,
            weights: [q?, k?, v?],
            q: stream.alloc_zeros(BATCH * layer.sizes[0][0] * layer.sizes[0][1])?,
            cache: stream.alloc_zeros(layer.caches[0].span()?.max(layer.caches[1].span()?))?,
        });
        weights.push(own);
    }
    let (mut positions, mut slots) = (stream.alloc_zeros(BATCH)?, stream.alloc_zeros(BATCH)?);
    stream.synchronize()?;

    // The step of all layers, captured once.
    stream.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    for (layer, there) in layers.iter().zip(&mut there) {
        // The engine's projection stands here: it writes `projection`.
        there.run(layer, &positions, &slots)?;
        // Its attention reads `q` and the cache.
    }
    let graph =
        stream.end_capture(Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH)?.context("an empty graph")?;

    let mut caches: Vec<Vec<(f64, f64)>> = there.iter().map(|there| vec![(0.0, 0.0); there.cache.len()]).collect();
    for (step_positions, step_slots) in STEPS {
        stream.memcpy_htod(&step_positions, &mut positions)?;
        stream.memcpy_htod(&step_slots, &mut slots)?;
        let at = step_positions.map(i64::from);
        let mut projections = Vec::new();
        for (layer, there) in layers.iter().zip(&mut there) {
            let projection = numbers.take(BATCH * layer.row());
            stream.memcpy_htod(&projection, &mut there.projection)?;
            projections.push(projection);
        }
        graph.launch()?;
        for (i, (layer, there)) in layers.iter().zip(&there).enumerate() {
            let expect = |which: Qkv| {
                let vectors = Vectors { weight: weights[i][which as usize].as_deref(), bias: None };
                layer.prologue.expect(which, (&projections[i], &layer.shape(which as usize)), vectors, &at)
            };
            let q = expect(Qkv::Query)?;
            assert_close(&stream.clone_dtoh(&there.q)?, &q.want, |i| q.bound[i]);
            for (which, cache) in [(Qkv::Key, layer.caches[0]), (Qkv::Value, layer.caches[1])] {
                let expected = expect(which)?;
                for (token, slot) in step_slots.iter().enumerate().filter(|(_, slot)| **slot >= 0) {
                    let slot = *slot as usize;
                    for c in 0..cache.heads * cache.dim {
                        let to = cache.index(slot / PAGE, slot % PAGE, c / cache.dim, c % cache.dim);
                        let from = token * cache.heads * cache.dim + c;
                        caches[i][to] = (expected.want[from], expected.bound[from]);
                    }
                }
            }
            // What a step does not write stays: zeros, and what earlier steps wrote.
            let want: Vec<f64> = caches[i].iter().map(|cache| cache.0).collect();
            assert_close(&stream.clone_dtoh(&there.cache)?, &want, |at| caches[i][at].1);
        }
    }
    let written = caches[0].iter().filter(|cache| cache.1 > 0.0).count();
    ensure!(written > 0, "no key was cached");
    let names: Vec<_> = layers.iter().map(|layer| layer.name).collect();
    println!(
        "{} steps of {} from one graph on {gpu:?}: queries and caches are the reference's",
        STEPS.len(),
        names.join(", ")
    );
    Ok(())
}

/// Numbers of -2 to 2, the same on every run.
struct Numbers(u64);

impl Numbers {
    fn take(&mut self, count: usize) -> Vec<bf16> {
        let mut next = || {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            bf16::from_f32((self.0 >> 40) as f32 / (1 << 22) as f32 - 2.0)
        };
        (0..count).map(|_| next()).collect()
    }
}
