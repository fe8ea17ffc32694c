//! `Rope::rotate` beside candle's `rotary_emb`: candle is given its tables and writes a new tensor, posenc rotates in place.

use anyhow::{Result, ensure};
use candle_core::Tensor;
use candle_nn::rotary_emb as candle;
use half::{bf16, f16};
use posenc::{Direction, Heads, Pairing, Rope, Scalar};

use crate::{Bench, Element, Values, table, tensor, values};

const HEADS: usize = 32;
const DIM: usize = 128;

/// The reference of the first token and of the last.
fn check<T: Scalar>(rope: &Rope, before: &[T], after: &[T], heads: &Heads, slack: f64) -> Result<()> {
    for (token, head) in [(0, 0), (heads.tokens - 1, heads.heads - 1)] {
        let at = heads.index(0, token, head, 0);
        let row = at..at + heads.dim;
        let one = Heads::thd(1, 1, heads.dim);
        let expected = rope.expect(&before[row.clone()], &one, &[token as i64], Direction::Forward)?;
        let worst = posenc::accuracy::compare(&after[row], &expected.want, |i| expected.bound[i] + slack);
        ensure!(worst.share <= 1.0, "{worst:?}");
    }
    Ok(())
}

fn compare<T: Element>(bench: &Bench, tokens: usize) -> Result<()> {
    let positions: Vec<i64> = (0..tokens as i64).collect();
    let x: Values<T> = values(tokens * HEADS * DIM);
    for (layout, pairing) in [("thd", Pairing::Half), ("bhtd", Pairing::Half), ("bhtd", Pairing::Interleaved)] {
        let case = format!("rope {layout} {pairing:?} {HEADS}x{DIM} {tokens} {}", T::NAME);
        if !bench.wants(&case) {
            continue;
        }
        let rope = Rope { pairing, ..Rope::new(DIM, 10_000.0) };
        let shape = if layout == "thd" { Heads::thd(tokens, HEADS, DIM) } else { Heads::bhtd(1, HEADS, tokens, DIM) };
        let mut y = x.clone();
        rope.rotate(&mut y, &shape, &positions, Direction::Forward)?;
        check(&rope, &x, &y, &shape, 0.0)?;
        let turns =
            |f: fn(f64) -> f64| table::<T>(tokens, DIM / 2, |token, pair| f(token as f64 * rope.frequency(pair)));
        let (cos, sin) = (turns(f64::cos)?, turns(f64::sin)?);
        let dims = if layout == "thd" { [1, tokens, HEADS, DIM] } else { [1, HEADS, tokens, DIM] };
        let input = tensor(&x, &dims)?;
        let theirs = || -> Result<Tensor> {
            Ok(match (layout, pairing) {
                ("thd", _) => candle::rope_thd(&input, &cos, &sin),
                (_, Pairing::Half) => candle::rope(&input, &cos, &sin),
                (_, Pairing::Interleaved) => candle::rope_i(&input, &cos, &sin),
            }?)
        };
        // It computes in the tensors' type: a few of its roundings are allowed.
        check(&rope, &x, &theirs()?.flatten_all()?.to_vec1::<T>()?, &shape, 16.0 * T::ROUNDOFF)?;
        bench.row(
            &case,
            || Ok(rope.rotate(&mut y, &shape, &positions, Direction::Forward)?),
            Some(|| theirs().map(drop)),
        )?;
    }
    Ok(())
}

pub fn run(bench: &Bench) -> Result<()> {
    for tokens in [1, 16, 512, 4096] {
        compare::<f32>(bench, tokens)?;
        compare::<bf16>(bench, tokens)?;
        compare::<f16>(bench, tokens)?;
    }
    Ok(())
}
