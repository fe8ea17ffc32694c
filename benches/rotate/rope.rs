//! RoPE on the shapes of real models.

use anyhow::Result;
use cudarc::driver::CudaSlice;
use half::{bf16, f16};
use posenc::gpu::Update;
use posenc::rotate::{Angles, Axes, Mixed, OutOfRange, Table, TableValues};
use posenc::{Direction, Gpu, Heads, Pairing, Positions, Rope, RopePlan, Scalar};

use crate::support::{Case, Operation, bits, compare, values};

/// How the tensors lie.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    InPlace,
    /// in place, where each call may begin before the one ahead of it has ended
    Overlap,
    Copy,
    /// queries, keys and values in one row of each token
    Packed,
    /// in place, cosines and sines from an f32 table of 131072 rows
    Table,
}

/// A model's heads.
struct Model {
    name: &'static str,
    q_heads: usize,
    k_heads: usize,
    dim: usize,
    rope: Rope,
}

fn models() -> Vec<Model> {
    let half = |name, q_heads, k_heads, dim, rotary| {
        let rope = Rope::new(rotary, 500_000.0);
        Model { name, q_heads, k_heads, dim, rope }
    };
    let mut glm = half("glm-4-9b", 32, 2, 128, 64);
    glm.rope.pairing = Pairing::Interleaved;
    let mut mla = half("deepseek-mla", 128, 1, 192, 64);
    mla.rope = Rope { pairing: Pairing::Interleaved, offset: 128, ..mla.rope };
    let mut qwen_vl = half("qwen2-vl", 28, 4, 128, 128);
    qwen_vl.rope.axes = Axes::Sections(vec![16, 24, 24]);
    let mut wan = half("wan-14b", 40, 40, 128, 128);
    wan.rope = Rope { pairing: Pairing::Interleaved, axes: Axes::Ladders(vec![22, 21, 21]), ..Rope::new(128, 1e4) };
    let mut video = half("qwen3-vl", 32, 8, 128, 128);
    video.rope.axes = Axes::Interleaved(vec![24, 20, 20]);
    let mut vision = half("vit-2d", 16, 16, 80, 80);
    vision.rope.axes = Axes::Sections(vec![20, 20]);
    let mut tail = half("deepseek-v4", 64, 1, 512, 64);
    tail.rope = Rope { pairing: Pairing::Interleaved, offset: 448, ..tail.rope };
    vec![
        half("llama-3-8b", 32, 8, 128, 128),
        half("llama-3-8b-tp8", 4, 1, 128, 128),
        half("llama-3-8b-tp2", 16, 4, 128, 128),
        half("llama-3-70b", 64, 8, 128, 128),
        half("llama-3-70b-tp8", 8, 1, 128, 128),
        half("llama-3-405b", 128, 8, 128, 128),
        half("qwen3-30b-a3b", 32, 4, 128, 128),
        half("qwen3.5", 16, 2, 256, 64),
        half("gpt-oss", 64, 8, 64, 64),
        half("gemma-3", 16, 8, 256, 256),
        half("gpt-neox-20b", 64, 64, 96, 24),
        half("pythia-160m", 12, 12, 64, 16),
        half("phi-2", 32, 32, 80, 32),
        half("phi-3", 32, 32, 96, 96),
        half("wide-head", 8, 1, 512, 512),
        half("falcon-7b", 71, 1, 64, 64),
        glm,
        mla,
        tail,
        qwen_vl,
        video,
        vision,
        wan,
        mixed("mochi", 24, 128, 3),
        mixed("vit-mixed", 12, 64, 2),
    ]
}

/// Frequencies for each axis and head.
fn mixed(name: &'static str, heads: usize, dim: usize, axes: usize) -> Model {
    let n = axes * heads * dim / 2;
    let frequencies = (0..n).map(|i| bits(11, i as u64) as f64 / u64::MAX as f64).collect();
    let angles = Angles::Mixed(Mixed { axes, heads, frequencies });
    let rope = Rope { pairing: Pairing::Interleaved, angles, ..Rope::new(dim, 1.0) };
    Model { name, q_heads: heads, k_heads: heads, dim, rope }
}

/// Every case, the headline ones first.
pub fn cases() -> Vec<Case> {
    let models = models();
    let mut cases = Vec::new();
    let llama = &models[0];
    for tokens in [1, 8, 32, 64, 128, 512, 1024, 2048, 4096, 8192, 16384, 32768, 131_072] {
        cases.push(case::<bf16>(llama, tokens, Form::InPlace, Angles::Exact));
    }
    for tokens in [1, 64, 512] {
        cases.push(case::<bf16>(llama, tokens, Form::Overlap, Angles::Exact));
    }
    for tokens in [1, 64, 1024, 8192] {
        for form in [Form::Copy, Form::Packed, Form::Table] {
            cases.push(case::<bf16>(llama, tokens, form, Angles::Exact));
        }
        cases.push(case::<bf16>(llama, tokens, Form::InPlace, Angles::HfCompat));
        cases.push(case::<f16>(llama, tokens, Form::InPlace, Angles::Exact));
        cases.push(case::<f32>(llama, tokens, Form::InPlace, Angles::Exact));
    }
    for model in &models[1..] {
        for tokens in [1, 64, 8192] {
            cases.push(case::<bf16>(model, tokens, Form::InPlace, Angles::Exact));
        }
    }
    // More than 2^31 elements: a million tokens.
    cases.push(case::<bf16>(&models[1], 1 << 20, Form::InPlace, Angles::Exact));
    // Cost against size: small heads, so that the emulator reaches many tokens; then heads.
    let small = |q_heads, k_heads, dim| Model { name: "scale", q_heads, k_heads, dim, rope: Rope::new(dim, 1e4) };
    for tokens in (0..=20).step_by(2).map(|n| 1 << n) {
        cases.push(case::<bf16>(&small(1, 1, 16), tokens, Form::InPlace, Angles::Exact));
    }
    for heads in (0..=7).map(|n| 1 << n) {
        let name = format!("rope/heads/bf16/InPlace/{heads}");
        cases.push(Case { name, ..case::<bf16>(&small(heads, 0, 64), 64, Form::InPlace, Angles::Exact) });
    }
    cases
}

const ROWS: usize = 131_072;

fn case<T: Scalar>(model: &Model, tokens: usize, form: Form, angles: Angles) -> Case {
    let mixed = matches!(model.rope.angles, Angles::Mixed(_));
    let rope = if mixed { model.rope.clone() } else { Rope { angles, ..model.rope.clone() } };
    let (q_heads, k_heads, dim) = (model.q_heads, model.k_heads, model.dim);
    let channels = if form == Form::Copy { dim } else { rope.rotary };
    let elements = (tokens * (q_heads + k_heads) * channels) as u64;
    // Tables that a plan keeps are not counted, rows of the caller's table are: one f32 cosine and sine a pair.
    let table = if form == Form::Table { tokens * rope.pairs() * 8 } else { 0 };
    let written = elements * size_of::<T>() as u64;
    let read = written + (tokens * rope.position_axes() * 4 + table) as u64;
    let source = if matches!(rope.angles, Angles::Exact | Angles::Mixed(_)) { "" } else { "/hf" };
    let name = format!("rope/{}/{}/{form:?}{source}/{tokens}", model.name, T::NAME);
    let make = move |gpu: &Gpu, sets: usize| -> Result<Box<dyn Operation>> {
        Ok(Box::new(Rotation::<T>::new(gpu, &rope, (tokens, q_heads, k_heads, dim), form, sets)?))
    };
    Case { name, elements, read, written, make: Box::new(make) }
}

struct Rotation<T> {
    plan: RopePlan<T>,
    gpu: Gpu,
    form: Form,
    q: Heads,
    k: Heads,
    positions: Vec<i64>,
    ids: CudaSlice<i32>,
    /// queries and keys; packed: the whole row, and nothing
    sets: Vec<[CudaSlice<T>; 2]>,
    /// out of place
    out: Vec<[CudaSlice<T>; 2]>,
    table: Option<CudaSlice<f32>>,
}

impl<T: Scalar> Rotation<T> {
    fn new(
        gpu: &Gpu,
        rope: &Rope,
        (tokens, q_heads, k_heads, dim): (usize, usize, usize, usize),
        form: Form,
        sets: usize,
    ) -> Result<Self> {
        let row = (q_heads + 2 * k_heads) * dim;
        let (mut q, mut k) = (Heads::thd(tokens, q_heads, dim), Heads::thd(tokens, k_heads, dim));
        if form == Form::Packed {
            (q, k) = (q.row(row), k.row(row).at(q_heads * dim));
        }
        let stream = gpu.stream();
        let spans = if form == Form::Packed { [tokens * row, 1] } else { [q.span()?, k.span()?.max(1)] };
        // Fresh memory would be one page of zeros; each set gets data of its own.
        let fill = |set: usize| -> Result<[CudaSlice<T>; 2]> {
            let data = |seed: usize, n: usize| values::<T>(seed as u64, n);
            Ok([stream.clone_htod(&data(2 * set, spans[0]))?, stream.clone_htod(&data(2 * set + 1, spans[1]))?])
        };
        let buffers = (0..sets).map(fill).collect::<Result<Vec<_>>>()?;
        let out = if form == Form::Copy { (0..sets).map(fill).collect::<Result<Vec<_>>>()? } else { Vec::new() };
        let positions: Vec<i64> =
            (0..tokens * rope.position_axes()).map(|i| (bits(7, i as u64) % ROWS as u64) as i64).collect();
        let narrow: Vec<i32> = positions.iter().map(|&position| position as i32).collect();
        let table = if form == Form::Table { Some(stream.clone_htod(&rows(rope))?) } else { None };
        Ok(Self {
            plan: RopePlan::new(&gpu.clone().overlapping(form == Form::Overlap), rope)?,
            gpu: gpu.clone(),
            form,
            q,
            k,
            positions,
            ids: stream.clone_htod(&narrow)?,
            sets: buffers,
            out,
            table,
        })
    }

    /// Compares some tokens of a result with the reference's rotation of `before`.
    fn compare(&self, before: &[T], after: &[T], heads: &Heads) -> Result<()> {
        let rope = self.plan.rope();
        let n = heads.tokens;
        let picks = (0..8u64).map(|i| bits(9, i) as usize % n).chain([0, n - 1]);
        for token in picks {
            let at = heads.index(0, token, 0, 0);
            let one = Heads { tokens: 1, offset: 0, ..*heads };
            let end = at + one.span()?;
            let positions: Vec<i64> = (0..rope.position_axes()).map(|axis| self.positions[axis * n + token]).collect();
            let expected = rope.expect(&before[at..end], &one, &positions, Direction::Forward)?;
            // Cosines and sines of the table are f32: 3e-8 more of each.
            let slack = if self.form == Form::Table { 1.2 } else { 1.0 };
            compare(&after[at..end], &expected.want, |i| slack * expected.bound[i])?;
        }
        Ok(())
    }
}

/// Rows of cosines and sines, as vLLM's cache has them.
fn rows(rope: &Rope) -> Vec<f32> {
    let mut table = Vec::with_capacity(ROWS * 2 * rope.pairs());
    let frequencies: Vec<f64> = (0..rope.pairs()).map(|pair| rope.frequency(pair)).collect();
    for position in 0..ROWS {
        let angle = |frequency: &f64| position as f64 * frequency;
        table.extend(frequencies.iter().map(|f| angle(f).cos() as f32));
        table.extend(frequencies.iter().map(|f| angle(f).sin() as f32));
    }
    table
}

impl<T: Scalar> Operation for Rotation<T> {
    fn call(&mut self, set: usize) -> posenc::Result<()> {
        let (q, k) = (self.q, self.k);
        let positions = Positions::ids(&self.ids);
        let [q_x, k_x] = &mut self.sets[set];
        let some = k.heads > 0;
        match self.form {
            Form::InPlace | Form::Overlap => {
                let k: Option<Update<_, _>> = some.then_some(k.of_mut(k_x).into());
                self.plan.rotate(q.of_mut(q_x), k, positions)
            }
            Form::Copy => {
                let [q_out, k_out] = &mut self.out[set];
                let k = k.of(k_x).to(k.of_mut(k_out));
                self.plan.rotate(q.of(q_x).to(q.of_mut(q_out)), some.then_some(k), positions)
            }
            Form::Packed => self.plan.rotate(q.of_mut(q_x), k, positions),
            Form::Table => {
                let Some(cos) = &self.table else { unreachable!("made with the form") };
                let pairs = self.plan.rope().pairs();
                let values = TableValues::F32 { cos, sin: None };
                let table = Table { values, rows: ROWS, stride: 2 * pairs, out_of_range: OutOfRange::Clamp };
                let k: Option<Update<_, _>> = some.then_some(k.of_mut(k_x).into());
                let rotation =
                    posenc::rotate::Rotation { table: Some(table), ..posenc::rotate::Rotation::at(positions) };
                self.plan.rotate(q.of_mut(q_x), k, rotation)
            }
        }
    }

    fn verify(&mut self) -> Result<()> {
        let stream = self.gpu.stream().clone();
        let read = |slice: &CudaSlice<T>| stream.clone_dtoh(slice);
        let before = [read(&self.sets[0][0])?, read(&self.sets[0][1])?];
        self.call(0)?;
        let results = if self.form == Form::Copy { &self.out[0] } else { &self.sets[0] };
        let after = [read(&results[0])?, read(&results[1])?];
        self.compare(&before[0], &after[0], &self.q)?;
        if self.form == Form::Packed {
            return self.compare(&before[0], &after[0], &self.k);
        }
        if self.k.heads == 0 {
            return Ok(());
        }
        self.compare(&before[1], &after[1], &self.k)
    }
}
