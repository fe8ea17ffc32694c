//! Embeddings beside the same made of candle's tensor operations.

use anyhow::Result;
use candle_core::{D, DType, Tensor};
use half::{bf16, f16};
use posenc::Positions;
use posenc::embed::{Filter, GridSize, HostLookup, HostTables, Learned, Norm, Resample, Sinusoid, Tokens};

use crate::{Bench, Element, Values, close, table, tensor, values};

const DIM: usize = 768;
const VOCABULARY: usize = 30_522;

/// The peer's sinusoids of positions that count from 0, as its operations make them of ready frequencies.
fn made<T: Element>(frequency: &Tensor, tokens: usize) -> Result<Tensor> {
    let angle = table::<f32>(tokens, 1, |token, _| token as f64)?.matmul(frequency)?;
    Ok(Tensor::stack(&[angle.sin()?, angle.cos()?], D::Minus1)?.flatten_from(1)?.to_dtype(T::DTYPE)?)
}

/// What the peer's angles, which are f32 products, may be off by, in roundings of its type.
fn slack<T: Element>(tokens: usize) -> f64 {
    tokens as f64 * f64::from(f32::EPSILON) / T::ROUNDOFF
}

/// The paper's sinusoid is added; both compute it.
fn sinusoid_add<T: Element>(bench: &Bench, batch: usize, tokens: usize) -> Result<()> {
    let case = format!("sinusoid add {batch}x{tokens}x{DIM} {}", T::NAME);
    if !bench.wants(&case) {
        return Ok(());
    }
    let spec = Sinusoid::new(DIM);
    let x: Values<T> = values(batch * tokens * DIM);
    let shape = Tokens::new(batch, tokens, DIM);
    let mut y = x.clone();
    spec.add(&mut y, &shape, Positions::counted(), 1.0)?;
    let input = tensor(&x, &[batch, tokens, DIM])?;
    let frequency = table::<f32>(1, DIM / 2, |_, pair| spec.frequency(pair))?;
    let theirs = || -> Result<Tensor> { Ok(input.broadcast_add(&made::<T>(&frequency, tokens)?)?) };
    close(&theirs()?, &y, 4.0 + slack::<T>(tokens))?;
    bench.row(&case, || Ok(spec.add(&mut y, &shape, Positions::counted(), 1.0)?), Some(|| theirs().map(drop)))
}

/// A table that both have is added.
fn table_add<T: Element>(bench: &Bench, batch: usize, tokens: usize) -> Result<()> {
    let case = format!("table add {batch}x{tokens}x{DIM} {}", T::NAME);
    if !bench.wants(&case) {
        return Ok(());
    }
    let (x, rows): (Values<T>, Values<T>) = (values(batch * tokens * DIM), values(tokens * DIM));
    let (spec, shape) = (Learned::new(DIM), Tokens::new(batch, tokens, DIM));
    let (tables, lookup) = (HostTables { position: Some(&rows), ..HostTables::default() }, HostLookup::default());
    let mut y = x.clone();
    spec.gather(&mut y, &shape, &tables, &lookup)?;
    let (input, rows) = (tensor(&x, &[batch, tokens, DIM])?, tensor(&rows, &[tokens, DIM])?);
    let theirs = || -> Result<Tensor> { Ok(input.broadcast_add(&rows)?) };
    close(&theirs()?, &y, 4.0)?;
    bench.row(&case, || Ok(spec.gather(&mut y, &shape, &tables, &lookup)?), Some(|| theirs().map(drop)))
}

/// Sinusoids are made; the peer has its frequencies.
fn sinusoid_write<T: Element>(bench: &Bench, tokens: usize) -> Result<()> {
    let case = format!("sinusoid write {tokens}x{DIM} {}", T::NAME);
    if !bench.wants(&case) {
        return Ok(());
    }
    let spec = Sinusoid::new(DIM);
    let positions: Vec<i64> = (0..tokens as i64).collect();
    let mut y: Values<T> = values(tokens * DIM);
    spec.write(&mut y, &positions)?;
    let frequency = table::<f32>(1, DIM / 2, |_, pair| spec.frequency(pair))?;
    let theirs = || made::<T>(&frequency, tokens);
    close(&theirs()?, &y, 2.0 + slack::<T>(tokens))?;
    bench.row(&case, || Ok(spec.write(&mut y, &positions)?), Some(|| theirs().map(drop)))
}

/// Timesteps as diffusion models embed them; the peer has its frequencies.
fn timestep<T: Element>(bench: &Bench, times: usize) -> Result<()> {
    const DIM: usize = 320;
    let case = format!("timestep {times}x{DIM} {}", T::NAME);
    if !bench.wants(&case) {
        return Ok(());
    }
    let spec = Sinusoid::timestep(DIM);
    let t: Vec<f32> = (0..times).map(|i| (i % 1000) as f32 + 0.25).collect();
    let mut y: Values<T> = values(times * DIM);
    spec.write_times(&mut y, &t)?;
    let frequency = table::<f32>(1, DIM / 2, |_, pair| spec.frequency(pair))?;
    let given = tensor(&t, &[times, 1])?;
    let theirs = || -> Result<Tensor> {
        let angle = given.matmul(&frequency)?;
        Ok(Tensor::cat(&[angle.cos()?, angle.sin()?], D::Minus1)?.to_dtype(T::DTYPE)?)
    };
    close(&theirs()?, &y, 2.0 + 1000.0 * f64::from(f32::EPSILON) / T::ROUNDOFF)?;
    bench.row(&case, || Ok(spec.write_times(&mut y, &t)?), Some(|| theirs().map(drop)))
}

/// GPT-2's token and position rows; BERT's, with types and layer norm.
fn learned<T: Element>(bench: &Bench, tokens: usize, bert: bool) -> Result<()> {
    let name = if bert { "token + position + type + layer norm" } else { "token + position" };
    let case = format!("{name} {tokens}x{DIM} {}", T::NAME);
    if !bench.wants(&case) {
        return Ok(());
    }
    let (token, position): (Values<T>, Values<T>) = (values(VOCABULARY * DIM), values(tokens * DIM));
    let (kinds, gain, shift): (Values<T>, Values<T>, Values<T>) = (values(2 * DIM), values(DIM), values(DIM));
    let ids: Vec<i64> = (0..tokens).map(|i| (i * 7919 % VOCABULARY) as i64).collect();
    let types: Vec<i64> = (0..tokens).map(|i| i64::from(i > tokens / 2)).collect();
    let mut spec = Learned::new(DIM);
    let mut tables = HostTables { token: Some(&token), position: Some(&position), ..HostTables::default() };
    let mut lookup = HostLookup { ids: Some(&ids), ..HostLookup::default() };
    if bert {
        spec.norm = Some(Norm::Layer { eps: 1e-5 });
        tables = HostTables { types: Some(&kinds), gain: Some(&gain), bias: Some(&shift), ..tables };
        lookup.types = Some(&types);
    }
    let shape = Tokens::new(1, tokens, DIM);
    let mut y: Values<T> = values(tokens * DIM);
    spec.gather(&mut y, &shape, &tables, &lookup)?;
    let (token_table, position_table) = (tensor(&token, &[VOCABULARY, DIM])?, tensor(&position, &[tokens, DIM])?);
    let (type_table, gain, shift) = (tensor(&kinds, &[2, DIM])?, tensor(&gain, &[DIM])?, tensor(&shift, &[DIM])?);
    let (ids, types) = (tensor_of_ids(&ids)?, tensor_of_ids(&types)?);
    let theirs = || -> Result<Tensor> {
        let sum = (token_table.index_select(&ids, 0)? + &position_table)?;
        if !bert {
            return Ok(sum);
        }
        Ok(candle_nn::ops::layer_norm(&(sum + type_table.index_select(&types, 0)?)?, &gain, &shift, 1e-5)?)
    };
    // Its variance is a difference of two sums.
    close(&theirs()?, &y, if bert { 256.0 } else { 4.0 })?;
    bench.row(&case, || Ok(spec.gather(&mut y, &shape, &tables, &lookup)?), Some(|| theirs().map(drop)))
}

fn tensor_of_ids(ids: &[i64]) -> Result<Tensor> {
    Ok(Tensor::from_slice(ids, ids.len(), &candle_core::Device::Cpu)?.to_dtype(DType::U32)?)
}

/// ViT-B/16's table from 224 to 384 pixels. candle has no bicubic filter.
fn resample<T: Element>(bench: &Bench) -> Result<()> {
    let case = format!("resample bicubic 14x14 to 24x24x{DIM} {}", T::NAME);
    if !bench.wants(&case) {
        return Ok(());
    }
    let spec = Resample { filter: Filter::Bicubic, ..Resample::new(GridSize::image(14, 14), GridSize::image(24, 24)) };
    let x: Values<T> = values(14 * 14 * DIM);
    let mut y: Values<T> = values(24 * 24 * DIM);
    bench.row(&case, || Ok(spec.write(&mut y, &x, DIM)?), None::<fn() -> Result<()>>)
}

fn all<T: Element>(bench: &Bench) -> Result<()> {
    for tokens in [1, 16, 512, 4096] {
        for batch in [1, 8] {
            sinusoid_add::<T>(bench, batch, tokens)?;
            table_add::<T>(bench, batch, tokens)?;
        }
        sinusoid_write::<T>(bench, tokens)?;
    }
    for times in [1, 16, 1024] {
        timestep::<T>(bench, times)?;
    }
    for tokens in [1, 16, 512, 4096] {
        learned::<T>(bench, tokens, false)?;
        learned::<T>(bench, tokens, true)?;
    }
    resample::<T>(bench)
}

pub fn run(bench: &Bench) -> Result<()> {
    all::<f32>(bench)?;
    all::<bf16>(bench)?;
    all::<f16>(bench)
}
