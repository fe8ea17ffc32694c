//! Cache-line-aligned buffers.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::{Pod, Zeroable};

/// Numbers that begin where a line of the cache does: a vector that crosses into the next one takes twice as long.
pub(crate) struct Lines<N = f64> {
    lines: Vec<Line>,
    len: usize,
    numbers: PhantomData<N>,
}

#[derive(Clone, Copy, Zeroable, Pod)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl<N: Pod> Lines<N> {
    pub(crate) fn new(value: N, len: usize) -> Self {
        let mut line = Line::zeroed();
        bytemuck::cast_slice_mut(&mut line.0).fill(value);
        let lines = vec![line; (len * size_of::<N>()).div_ceil(size_of::<Line>())];
        Self { lines, len, numbers: PhantomData }
    }
}

impl<N: Pod> Deref for Lines<N> {
    type Target = [N];
    #[inline(always)]
    fn deref(&self) -> &[N] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl<N: Pod> DerefMut for Lines<N> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [N] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}
