//! The input embeddings of BERT, GPT-2, Whisper and a DiT: on the CPU, and on a GPU if there is one.
//!
//! `cargo run --example 03_embeddings`

use anyhow::Result;
use posenc::accuracy::{assert_close, rounded};
use posenc::embed::{
    DeviceLookup, DeviceTables, ErrorFlag, Grid, GridPlan, GridSize, HostLookup, HostTables, Learned, LearnedPlan,
    Norm, Odd, Sinusoid, SinusoidPlan, TimestepPlan, Tokens,
};
use posenc::{Error, Gpu, Id, Pairing, Positions};

/// Numbers of one table, the same on every run.
fn table(rows: usize, dim: usize, seed: usize) -> Vec<f32> {
    (0..rows * dim).map(|i| ((i * 37 + seed * 101) as f32 * 0.11).sin()).collect()
}

pub(crate) fn main() -> Result<()> {
    let gpu = match Gpu::open(0) {
        Ok(gpu) => Some(gpu),
        Err(error @ (Error::NoDevice(_) | Error::NoKernels)) => {
            println!("on the CPU alone; {error}");
            None
        }
        Err(error) => return Err(error.into()),
    };
    learned("BERT", true, gpu.as_ref())?;
    learned("GPT-2", false, gpu.as_ref())?;
    whisper(gpu.as_ref())?;
    dit(gpu.as_ref())
}

/// BERT: token + position + type, then layer norm. GPT-2: token + position.
fn learned(name: &str, bert: bool, gpu: Option<&Gpu>) -> Result<()> {
    let (dim, tokens) = (64, Tokens::new(2, 4, 64));
    let norm = bert.then_some(Norm::Layer { eps: 1e-12 });
    let spec = Learned { norm, ..Learned::new(dim) };
    let parts = [table(50, dim, 1), table(16, dim, 2), table(2, dim, 3), table(1, dim, 4), table(1, dim, 5)];
    let [token, position, types, gain, bias] = parts.each_ref().map(|part| &part[..]);
    let (ids, kinds) = ([7i64, 2, 49, 7, 0, 1, 3, 7], [0i64, 0, 1, 1, 0, 0, 0, 1]);
    let mut tables = HostTables { token: Some(token), position: Some(position), ..HostTables::default() };
    if bert {
        tables = HostTables { types: Some(types), gain: Some(gain), bias: Some(bias), ..tables };
    }
    let lookup = HostLookup { ids: Some(&ids), types: Some(&kinds), ..HostLookup::default() };

    let mut x = vec![0.0f32; 2 * 4 * dim];
    spec.gather(&mut x, &tokens, &tables, &lookup)?;
    if !bert {
        // Token 49 at position 2, one addition.
        assert_eq!(x[2 * dim + 5], token[49 * dim + 5] + position[2 * dim + 5]);
    }
    // An id outside its table is an error with its numbers, and nothing is written.
    let wrong = HostLookup { ids: Some(&[50; 8]), ..lookup };
    let error = spec.gather(&mut x, &tokens, &tables, &wrong).unwrap_err();
    assert_eq!(error.to_string(), "ids[0] is 50, the token table has 50 rows");

    let Some(gpu) = gpu else { return Ok(()) };
    let plan = LearnedPlan::<f32>::new(gpu, &spec)?;
    let stream = gpu.stream();
    let device = parts.iter().map(|part| stream.clone_htod(part)).collect::<Result<Vec<_>, _>>()?;
    let (ids, kinds) = (stream.clone_htod(&ids)?, stream.clone_htod(&kinds)?);
    let mut there = DeviceTables { token: Some(&device[0]), position: Some(&device[1]), ..DeviceTables::default() };
    if bert {
        there = DeviceTables { types: Some(&device[2]), gain: Some(&device[3]), bias: Some(&device[4]), ..there };
    }
    let (ids, types) = (Some(i64::ids(&ids)), Some(i64::ids(&kinds)));
    let mut out = stream.alloc_zeros(2 * 4 * dim)?;
    let mut flag = ErrorFlag::new(gpu)?;
    let of = DeviceLookup { ids, types, ..DeviceLookup::default() };
    plan.gather(tokens.of_mut(&mut out), &there, &of, Some(&mut flag))?;
    flag.check(gpu)?;
    let expected = spec.expect(&x, &tokens, &tables, &lookup)?;
    let worst = assert_close(&stream.clone_dtoh(&out)?, &expected.want, |i| expected.bound[i]);
    println!("{name}: worst error {:e}, {:.2} of the bound", worst.error, worst.share);
    Ok(())
}

/// Whisper's encoder: a sinusoid in halves with a frequency shift of 1, added to every frame.
fn whisper(gpu: Option<&Gpu>) -> Result<()> {
    let spec = Sinusoid { pairing: Pairing::Half, shift: 1.0, odd: Odd::Refuse, ..Sinusoid::new(64) };
    let tokens = Tokens::new(1, 1500, 64);
    let frames = table(1500, 64, 6);
    let mut x = frames.clone();
    spec.add(&mut x, &tokens, Positions::counted(), 1.0)?;
    // The last pair's period is exactly 10000 times 2 pi.
    assert_eq!(x[64 + 63], (f64::from(frames[64 + 63]) + 1e-4f64.cos()) as f32);

    let Some(gpu) = gpu else { return Ok(()) };
    let mut out = gpu.stream().clone_htod(&frames)?;
    SinusoidPlan::<f32>::new(gpu, &spec)?.add(tokens.of_mut(&mut out), Positions::counted(), 1.0)?;
    let want: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    let bound = |i: usize| {
        rounded::<f32>(want[i], spec.add_error_bound((i / 64) as i64, f64::from(frames[i]), 1.0) + 2f64.powi(-23))
    };
    let worst = assert_close(&gpu.stream().clone_dtoh(&out)?, &want, bound);
    println!("Whisper: worst error {:e}, {:.2} of the bound", worst.error, worst.share);
    Ok(())
}

/// DiT: a grid for the patches and an embedding of the timestep.
fn dit(gpu: Option<&Gpu>) -> Result<()> {
    let (grid, size, time) = (Grid::columns_first(64), GridSize::image(4, 6), Sinusoid::timestep(256));
    let mut patches = vec![0.0f32; 24 * 64];
    grid.write(&mut patches, size)?;
    // The patch in row 1 and column 2: sine of x first, then cosine of x, sine of y, cosine of y.
    assert_eq!(patches[8 * 64], 2f64.sin() as f32);
    assert_eq!(patches[8 * 64 + 32], 1f64.sin() as f32);
    let mut t = [0.0f32; 256];
    time.write_times(&mut t, &[0.25f32])?;
    assert_eq!((t[0], t[128]), (0.25f64.cos() as f32, 0.25f64.sin() as f32));

    let Some(gpu) = gpu else { return Ok(()) };
    let stream = gpu.stream();
    let mut out = stream.alloc_zeros(24 * 64)?;
    GridPlan::<f32>::new(gpu, &grid)?.write(Tokens::new(1, 24, 64).of_mut(&mut out), size)?;
    let want: Vec<f64> = patches.iter().map(|&x| f64::from(x)).collect();
    let worst =
        assert_close(&stream.clone_dtoh(&out)?, &want, |i| 2f64.powi(-24) + grid.error_bound(size.place(i / 64)));
    let mut row = stream.alloc_zeros(256)?;
    let t_there = stream.clone_htod(&[0.25f32])?;
    TimestepPlan::<f32>::new(gpu, &time)?.write(Tokens::new(1, 1, 256).of_mut(&mut row), &t_there)?;
    assert_eq!(stream.clone_dtoh(&row)?, t);
    println!("DiT: worst error {:e}, {:.2} of the bound; the timestep to the bit", worst.error, worst.share);
    Ok(())
}
