//! An engine's decode: a prompt of each sequence into its KV cache on two streams, then steps of all layers as one graph, captured
//! once and replayed with new positions and lengths. The engine writes its cache by a kernel of its own here; 09_prologue leaves
//! that, with bias and norm, to the kernel that rotates.
//!
//! `cargo run --example 05_decode`

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use cudarc::driver::sys::{CUgraphInstantiate_flags as Flags, CUstreamCaptureMode as Mode};
use cudarc::driver::{CudaContext, CudaFunction, CudaGraph, CudaSlice, CudaStream, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;
use half::bf16;
use posenc::accuracy::assert_close;
use posenc::attend::Inputs;
use posenc::rotate::Layer;
use posenc::{
    Bias, Direction, Error, Gpu, Heads, Logits, ModelRope, Places, Positions, Rope, RopePlan, Softmax, SoftmaxPlan,
};

/// A small Gemma 3: windows with one base, whole contexts with another.
const CONFIG: &str = r#"{
    "model_type": "gemma3_text", "head_dim": 64, "num_hidden_layers": 4, "max_position_embeddings": 131072,
    "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
    "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}
}"#;
const WINDOW: usize = 8;
const BATCH: usize = 2;
const Q_HEADS: usize = 8;
const KV_HEADS: usize = 2;
const DIM: usize = 64;
/// Keys that the cache of a sequence has room for.
const SLOTS: usize = 32;
const PROMPTS: [usize; BATCH] = [11, 5];
const STEPS: usize = 4;

/// `[batch, heads, tokens, dim]`, of which each step writes one token.
const CACHE: Heads = Heads::bhtd(BATCH, KV_HEADS, SLOTS, DIM);
const Q: Heads = Heads::bthd(BATCH, 1, Q_HEADS, DIM);
const K: Heads = Heads::bthd(BATCH, 1, KV_HEADS, DIM);
const SCORES: Logits = Logits::bhqk(BATCH, Q_HEADS, 1, SLOTS);

/// The engine's own kernel: `cache[b, h, slots[b], :] = k[b, h, :]`, a block for each head, a thread for each two channels. A call
/// of posenc writes where the host says; in a graph the slot is data, which a replay finds on the device.
const SCATTER: &str = "
.version 7.0
.target sm_75
.address_size 64
.visible .entry scatter(.param .u64 cache, .param .u64 k, .param .u64 slots, .param .u32 room)
{
    .reg .u32 %b, %h, %heads, %t, %words, %slot, %room, %row, %from, %to, %value;
    .reg .u64 %cache, %k, %slots, %at;
    ld.param.u64 %cache, [cache];
    ld.param.u64 %k, [k];
    ld.param.u64 %slots, [slots];
    ld.param.u32 %room, [room];
    mov.u32 %h, %ctaid.x;
    mov.u32 %b, %ctaid.y;
    mov.u32 %heads, %nctaid.x;
    mov.u32 %t, %tid.x;
    mov.u32 %words, %ntid.x;
    mad.wide.u32 %at, %b, 4, %slots;
    ld.global.u32 %slot, [%at];
    mad.lo.u32 %row, %b, %heads, %h;
    mad.lo.u32 %from, %row, %words, %t;
    mad.wide.u32 %at, %from, 4, %k;
    ld.global.u32 %value, [%at];
    mad.lo.u32 %to, %row, %room, %slot;
    mad.lo.u32 %to, %to, %words, %t;
    mad.wide.u32 %at, %to, 4, %cache;
    st.global.u32 [%at], %value;
    ret;
}";

/// One layer on the device: its plans, its cache, and what a step's matrix products write.
struct DeviceLayer {
    rope: RopePlan<bf16>,
    softmax: SoftmaxPlan<bf16>,
    cache: CudaSlice<bf16>,
    q: CudaSlice<bf16>,
    k: CudaSlice<bf16>,
    scores: CudaSlice<bf16>,
}

/// One layer on the host: its specs, and what the cache must hold, with how far off an element may be.
struct HostLayer {
    rope: Rope,
    softmax: Softmax,
    cache: Vec<f64>,
    bound: Vec<f64>,
}

impl HostLayer {
    fn new(layer: &Layer) -> Result<Self> {
        let rope = layer.rope.clone().context("a layer without RoPE")?;
        let causal = Softmax::causal((layer.logit_scale / (DIM as f64).sqrt()) as f32);
        let left = (layer.label == "sliding_attention").then_some(WINDOW as u32 - 1);
        let zeros = vec![0.0; CACHE.elements()?];
        Ok(Self { rope, softmax: Softmax { left, ..causal }, cache: zeros.clone(), bound: zeros })
    }

    /// Rotates keys of one sequence by the reference, into the cache from `slot` on.
    fn store(&mut self, k: &[bf16], shape: &Heads, sequence: usize, slot: usize) -> Result<()> {
        let positions: Vec<i64> = (0..shape.tokens).map(|t| (slot + t) as i64).collect();
        let expected = self.rope.expect(k, shape, &positions[..], Direction::Forward)?;
        for token in 0..shape.tokens {
            for head in 0..shape.heads {
                let (to, from) = (CACHE.index(sequence, slot + token, head, 0), shape.index(0, token, head, 0));
                self.cache[to..to + DIM].copy_from_slice(&expected.want[from..from + DIM]);
                self.bound[to..to + DIM].copy_from_slice(&expected.bound[from..from + DIM]);
            }
        }
        Ok(())
    }

    /// The products of rotated queries with the cached keys: the engine's matrix product.
    fn scores(&self, q: &[f64], lengths: &[usize; BATCH]) -> Vec<bf16> {
        // Beyond a sequence's length is what memory happens to hold.
        let mut scores = vec![bf16::NAN; SCORES.batch * SCORES.heads * SLOTS];
        for (i, score) in scores.iter_mut().enumerate() {
            let (key, head, sequence) = (i % SLOTS, i / SLOTS % Q_HEADS, i / SLOTS / Q_HEADS);
            if key < lengths[sequence] {
                let q = &q[Q.index(sequence, 0, head, 0)..][..DIM];
                let k = &self.cache[CACHE.index(sequence, key, head / (Q_HEADS / KV_HEADS), 0)..][..DIM];
                *score = bf16::from_f64(q.iter().zip(k).map(|(q, k)| q * k).sum());
            }
        }
        scores
    }
}

/// All layers of a step, as a graph: queries and keys in one kernel, the keys into their slots, the softmax in place.
fn capture(
    stream: &Arc<CudaStream>,
    layers: &mut [DeviceLayer],
    scatter: &CudaFunction,
    positions: &CudaSlice<i32>,
    lengths: &CudaSlice<i32>,
) -> Result<CudaGraph> {
    stream.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    for layer in layers {
        // One token of each sequence, at the position that the device holds.
        layer.rope.rotate(Q.of_mut(&mut layer.q), K.of_mut(&mut layer.k), Positions::starts(positions))?;
        let (room, blocks) = (SLOTS as u32, (KV_HEADS as u32, BATCH as u32, 1));
        let config = LaunchConfig { grid_dim: blocks, block_dim: (DIM as u32 / 2, 1, 1), shared_mem_bytes: 0 };
        let mut launch = stream.launch_builder(scatter);
        launch.arg(&mut layer.cache).arg(&layer.k).arg(positions).arg(&room);
        // SAFETY: the arguments are those of SCATTER; every slot is below SLOTS.
        unsafe { launch.launch(config) }?;
        // The engine's product of queries and cached keys stands here: it writes `scores`.
        let places = Places::bottom_right().key_lengths(lengths);
        layer.softmax.apply(SCORES.of_mut(&mut layer.scores), &Inputs::at(places))?;
    }
    stream.end_capture(Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH)?.context("an empty graph")
}

pub(crate) fn main() -> Result<()> {
    let model = ModelRope::from_hf(CONFIG)?;
    print!("{}", model.describe());
    let count = model.layers().context("layers")?;
    let mut host = (0..count).map(|i| HostLayer::new(model.layer(i)?)).collect::<Result<Vec<_>>>()?;

    match Gpu::open(0) {
        Ok(_) => {}
        Err(error @ (Error::NoDevice(_) | Error::NoKernels)) => {
            println!("there is nothing to run on: {error}");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    }
    let context = CudaContext::new(0)?;
    // SAFETY: a buffer is used on another stream only behind a `join`.
    unsafe { context.disable_event_tracking() };
    let streams = [context.new_stream()?, context.new_stream()?];
    let stream = &streams[0];
    let gpu = Gpu::new(stream)?;
    let scatter = context.load_module(Ptx::from_src(SCATTER))?.load_function("scatter")?;
    let mut layers = Vec::new();
    for layer in &host {
        layers.push(DeviceLayer {
            rope: RopePlan::new(&gpu, &layer.rope)?,
            softmax: SoftmaxPlan::new(&gpu, &layer.softmax, Bias::None)?,
            cache: stream.alloc_zeros(CACHE.elements()?)?,
            q: stream.alloc_zeros(Q.elements()?)?,
            k: stream.alloc_zeros(K.elements()?)?,
            scores: stream.alloc_zeros(SCORES.elements()?)?,
        });
    }

    // Prompts: each sequence's keys are rotated from where they are into its part of the cache, each on a stream of its own.
    let mut numbers = Numbers(1);
    streams[1].join(stream)?;
    for (sequence, (&tokens, stream)) in PROMPTS.iter().zip(&streams).enumerate() {
        let shape = Heads::thd(tokens, KV_HEADS, DIM);
        let part = Heads { batch: 1, tokens, ..CACHE }.at(CACHE.index(sequence, 0, 0, 0));
        for (layer, host) in layers.iter_mut().zip(&mut host) {
            let k = numbers.take(shape.elements()?);
            let there = stream.clone_htod(&k)?;
            let out = part.of_mut(&mut layer.cache);
            layer.rope.on(stream)?.rotate(shape.of(&there).to(out), None, Positions::counted())?;
            host.store(&k, &shape, sequence, 0)?;
        }
    }
    stream.join(&streams[1])?;

    // Steps: what changes is on the device, and the graph stays.
    let mut lengths = PROMPTS;
    let (mut positions_there, mut lengths_there) = (stream.alloc_zeros(BATCH)?, stream.alloc_zeros(BATCH)?);
    stream.synchronize()?;
    let graph = capture(stream, &mut layers, &scatter, &positions_there, &lengths_there)?;
    for _ in 0..STEPS {
        let positions = lengths.map(|length| length as i64);
        stream.memcpy_htod(&positions.map(|position| position as i32), &mut positions_there)?;
        lengths = lengths.map(|length| length + 1);
        stream.memcpy_htod(&lengths.map(|length| length as i32), &mut lengths_there)?;
        let mut expected = Vec::new();
        for (layer, host) in layers.iter_mut().zip(&mut host) {
            let (q, k) = (numbers.take(Q.elements()?), numbers.take(K.elements()?));
            stream.memcpy_htod(&q, &mut layer.q)?;
            stream.memcpy_htod(&k, &mut layer.k)?;
            for (sequence, k) in k.chunks_exact(KV_HEADS * DIM).enumerate() {
                host.store(k, &Heads::thd(1, KV_HEADS, DIM), sequence, positions[sequence] as usize)?;
            }
            let rotated = host.rope.expect(&q, &Q, Positions::starts(&positions[..]), Direction::Forward)?;
            let scores = host.scores(&rotated.want, &lengths);
            stream.memcpy_htod(&scores, &mut layer.scores)?;
            let keys = lengths.map(|length| length as i32);
            let places = Places { key_lengths: Some(&keys[..]), ..Places::bottom_right() };
            expected.push((rotated, host.softmax.expect(&scores, &SCORES, &Inputs::at(places))?));
        }
        graph.launch()?;
        for (layer, (rotated, probabilities)) in layers.iter().zip(&expected) {
            assert_close(&stream.clone_dtoh(&layer.q)?, &rotated.want, |i| rotated.bound[i]);
            assert_close(&stream.clone_dtoh(&layer.scores)?, &probabilities.want, |i| probabilities.bound[i]);
        }
    }
    for (layer, host) in layers.iter().zip(&host) {
        let cache = stream.clone_dtoh(&layer.cache)?;
        assert_close(&cache, &host.cache, |i| host.bound[i]);
        let written = cache.chunks_exact(DIM).filter(|token| token.iter().any(|x| *x != bf16::ZERO)).count();
        ensure!(written == KV_HEADS * lengths.iter().sum::<usize>(), "{written} cached keys");
    }
    println!(
        "{STEPS} steps of {count} layers from one graph on {gpu:?}: queries, cache and probabilities are the reference's"
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
