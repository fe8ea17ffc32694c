//! Numbers in memory as vectors like it.

use std::ops::{Deref, DerefMut};

/// Numbers that begin where a line of the cache does: a vector that crosses into the next one takes twice as long.
pub(crate) struct Lines {
    lines: Vec<Line>,
    len: usize,
}

#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
struct Line([f64; 8]);

impl Lines {
    pub(crate) fn new(value: f64, len: usize) -> Self {
        Self { lines: vec![Line([value; 8]); len.div_ceil(8)], len }
    }
}

impl Deref for Lines {
    type Target = [f64];
    #[inline(always)]
    fn deref(&self) -> &[f64] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl DerefMut for Lines {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [f64] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}
