//! The softmax with ALiBi of ggml beside ours. ggml has f32 logits alone, and reads distances from a mask of f16.

use std::rc::Rc;

use anyhow::{Result, ensure};
use cudarc::driver::DevicePtr;
use half::{bf16, f16};
use posenc::attend::Inputs;
use posenc::{Alibi, Bias, Logits, Scalar, Softmax, SoftmaxPlan};
use posenc_benches::support::values;

use crate::driver::Argument;
use crate::driver::Argument4or8::{Eight, Four};
use crate::{Bench, Call, Case};

const SCALE: f32 = 0.125;

/// Logits [heads, queries, keys] whose last query stands at the last key.
struct Data {
    heads: usize,
    queries: usize,
    keys: usize,
    causal: bool,
}

const CASES: [(usize, usize, usize, bool); 8] = [
    (16, 1, 1024, false),
    (16, 64, 1024, false),
    (16, 512, 1024, true),
    (16, 512, 512, true),
    (16, 1, 8192, false),
    (16, 64, 8192, false),
    (16, 128, 128, true),
    (16, 1, 131_072, false),
];

impl Data {
    fn x<T: Scalar>(&self) -> Vec<T> {
        values(1, self.heads * self.queries * self.keys)
    }

    /// How far a key is from a query; infinitely, if it must not be seen.
    fn distance(&self, query: usize, key: usize) -> f64 {
        let distance = key as f64 - (query + self.keys - self.queries) as f64;
        if self.causal && distance > 0.0 { f64::NEG_INFINITY } else { -distance.abs() }
    }

    /// Compares the first and the last row of each head with f64.
    fn verify<T: Scalar>(&self, x: &[T], got: &[T]) -> Result<()> {
        for (head, query) in (0..self.heads).flat_map(|head| [(head, 0), (head, self.queries - 1)]) {
            let row = (head * self.queries + query) * self.keys;
            let slope = (-8.0 * (head + 1) as f64 / self.heads as f64).exp2();
            let logit = |key: usize| x[row + key].to_f64() * f64::from(SCALE) + slope * self.distance(query, key);
            let most = (0..self.keys).map(logit).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = (0..self.keys).map(|key| (logit(key) - most).exp()).sum();
            for key in 0..self.keys {
                let (got, want) = (got[row + key].to_f64(), (logit(key) - most).exp() / sum);
                ensure!((got - want).abs() <= 0.01 / sum, "key {key} of query {query}, head {head}: {got}, not {want}");
            }
        }
        Ok(())
    }

    fn ours<T: Scalar>(&self, bench: &Bench) -> Result<()> {
        let slopes = Alibi::new(self.heads).slopes()?;
        let spec = if self.causal { Softmax::causal(SCALE) } else { Softmax::new(SCALE) };
        let plan = SoftmaxPlan::<T>::new(&bench.gpu, &spec, Bias::Slopes(&slopes))?;
        let before = self.x::<T>();
        let mut x = bench.stream.clone_htod(&before)?;
        let shape = Logits::bhqk(1, self.heads, self.queries, self.keys);
        bench.begin();
        plan.apply(shape.of_mut(&mut x), &Inputs::default())?;
        bench.stream.synchronize()?;
        self.verify(&before, &bench.stream.clone_dtoh(&x)?)
    }

    fn ggml(&self, bench: &Bench) -> Result<()> {
        let module = bench.module("ggml")?;
        let (queries, keys) = (self.queries, self.keys);
        let before = self.x::<f32>();
        let x = bench.stream.clone_htod(&before)?;
        let out = bench.stream.alloc_zeros::<f32>(before.len())?;
        let cells = (0..queries).flat_map(|query| (0..keys).map(move |key| (query, key)));
        let mask: Vec<f16> = cells.map(|(query, key)| f16::from_f64(self.distance(query, key))).collect();
        let mask = bench.stream.clone_htod(&mask)?;
        // Heads up to a power of two have slopes of one base, the others of its root.
        let power = 1u32 << self.heads.ilog2();
        let base = |top: f64| ((-top / f64::from(power)).exp2() as f32).to_bits();
        let n = |n: usize| Eight(n as u64);
        let parameters = Argument::structure(&[
            n(self.heads),
            Four(power),
            n(keys),
            n(self.heads * queries),
            n(queries),
            n(keys),
            n(queries),
            n(self.heads),
            n(1),
            n(2 * keys),
            n(2 * keys * queries),
            n(0),
            n(1),
            n(1),
            Four(SCALE.to_bits()),
            Four(8f32.to_bits()),
            Four(base(8.0)),
            Four(base(4.0)),
        ]);
        let block = keys.next_power_of_two().clamp(32, 1024) as u32;
        // A row and a word for each warp in shared memory, if they fit.
        let held = (keys + 32) * 4 <= 227 << 10;
        let templates = if (32..=4096).contains(&keys) && keys.is_power_of_two() {
            format!("ILb1ELi{keys}ELi{}E6__half", keys.min(1024))
        } else {
            format!("ILb{}ELi0ELi0E6__half", u8::from(held))
        };
        let entry = module.entry(&["soft_max_f32", &templates])?;
        let [from, masked, to] =
            [x.device_ptr(&bench.stream).0, mask.device_ptr(&bench.stream).0, out.device_ptr(&bench.stream).0];
        let mut arguments = [from.into(), masked.into(), 0u64.into(), to.into(), parameters];
        let shared = if held { (keys as u32 + 32) * 4 } else { 128 };
        bench.begin();
        module.launch(bench, entry, ([queries as u32, self.heads as u32, 1], [block, 1, 1], shared), &mut arguments)?;
        self.verify(&before, &bench.stream.clone_dtoh(&out)?)
    }
}

/// Every shape, of f32 with ggml.
pub fn cases() -> impl Iterator<Item = Case<'static>> {
    CASES.into_iter().map(|(heads, queries, keys, causal)| {
        let data = Rc::new(Data { heads, queries, keys, causal });
        let elements = (heads * queries * keys) as u64;
        let with = |call: fn(&Data, &Bench) -> Result<()>| -> Call<'static> {
            let data = data.clone();
            Box::new(move |bench| call(&data, bench))
        };
        let peers = vec![
            ("posenc f32", None, with(Data::ours::<f32>)),
            ("posenc bf16", None, with(Data::ours::<bf16>)),
            ("ggml f32", Some("ggml"), with(Data::ggml)),
        ];
        let kind = if causal { "causal-softmax" } else { "softmax" };
        Case { name: format!("{kind}/alibi/{heads}x{queries}x{keys}"), elements, bytes: 8 * elements, peers }
    })
}
