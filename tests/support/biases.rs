//! What tests of biases and of their softmax share: every form, positions on the device, golden values.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use cudarc::driver::CudaSlice;
use posenc::bias::{Fire, Kerple, KerpleKind, Sandwich, Sides, Toeplitz};
use posenc::gpu::Read;
use posenc::{Alibi, Bias, BiasPlan, Gpu, Logits, Packed, Place, Places, Scalar, T5Bias};

use crate::support::Data;

/// The committed output of tools/golden/bias.py.
pub fn golden() -> serde_json::Value {
    serde_json::from_str(include_str!("../golden/bias_hf.json")).unwrap()
}

/// f32 values that stand as bits.
pub fn bits(value: &serde_json::Value) -> Vec<f32> {
    let number = |bits: &serde_json::Value| f32::from_bits(u32::try_from(bits.as_u64().unwrap()).unwrap());
    value.as_array().unwrap().iter().map(number).collect()
}

/// The same values in f64.
pub fn double<T: Scalar>(values: &[T]) -> Vec<f64> {
    values.iter().map(|x| x.to_f64()).collect()
}

/// A fixed sequence of numbers in -1..1 (xorshift64*), the same for every run.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> f32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40;
        (high as f32 / (1u32 << 23) as f32) - 1.0
    }

    pub fn take<T: Scalar>(&mut self, count: usize, scale: f32) -> Vec<T> {
        (0..count).map(|_| T::from_f32(self.next() * scale)).collect()
    }
}

/// Says what was compared where a comparison fails.
pub struct Context<F: Fn() -> String>(pub F);

impl<F: Fn() -> String> Drop for Context<F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the comparison is of {}", (self.0)());
        }
    }
}

/// Positions on the host.
pub type Host<'a> = Places<&'a [i32]>;

/// Eight packed sequences of a query and 15 keys each: their keys begin, and end, at every place of a pack of eight.
pub fn every_place_of_a_pack() -> (Logits, Host<'static>) {
    let (queries, keys) = (&[0, 1, 2, 3, 4, 5, 6, 7, 8][..], &[0, 15, 30, 45, 60, 75, 90, 105, 120][..]);
    (Logits::bhqk(1, 2, 8, 120), Places::packed(queries, keys, 8))
}

/// A caller's positions on the host and on the device.
pub struct Buffers {
    query: CudaSlice<i32>,
    key: CudaSlice<i32>,
    query_lengths: CudaSlice<i32>,
    key_lengths: CudaSlice<i32>,
    packed: [CudaSlice<i32>; 2],
}

impl Buffers {
    pub fn new(gpu: &Gpu, places: &Host) -> Self {
        let upload = |values: Option<&[i32]>| gpu.stream().clone_htod(values.unwrap_or(&[0])).expect("uploads");
        let ids = |place: Place<&'_ [i32]>| match place {
            Place::Ids(values) => upload(Some(values)),
            _ => upload(None),
        };
        Self {
            query: ids(places.queries),
            key: ids(places.keys),
            query_lengths: upload(places.query_lengths),
            key_lengths: upload(places.key_lengths),
            packed: [upload(places.packed.map(|p| p.queries)), upload(places.packed.map(|p| p.keys))],
        }
    }

    pub fn places<'a>(&'a self, host: &Host) -> Places<Read<'a, i32>> {
        let place = |place, buffer: &'a CudaSlice<i32>| match place {
            Place::Counted(start) => Place::Counted(start),
            Place::BottomRight => Place::BottomRight,
            Place::Ids(_) => Place::Ids(buffer as Read<'a, i32>),
        };
        Places {
            queries: place(host.queries, &self.query),
            keys: place(host.keys, &self.key),
            query_lengths: host.query_lengths.map(|_| &self.query_lengths as Read<'a, i32>),
            key_lengths: host.key_lengths.map(|_| &self.key_lengths as Read<'a, i32>),
            packed: host.packed.map(|packed| Packed {
                queries: &self.packed[0] as Read<'a, i32>,
                keys: &self.packed[1] as Read<'a, i32>,
                sequences: packed.sequences,
            }),
        }
    }
}

/// A network of random weights.
pub fn fire(heads: usize, width: usize, seed: u64) -> Fire {
    let mut numbers = Numbers(seed);
    let mut take = |count: usize| (0..count).map(|_| f64::from(numbers.next())).collect::<Vec<f64>>();
    Fire {
        threshold: 9.5,
        in_weight: take(width),
        in_bias: take(width),
        out_weight: take(heads * width),
        out_bias: take(heads),
        ..Fire::new()
    }
}

/// Every form of a bias, for `heads` heads and distances within 4096.
pub fn each_form(heads: usize, mut test: impl FnMut(&str, Bias)) {
    for sides in [Sides::Symmetric, Sides::Signed, Sides::Halves] {
        if let Ok(slopes) = (Alibi { sides, ..Alibi::new(heads) }).slopes() {
            test("alibi", Bias::Slopes(&slopes));
        }
    }
    let mut data = Data::new(heads as u64);
    for (bidirectional, buckets, reach) in [(true, 32, 128), (false, 32, 128), (true, 8, 20)] {
        let row = T5Bias::new(buckets, reach, bidirectional).row(&data.values::<f32>(buckets * heads), heads).unwrap();
        test("t5", Bias::Toeplitz(&row));
    }
    let parameters = |data: &mut Data| (0..heads).map(|_| 0.25 * data.value().abs()).collect::<Vec<_>>();
    for kind in [KerpleKind::Log, KerpleKind::Power] {
        let kerple = Kerple { kind, p: parameters(&mut data), a: parameters(&mut data) };
        let row = kerple.row(-4096..=4096).unwrap();
        test("kerple", Bias::Toeplitz(&row));
    }
    test("sandwich", Bias::Toeplitz(&Sandwich { width: 16, ..Sandwich::new(heads) }.row(-4096..=4096).unwrap()));
    test("fire", Bias::Fire(&fire(heads, 8, 3)));
    test("none", Bias::None);
}

pub fn plan<T: Scalar>(gpu: &Gpu, bias: Bias) -> BiasPlan<T> {
    match bias {
        Bias::Fire(fire) => BiasPlan::fire(gpu, fire, 16_384).unwrap(),
        other => BiasPlan::new(gpu, other).unwrap(),
    }
}

/// WavLM's table as a row, its gates, and Hugging Face's gated bias of every query and key.
pub fn wavlm() -> (Logits, Toeplitz, Vec<f32>, Vec<f32>) {
    let case = &golden()["wavlm"];
    let number = |name: &str| case[name].as_u64().unwrap() as usize;
    let (batch, heads, tokens) = (number("batch"), number("heads"), number("tokens"));
    let row = T5Bias::new(320, 800, true).row(&bits(&case["table"]), heads).unwrap();
    let sigmoid = |x: &[f32]| 1.0 / (1.0 + (-x.iter().map(|&x| f64::from(x)).sum::<f64>()).exp());
    let constants = bits(&case["const"]);
    let projection = bits(&case["projection"]);
    let gates = projection.chunks(8).enumerate().map(|(row, x)| {
        let constant = f64::from(constants[row / tokens % heads]);
        (sigmoid(&x[..4]) * (sigmoid(&x[4..]) * constant - 1.0) + 2.0) as f32
    });
    (Logits::bhqk(batch, heads, tokens, tokens), row, gates.collect(), bits(&case["bias"]))
}
