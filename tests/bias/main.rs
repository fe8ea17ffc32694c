//! The `bias` room: numbers that are added to attention logits, and the softmax that consumes them.

mod alibi;
mod distance_grad;
mod fire;
mod header;
mod kerple;
mod sandwich;
mod softmax;
#[path = "../support/mod.rs"]
mod support;
mod t5;
mod toeplitz;

/// The committed output of tools/golden/bias.py.
fn golden() -> serde_json::Value {
    serde_json::from_str(include_str!("../golden/bias_hf.json")).unwrap()
}

/// f32 values that stand as bits.
fn bits(value: &serde_json::Value) -> Vec<f32> {
    let number = |bits: &serde_json::Value| f32::from_bits(u32::try_from(bits.as_u64().unwrap()).unwrap());
    value.as_array().unwrap().iter().map(number).collect()
}

/// A fixed sequence of numbers in -1..1 (xorshift64*), the same for every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40;
        (high as f32 / (1u32 << 23) as f32) - 1.0
    }

    fn take<T: posenc::Scalar>(&mut self, count: usize, scale: f32) -> Vec<T> {
        (0..count).map(|_| T::from_f32(self.next() * scale)).collect()
    }
}

/// A caller's positions on the host and on the device.
struct Buffers {
    query: cudarc::driver::CudaSlice<i32>,
    key: cudarc::driver::CudaSlice<i32>,
    query_lengths: cudarc::driver::CudaSlice<i32>,
    key_lengths: cudarc::driver::CudaSlice<i32>,
    packed: [cudarc::driver::CudaSlice<i32>; 2],
}

type Host<'a> = posenc::Places<&'a [i32]>;

impl Buffers {
    fn new(gpu: &posenc::Gpu, places: &Host) -> Self {
        let upload = |values: Option<&[i32]>| gpu.stream().clone_htod(values.unwrap_or(&[0])).expect("uploads");
        let each = |place: posenc::Place<&'_ [i32]>| match place {
            posenc::Place::Each(values) => upload(Some(values)),
            _ => upload(None),
        };
        Self {
            query: each(places.queries),
            key: each(places.keys),
            query_lengths: upload(places.query_lengths),
            key_lengths: upload(places.key_lengths),
            packed: [upload(places.packed.map(|p| p.queries)), upload(places.packed.map(|p| p.keys))],
        }
    }

    fn places<'a>(&'a self, host: &Host) -> posenc::Places<posenc::gpu::Read<'a, i32>> {
        let place = |place, buffer: &'a cudarc::driver::CudaSlice<i32>| match place {
            posenc::Place::From(start) => posenc::Place::From(start),
            posenc::Place::Last => posenc::Place::Last,
            posenc::Place::Each(_) => posenc::Place::Each(buffer as posenc::gpu::Read<'a, i32>),
        };
        posenc::Places {
            queries: place(host.queries, &self.query),
            keys: place(host.keys, &self.key),
            query_lengths: host.query_lengths.map(|_| &self.query_lengths as posenc::gpu::Read<'a, i32>),
            key_lengths: host.key_lengths.map(|_| &self.key_lengths as posenc::gpu::Read<'a, i32>),
            packed: host.packed.map(|packed| posenc::Packed {
                queries: &self.packed[0] as posenc::gpu::Read<'a, i32>,
                keys: &self.packed[1] as posenc::gpu::Read<'a, i32>,
                sequences: packed.sequences,
            }),
        }
    }
}
