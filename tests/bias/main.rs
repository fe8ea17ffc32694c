//! The `bias` room: numbers that are added to attention logits, and the softmax that consumes them.

mod alibi;
mod fire;
mod kerple;
mod sandwich;
mod softmax;
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
