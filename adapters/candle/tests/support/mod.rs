//! Tensors of numbers that are the same on every run, and their bits.

use candle_core::{DType, Device, Result, Shape, Tensor};

/// Numbers between -2 and 2, no two alike in f32, rounded to `dtype`.
pub fn numbers(shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
    let shape = shape.into();
    let value = |i: usize| {
        let bits = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        bits as f32 / (1 << 22) as f32 - 2.0
    };
    let values: Vec<f32> = (0..shape.elem_count()).map(value).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)
}

/// All values, in f64.
pub fn values(x: &Tensor) -> Result<Vec<f64>> {
    x.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

/// The largest difference of two tensors of one shape.
#[allow(dead_code, reason = "not every program uses it")]
pub fn apart(a: &Tensor, b: &Tensor) -> Result<f64> {
    assert_eq!(a.dims(), b.dims());
    let (a, b) = (values(a)?, values(b)?);
    Ok(a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max))
}

/// The sentence of a refusal.
#[allow(dead_code, reason = "not every program uses it")]
pub fn refusal<T>(result: Result<T>) -> String {
    let Err(error) = result else { panic!("it was not refused") };
    let text = error.to_string();
    // A backtrace follows where the environment asks for one.
    text.lines().next().unwrap_or_default().to_owned()
}
