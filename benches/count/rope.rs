//! RoPE of queries and keys, one layer of one call, by everybody's kernels.

use std::rc::Rc;

use anyhow::{Result, ensure};
use cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr};
use half::{bf16, f16};
use posenc::{Heads, Pairing, Positions, Rope, RopePlan, Scalar};
use posenc_benches::support::{bits, values};

use crate::driver::Argument4or8::{Eight, Four};
use crate::driver::{Argument, Module};
use crate::{Absent, Bench, Call, Case, arguments};

const BASE: f64 = 500_000.0;
/// Rows of tables. An f32 angle is right here within bf16's rounding: nobody loses by angles.
const POSITIONS: usize = 4096;

/// A model's heads.
#[derive(Clone, Copy)]
struct Model {
    name: &'static str,
    q_heads: usize,
    k_heads: usize,
    dim: usize,
    rotary: usize,
    interleaved: bool,
}

const LLAMA: Model = Model { name: "llama-3-8b", q_heads: 32, k_heads: 8, dim: 128, rotary: 128, interleaved: false };

const MODELS: [(Model, &[usize]); 5] = [
    (LLAMA, &[1, 8, 64, 256, 512, 1024, 2048]),
    (Model { name: "llama-3-8b-tp8", q_heads: 4, k_heads: 1, ..LLAMA }, &[1, 64, 512, 2048]),
    // Of which times of FlashInfer and SGLang are published.
    (Model { name: "llama-3-70b-tp8", q_heads: 8, k_heads: 1, ..LLAMA }, &[1, 8, 64, 256, 512, 1024, 2048, 4096, 8192]),
    (Model { name: "glm-4-9b", k_heads: 2, rotary: 64, interleaved: true, ..LLAMA }, &[1, 64, 512, 2048]),
    (Model { name: "mla", q_heads: 128, k_heads: 1, dim: 64, rotary: 64, interleaved: true }, &[1, 64, 512, 2048]),
];

/// Queries, keys and positions, and what they should become.
struct Data {
    model: Model,
    tokens: usize,
    /// of queries and keys
    x: [Vec<f32>; 2],
    positions: Vec<i32>,
    frequencies: Vec<f64>,
}

/// Device memory by its address.
fn at<T: DeviceRepr>(bench: &Bench, slice: &CudaSlice<T>) -> u64 {
    slice.device_ptr(&bench.stream).0
}

impl Data {
    fn new(model: Model, tokens: usize) -> Self {
        let x = [(1, model.q_heads), (2, model.k_heads)].map(|(seed, heads)| {
            values::<bf16>(seed, tokens * heads * model.dim).into_iter().map(bf16::to_f32).collect::<Vec<_>>()
        });
        let positions = (0..tokens as u64).map(|i| (bits(7, i) % POSITIONS as u64) as i32).collect();
        let pairs = model.rotary / 2;
        let frequencies = (0..pairs).map(|i| BASE.powf(-(i as f64) / pairs as f64)).collect();
        Self { model, tokens, x, positions, frequencies }
    }

    fn heads(&self) -> [usize; 2] {
        [self.model.q_heads, self.model.k_heads]
    }

    /// Cosines or sines of every position of a row, as `value` makes them of an angle.
    fn table(&self, positions: impl Iterator<Item = usize>, row: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f32> {
        let angles = |position: usize| self.frequencies.iter().map(|f| position as f64 * f).collect::<Vec<_>>();
        positions.flat_map(|position| row(&angles(position))).map(|value| value as f32).collect()
    }

    /// Cosines and then sines of each position: what serving frameworks keep.
    fn cache(&self) -> Vec<f32> {
        let row = |angles: &[f64]| angles.iter().map(|a| a.cos()).chain(angles.iter().map(|a| a.sin())).collect();
        self.table(0..POSITIONS, row)
    }

    /// A row for each token in order: what a kernel without positions takes.
    fn ordered(&self, row: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f32> {
        self.table(self.positions.iter().map(|p| *p as usize), row)
    }

    fn upload<T: Scalar>(&self, bench: &Bench) -> Result<[CudaSlice<T>; 2]> {
        let up =
            |x: &Vec<f32>| bench.stream.clone_htod(&x.iter().map(|x| T::from_f64((*x).into())).collect::<Vec<T>>());
        Ok([up(&self.x[0])?, up(&self.x[1])?])
    }

    /// Compares a result with f64: within a fiftieth of the pair's size, for tables and arithmetic of bf16.
    fn verify<T: Scalar>(&self, bench: &Bench, results: &[CudaSlice<T>; 2]) -> Result<()> {
        for ((x, result), heads) in self.x.iter().zip(results).zip(self.heads()) {
            let got = bench.stream.clone_dtoh(result)?;
            let Model { dim, rotary, interleaved, .. } = self.model;
            for (row, position) in (0..self.tokens * heads).map(|row| (row, self.positions[row / heads])) {
                for (pair, frequency) in self.frequencies.iter().enumerate() {
                    let [i, j] = if interleaved { [2 * pair, 2 * pair + 1] } else { [pair, pair + rotary / 2] };
                    let [i, j] = [row * dim + i, row * dim + j];
                    let (a, b) = (f64::from(x[i]), f64::from(x[j]));
                    let (sin, cos) = (f64::from(position) * frequency).sin_cos();
                    let error = (got[i].to_f64() - (a * cos - b * sin))
                        .abs()
                        .max((got[j].to_f64() - (a * sin + b * cos)).abs());
                    ensure!(error <= (a.abs() + b.abs()) / 50.0, "pair {pair} of row {row} is off by {error:.3}");
                }
            }
        }
        Ok(())
    }

    fn ours(&self, bench: &Bench) -> Result<()> {
        let Model { dim, rotary, interleaved, .. } = self.model;
        let pairing = if interleaved { Pairing::Interleaved } else { Pairing::Half };
        let rope = Rope { pairing, ..Rope::new(rotary, BASE) };
        let plan = RopePlan::<bf16>::new(&bench.gpu, &rope)?;
        let [mut q, mut k] = self.upload::<bf16>(bench)?;
        let ids = bench.stream.clone_htod(&self.positions)?;
        let [q_heads, k_heads] = self.heads().map(|heads| Heads::thd(self.tokens, heads, dim));
        bench.begin();
        plan.rotate(q_heads.of_mut(&mut q), k_heads.of_mut(&mut k), Positions::ids(&ids))?;
        bench.stream.synchronize()?;
        self.verify(bench, &[q, k])
    }

    /// FlashInfer's launchers: a block for eight tokens and a head, until the tokens alone fill the device; then a thread walks
    /// heads, all of them or a share that its cost model chooses.
    fn flashinfer(&self, bench: &Bench, table: bool) -> Result<()> {
        let Model { q_heads, k_heads, dim, rotary, interleaved, .. } = self.model;
        let module = bench.module("flashinfer")?;
        let [q, k] = self.upload::<bf16>(bench)?;
        let ids = bench.stream.clone_htod(&self.positions)?;
        let cache = bench.stream.clone_htod(&self.cache())?;
        let lanes = dim as u32 / 8;
        let rows = 128 / lanes;
        let blocks = (self.tokens as u32).div_ceil(rows);
        let heads = (q_heads + k_heads) as u32;
        let of = format!("ILb{}ELj{dim}ELj8ELj{lanes}E", u8::from(interleaved));
        let stem = if table { "RotaryPosIdsCosSinCache" } else { "RotaryPosIds" };
        let entry = |kind: &str, split: &str| module.entry(&[&format!("{stem}{kind}{of}"), split]).map(str::to_string);
        let (by_head, whole, split) =
            (entry("HeadParallelismKernel", "")?, entry("Kernel", "Lb0EEE")?, entry("Kernel", "Lb1EEE").ok());
        let held = |entry: &str| 132 * module.resident(entry, 128);
        let (chosen, groups) = if blocks < held(&whole) {
            (by_head, heads)
        } else {
            // waves x (heads of a thread + 1); what is undivided keeps a tenth of grace where it takes more than one wave
            let cost = |held: u32, groups: u32| (blocks * groups).div_ceil(held) * (heads.div_ceil(groups) + 1);
            match split {
                Some(split) => {
                    let best = (1..=heads.min(128)).min_by_key(|groups| cost(held(&split), *groups)).unwrap_or(1);
                    let (one, many) = (cost(held(&whole), 1), cost(held(&split), best));
                    let keep = if blocks > held(&whole) { one * 10 <= many * 11 } else { one <= many };
                    if keep { (whole, 1) } else { (split, best) }
                }
                None => (whole, 1),
            }
        };
        let size = [self.tokens, q_heads, k_heads, rotary].map(|n| n as u32);
        let strides = [q_heads * dim, dim, k_heads * dim, dim].map(|n| n as u64);
        let mut arguments: Vec<Argument> = [&q, &k, &q, &k].map(|x| at(bench, x).into()).into();
        arguments.extend(table.then(|| at(bench, &cache).into()));
        arguments.push(at(bench, &ids).into());
        arguments.extend(size.map(Argument::from));
        arguments.extend(strides.iter().chain(&strides).map(|n| Argument::from(*n)));
        if !table {
            arguments.extend([0.0, 0.0, 1.0, (1.0 / BASE) as f32].map(Argument::from));
        }
        bench.begin();
        module.launch(bench, &chosen, ([blocks, groups, 1], [lanes, rows, 1], 0), &mut arguments)?;
        self.verify(bench, &[q, k])
    }

    /// SGLang's: as many blocks as the device holds, whose groups of threads walk heads of tokens.
    fn sglang(&self, bench: &Bench) -> Result<()> {
        let Model { q_heads, k_heads, dim, rotary, interleaved, .. } = self.model;
        let module = bench.module("sglang")?;
        let [q, k] = self.upload::<bf16>(bench)?;
        let ids = bench.stream.clone_htod(&self.positions)?;
        let cache = bench.stream.clone_htod(&self.cache())?;
        let threads = (rotary / 8).next_power_of_two();
        let entry = module.entry(&[&format!("ILb{}ELl{rotary}E", u8::from(!interleaved))])?;
        // The address of keys is that of the head behind the last query's.
        let ahead = (q_heads * dim * 2) as u64;
        let mut arguments = [Argument::structure(&[
            Eight(at(bench, &q)),
            Eight(at(bench, &k) - ahead),
            Eight(at(bench, &cache)),
            Eight(at(bench, &ids)),
            Eight(ahead),
            Eight((k_heads * dim * 2) as u64),
            Eight((dim * 2) as u64),
            Four(q_heads as u32),
            Four(k_heads as u32),
            Four(self.tokens as u32),
        ])];
        let wanted = ((q_heads + k_heads) * self.tokens).div_ceil(128 / threads) as u32;
        let grid = wanted.min(132 * module.resident(entry, 128));
        bench.begin();
        module.launch(bench, entry, ([grid, 1, 1], [128, 1, 1], 0), &mut arguments)?;
        self.verify(bench, &[q, k])
    }

    /// vLLM's: a block for a token; its table has the tensors' type.
    fn vllm(&self, bench: &Bench) -> Result<()> {
        let Model { q_heads, k_heads, dim, rotary, interleaved, .. } = self.model;
        let module = bench.module("vllm")?;
        let [q, k] = self.upload::<bf16>(bench)?;
        let ids = bench.stream.clone_htod(&self.positions.iter().map(|p| i64::from(*p)).collect::<Vec<_>>())?;
        let cache = bench.stream.clone_htod(&self.cache().into_iter().map(bf16::from_f32).collect::<Vec<_>>())?;
        let entry = module.entry(&["rotary_embedding_kernel", if interleaved { "Lb0E" } else { "Lb1E" }])?;
        let block = (q_heads * rotary / 2).min(512) as u32;
        let arguments = arguments![
            at(bench, &ids),
            at(bench, &q),
            at(bench, &k),
            at(bench, &cache),
            rotary as u32,
            (q_heads * dim) as u64,
            (k_heads * dim) as u64,
            dim as u64,
            q_heads as u32,
            k_heads as u32,
            dim as u32,
            0u64,
            false,
        ];
        bench.begin();
        module.launch(bench, entry, ([self.tokens as u32, 1, 1], [block, 1, 1], 0), arguments)?;
        self.verify(bench, &[q, k])
    }

    /// candle's: out of place, a tensor a launch, cosines and sines of the tokens in order and in the tensors' type.
    fn candle(&self, bench: &Bench) -> Result<()> {
        let Model { dim, rotary, interleaved, .. } = self.model;
        if interleaved || dim != rotary {
            return Err(Absent::None("its kernel for [tokens, heads, dim] rotates whole heads in halves").into());
        }
        let module = bench.module("candle")?;
        let x = self.upload::<bf16>(bench)?;
        let narrow = |row: fn(f64) -> f64| -> Vec<bf16> {
            let table = self.ordered(|angles| angles.iter().map(|a| row(*a)).collect());
            table.into_iter().map(bf16::from_f32).collect()
        };
        let [cos, sin] = [bench.stream.clone_htod(&narrow(f64::cos))?, bench.stream.clone_htod(&narrow(f64::sin))?];
        let out = [bench.stream.alloc_zeros::<bf16>(x[0].len())?, bench.stream.alloc_zeros::<bf16>(x[1].len())?];
        let entry = module.entry(&["rope_thd_bf16"])?;
        bench.begin();
        for ((x, out), heads) in x.iter().zip(&out).zip(self.heads()) {
            let grid = (x.len() as u32 / 2).div_ceil(1024);
            let size = [1, self.tokens as u32, heads as u32, dim as u32, 0].map(Argument::from);
            let mut arguments: Vec<Argument> =
                [at(bench, x), at(bench, &cos), at(bench, &sin), at(bench, out)].map(Argument::from).into();
            arguments.extend(size);
            module.launch(bench, entry, ([grid, 1, 1], [1024, 1, 1], 0), &mut arguments)?;
        }
        self.verify(bench, &out)
    }

    /// ggml's: a block for a head of a token, angles made in place, a tensor a launch. It has f16, not bf16.
    fn ggml(&self, bench: &Bench) -> Result<()> {
        let Model { dim, rotary, interleaved, .. } = self.model;
        let module = bench.module("ggml")?;
        let x = self.upload::<f16>(bench)?;
        let ids = bench.stream.clone_htod(&self.positions)?;
        let kind = if interleaved { "rope_norm" } else { "rope_neox" };
        let entry = module.entry(&[kind, "ILb1ELb0E6__halfS"])?;
        let scale = BASE.powf(-2.0 / rotary as f64) as f32;
        bench.begin();
        for (x, heads) in x.iter().zip(self.heads()) {
            let rows = self.tokens * heads;
            let n = |n: usize| n as u32;
            let strides = [dim, heads * dim, rows * dim].map(n);
            let mut arguments: Vec<Argument> = [at(bench, x); 2].map(Argument::from).into();
            arguments
                .extend([dim, heads, self.tokens].map(n).into_iter().chain(strides).chain(strides).map(Argument::from));
            arguments.extend([n(rotary), 0].map(Argument::from));
            arguments.push(at(bench, &ids).into());
            arguments.extend([1.0f32, 0.0, 1.0].map(Argument::from));
            // where a correction begins and ends; there is none
            arguments.push(0u64.into());
            arguments.push(scale.into());
            arguments.extend([0u64, 0].map(Argument::from));
            arguments.push(0u32.into());
            arguments.push(true.into());
            let grid = [n(rows), n(dim).div_ceil(512), 1];
            module.launch(bench, entry, (grid, [1, 256, 1], 0), &mut arguments)?;
        }
        self.verify(bench, &x)
    }

    /// TransformerEngine's: out of place, a tensor a launch, f32 angles of the tokens in order.
    fn transformer_engine(&self, bench: &Bench) -> Result<()> {
        let Model { dim, rotary, interleaved, .. } = self.model;
        let module = bench.module("transformer_engine")?;
        let x = self.upload::<bf16>(bench)?;
        let angles = self.ordered(|angles| match interleaved {
            true => angles.iter().flat_map(|a| [*a, *a]).collect(),
            false => [angles, angles].concat(),
        });
        let angles = bench.stream.clone_htod(&angles)?;
        let out = [bench.stream.alloc_zeros::<bf16>(x[0].len())?, bench.stream.alloc_zeros::<bf16>(x[1].len())?];
        let entry = module.entry(&["fused_rope_forward_kernel"])?;
        bench.begin();
        for ((x, out), heads) in x.iter().zip(&out).zip(self.heads()) {
            let n = |n: usize| n as u32;
            let row = heads * dim;
            let mut arguments: Vec<Argument> = vec![
                at(bench, x).into(),
                0u64.into(),
                at(bench, &angles).into(),
                0u64.into(),
                at(bench, out).into(),
                interleaved.into(),
            ];
            let strides = [row, row, dim, 1];
            let size = [1, 0, self.tokens, heads, dim, rotary];
            arguments.extend(size.into_iter().chain(strides).chain(strides).map(|value| Argument::from(n(value))));
            let block = [32, if heads < 16 { 4 } else { 8 }, 1];
            module.launch(bench, entry, ([n(self.tokens), 1, 1], block, 8 * n(rotary)), &mut arguments)?;
        }
        self.verify(bench, &out)
    }

    /// Liger's Triton kernel: a program for a token; cosines and sines of the tokens in order.
    fn liger<T: Scalar>(&self, bench: &Bench) -> Result<()> {
        let Model { q_heads, k_heads, dim, rotary, interleaved, .. } = self.model;
        if interleaved || dim != rotary {
            return Err(Absent::None("it rotates pairs in halves").into());
        }
        let (module, threads, shared) = self.triton(bench, &format!("liger_{}_{q_heads}_{k_heads}_{dim}", T::NAME))?;
        let [q, k] = self.upload::<bf16>(bench)?;
        let table = |value: fn(f64) -> f64| -> Vec<T> {
            let row = |angles: &[f64]| [angles, angles].concat().into_iter().map(value).collect();
            self.ordered(row).into_iter().map(|x| T::from_f64(x.into())).collect()
        };
        let [cos, sin] = [bench.stream.clone_htod(&table(f64::cos))?, bench.stream.clone_htod(&table(f64::sin))?];
        let n = |n: usize| n as u32;
        let arguments = arguments![
            at(bench, &q),
            n(q_heads * dim),
            at(bench, &k),
            n(k_heads * dim),
            at(bench, &cos),
            n(rotary),
            at(bench, &sin),
            n(rotary),
            n(self.tokens),
            0u64,
            0u64,
        ];
        bench.begin();
        let entry = module.entry(&["_triton_rope"])?;
        module.launch(bench, entry, ([n(self.tokens), 1, 1], [threads, 1, 1], shared), arguments)?;
        self.verify(bench, &[q, k])
    }

    /// flash-attn's Triton kernel: a program for two heads of eight tokens (four of wider heads), a tensor a launch.
    fn flash_attn(&self, bench: &Bench) -> Result<()> {
        let Model { dim, rotary, interleaved, .. } = self.model;
        let name = format!("flash_attn_{dim}_{rotary}_{}", u8::from(interleaved));
        let (module, threads, shared) = self.triton(bench, &name)?;
        let x = self.upload::<bf16>(bench)?;
        let table = |value: fn(f64) -> f64| self.ordered(|angles| angles.iter().map(|a| value(*a)).collect());
        let [cos, sin] = [bench.stream.clone_htod(&table(f64::cos))?, bench.stream.clone_htod(&table(f64::sin))?];
        let entry = module.entry(&["rotary_kernel"])?;
        bench.begin();
        for (x, heads) in x.iter().zip(self.heads()) {
            let n = |n: usize| n as u32;
            let rows = if rotary <= 128 { 8 } else { 4 };
            let strides = [self.tokens * heads * dim, heads * dim, dim];
            let mut arguments: Vec<Argument> =
                [at(bench, x), at(bench, x), at(bench, &cos), at(bench, &sin)].map(Argument::from).into();
            let size = [0, self.tokens, heads, self.tokens];
            arguments.extend(size.into_iter().chain(strides).chain(strides).map(|value| Argument::from(n(value))));
            arguments.extend([0u64, 0].map(Argument::from));
            let grid = [n(heads).div_ceil(2), n(self.tokens).div_ceil(rows), 1];
            module.launch(bench, entry, (grid, [threads, 1, 1], shared), &mut arguments)?;
        }
        self.verify(bench, &x)
    }

    /// A Triton kernel, its threads and bytes of shared memory.
    fn triton(&self, bench: &Bench, name: &str) -> Result<(Module, u32, u32)> {
        let module = bench.module(name)?;
        let launch = bench.text(&format!("{name}.launch")).unwrap_or_default();
        let mut numbers = launch.split_whitespace().filter_map(|word| word.parse::<u32>().ok());
        let (Some(warps), Some(shared)) = (numbers.next(), numbers.next()) else {
            anyhow::bail!("{name}.launch is {launch:?}, it must hold warps and bytes of shared memory")
        };
        Ok((module, 32 * warps, shared))
    }
}

/// Every shape with everybody.
pub fn cases() -> impl Iterator<Item = Case<'static>> {
    MODELS.iter().flat_map(|(model, sizes)| sizes.iter().map(|tokens| case(*model, *tokens)))
}

fn case(model: Model, tokens: usize) -> Case<'static> {
    let data = Rc::new(Data::new(model, tokens));
    let elements = (tokens * (model.q_heads + model.k_heads) * model.rotary) as u64;
    let with = |call: fn(&Data, &Bench) -> Result<()>| -> Call<'static> {
        let data = data.clone();
        Box::new(move |bench| call(&data, bench))
    };
    let peers = vec![
        ("posenc", None, with(Data::ours)),
        ("FlashInfer table", Some("flashinfer"), with(|data, bench| data.flashinfer(bench, true))),
        ("FlashInfer on the fly", Some("flashinfer"), with(|data, bench| data.flashinfer(bench, false))),
        ("SGLang", Some("sglang"), with(Data::sglang)),
        ("vLLM", Some("vllm"), with(Data::vllm)),
        ("candle", Some("candle"), with(Data::candle)),
        ("ggml f16", Some("ggml"), with(Data::ggml)),
        ("TransformerEngine", Some("transformer_engine"), with(Data::transformer_engine)),
        ("Liger bf16 tables", Some("liger"), with(Data::liger::<bf16>)),
        ("Liger f32 tables", Some("liger"), with(Data::liger::<f32>)),
        ("flash-attn", Some("flash_attn"), with(Data::flash_attn)),
    ];
    Case { name: format!("rope/{}/{tokens}", model.name), elements, bytes: 4 * elements, peers }
}
