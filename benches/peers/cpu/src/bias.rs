//! Biases and the softmax that consumes them beside candle's additions and `softmax_last_dim`.

use anyhow::Result;
use candle_core::Tensor;
use half::{bf16, f16};
use posenc::attend::Inputs;
use posenc::{Alibi, Bias, Logits, Places, Scalar, Softmax};

use crate::{Bench, Element, Values, close, tensor, values};

const HEADS: usize = 16;

/// The bias of every head, query and key, with the future masked where `causal`: what the peer is given.
fn dense<T: Element>(bias: Bias, queries: usize, keys: usize, causal: bool) -> Result<Tensor> {
    let shape = Logits::bhqk(1, HEADS, queries, keys);
    let mut values = vec![<T as Scalar>::from_f64(0.0); shape.elements()?];
    bias.write(&mut values, &shape, &Places::bottom_right())?;
    if causal {
        for (i, value) in values.iter_mut().enumerate() {
            let (query, key) = (i / keys % queries, i % keys);
            if key > query + keys - queries {
                *value = <T as Scalar>::from_f64(f64::NEG_INFINITY);
            }
        }
    }
    tensor(&values, &[1, HEADS, queries, keys])
}

fn alibi_add<T: Element>(bench: &Bench, queries: usize, keys: usize) -> Result<()> {
    let case = format!("alibi add {HEADS}x{queries}x{keys} {}", T::NAME);
    if !bench.wants(&case) {
        return Ok(());
    }
    let slopes = Alibi::new(HEADS).slopes()?;
    let shape = Logits::bhqk(1, HEADS, queries, keys);
    let x: Values<T> = values(shape.elements()?);
    let mut y = x.clone();
    Bias::Slopes(&slopes).add(&mut y, &shape, &Places::bottom_right())?;
    let (input, bias) =
        (tensor(&x, &[1, HEADS, queries, keys])?, dense::<T>(Bias::Slopes(&slopes), queries, keys, false)?);
    let theirs = || -> Result<Tensor> { Ok((&input + &bias)?) };
    close(&theirs()?, &y, 4.0)?;
    bench.row(
        &case,
        || Ok(Bias::Slopes(&slopes).add(&mut y, &shape, &Places::bottom_right())?),
        Some(|| theirs().map(drop)),
    )
}

fn alibi_softmax<T: Element>(bench: &Bench, queries: usize, keys: usize) -> Result<()> {
    let case = format!("alibi causal softmax {HEADS}x{queries}x{keys} {}", T::NAME);
    if !bench.wants(&case) {
        return Ok(());
    }
    let slopes = Alibi::new(HEADS).slopes()?;
    let shape = Logits::bhqk(1, HEADS, queries, keys);
    let softmax = Softmax::causal(0.125);
    let inputs = Inputs { bias: Bias::Slopes(&slopes), ..Inputs::default() };
    let x: Values<T> = values(shape.elements()?);
    let mut y = x.clone();
    softmax.apply(&mut y, &shape, &inputs)?;
    let (input, bias) =
        (tensor(&x, &[1, HEADS, queries, keys])?, dense::<T>(Bias::Slopes(&slopes), queries, keys, true)?);
    let theirs = || -> Result<Tensor> { Ok(candle_nn::ops::softmax_last_dim(&((&input * 0.125)? + &bias)?)?) };
    // It rounds the logits, up to 256 of them in a bias, and sums in its type.
    close(&theirs()?, &y, 512.0)?;
    bench.row(&case, || Ok(softmax.apply(&mut y, &shape, &inputs).map(drop)?), Some(|| theirs().map(drop)))
}

fn all<T: Element>(bench: &Bench) -> Result<()> {
    for (queries, keys) in [(1, 128), (1, 4096), (128, 128), (512, 512)] {
        alibi_add::<T>(bench, queries, keys)?;
        alibi_softmax::<T>(bench, queries, keys)?;
    }
    Ok(())
}

pub fn run(bench: &Bench) -> Result<()> {
    all::<f32>(bench)?;
    all::<bf16>(bench)?;
    all::<f16>(bench)
}
