//! Strided shapes: what is written is the set of indices that the shape names, each once, or nothing at all.

use std::collections::HashSet;

use anyhow::Result;
use posenc::{Alibi, Bias, Direction, Heads, Logits, Places, Rope};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::Run;

/// What no call leaves: neither a bias of small slopes nor a rotation of it by one position.
const UNTOUCHED: f32 = 1.0;

/// Sizes and strides that meet, cross and overflow.
fn size() -> impl Strategy<Value = usize> {
    prop_oneof![20 => 0usize..5, 1 => select(vec![1 << 31, 1 << 32, 1 << 62, usize::MAX])]
}

fn stride() -> impl Strategy<Value = usize> {
    prop_oneof![20 => 0usize..40, 1 => select(vec![1 << 31, 1 << 32, 1 << 62, usize::MAX])]
}

/// The indices of a tensor of `dims` (size, stride) and a contiguous last one; `None` if they are too many to list.
fn indices(offset: usize, dims: &[(usize, usize)], last: usize) -> Option<Vec<u128>> {
    let count =
        dims.iter().try_fold(last as u128, |n, (size, _)| n.checked_mul(*size as u128)).filter(|&n| n <= 4096)?;
    let mut all = Vec::with_capacity(count as usize);
    let mut at = vec![0usize; dims.len()];
    for _ in 0..count / (last as u128).max(1) {
        let start =
            offset as u128 + dims.iter().zip(&at).map(|((_, stride), at)| *stride as u128 * *at as u128).sum::<u128>();
        all.extend((0..last).map(|i| start + i as u128));
        for (at, (size, _)) in at.iter_mut().zip(dims).rev() {
            *at += 1;
            if *at < *size {
                break;
            }
            *at = 0;
        }
    }
    Some(all)
}

/// Whether a call on a buffer of `UNTOUCHED` that returned `ok` wrote what it had to.
fn judge(ok: bool, buffer: &[f32], want: Option<&[u128]>) -> Result<bool, String> {
    let written: HashSet<u128> =
        buffer.iter().enumerate().filter(|(_, x)| **x != UNTOUCHED).map(|(i, _)| i as u128).collect();
    if !ok {
        return if written.is_empty() { Ok(false) } else { Err(format!("it is refused, and {written:?} are written")) };
    }
    let Some(want) = want else { return Err("a shape of more elements than the buffer is accepted".into()) };
    let set: HashSet<u128> = want.iter().copied().collect();
    if set.len() != want.len() {
        return Err("a shape whose elements meet is accepted".into());
    }
    if set != written {
        return Err(format!("it names {set:?} and writes {written:?}"));
    }
    Ok(true)
}

pub(crate) fn fuzz(run: &Run) -> Result<()> {
    let inputs = (any::<bool>(), vec(size(), 4), vec(stride(), 3), stride(), 0usize..200);
    run.of(&inputs, |(logits, sizes, strides, offset, len)| {
        let mut buffer = vec![UNTOUCHED; *len];
        let strides = [strides[0], strides[1], strides[2]];
        let dims = |sizes: [usize; 3]| sizes.into_iter().zip(strides).collect::<Vec<_>>();
        if *logits {
            let [batch, heads, queries, keys] = [0, 1, 2, 3].map(|i| sizes[i]);
            let shape = Logits { batch, heads, queries, keys, offset: *offset, strides };
            let want = indices(*offset, &dims([batch, heads, queries]), keys);
            let Ok(slopes) = Alibi::new(heads.clamp(1, 64)).slopes() else { return Ok(false) };
            let result = Bias::Slopes(&slopes).write(&mut buffer, &shape, &Places::counted(0, 0));
            judge(result.is_ok(), &buffer, want.as_deref())
        } else {
            let [batch, tokens, heads, dim] = [sizes[0], sizes[1], sizes[2], 2 * (1 + sizes[3] % 4)];
            let shape = Heads { batch, tokens, heads, dim, offset: *offset, strides };
            let want = indices(*offset, &dims([batch, tokens, heads]), dim);
            let positions = vec![1; batch.saturating_mul(tokens).min(64)];
            let result = Rope::new(dim, 10_000.0).rotate(&mut buffer, &shape, &positions, Direction::Forward);
            judge(result.is_ok(), &buffer, want.as_deref())
        }
    })
}
