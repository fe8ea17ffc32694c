//! `ldmatrix`, `stmatrix`, `movmatrix`, `mma.sync`: matrices spread over the lanes of a warp.
//!
//! Products are exact, sums are in double precision and rounded once: more exact than any device, whose order of
//! summation PTX leaves open.

use super::barrier::together;
use super::float::{bf16_to_f32, f16_to_f32, f32_to_f16};
use super::lane::{get, put};
use super::machine::{Cx, Flow, Op};
use super::operand::{Access, FULL, LANES, Touch};
use super::reach::reach;
use crate::fault::FaultKind;

/// All lanes must be here.
fn whole_warp(cx: &mut Cx, mask: u32) -> Result<(), Flow> {
    together(cx, mask, FULL)?;
    if mask != FULL {
        return Err(cx.fail(FaultKind::Lane, mask, &format!("needs all 32 lanes, {mask:#010x} are here")));
    }
    Ok(())
}

/// Moves 8x8 matrices of 16 bits between shared memory and registers. Rows are at the addresses of eight lanes each.
/// Bit 0 of `c`: transposed, bit 1: to memory. The registers are those of the access.
pub(crate) unsafe fn move_matrix(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    if let Err(flow) = whole_warp(cx, mask) {
        return flow;
    }
    let code = cx.code;
    let access = &code.mems[op.e as usize];
    let (transposed, store) = (op.c & 1 != 0, op.c & 2 != 0);
    let count = access.count as usize;
    // a row is 16 bytes
    let rows = Access { count: 1, size: 16, ..access.clone() };
    // SAFETY: lowering gave registers of these kinds; `reach` makes pointers to whole rows.
    unsafe {
        let mut addr = if access.wide {
            get::<u64>(cx, op.a).map(|a| a.wrapping_add(op.imm))
        } else {
            get::<u32>(cx, op.a).map(|a| u64::from(a.wrapping_add(op.imm as u32)))
        };
        let with_rows = if count == 4 { FULL } else { (1 << (8 * count)) - 1 };
        if !reach(cx, &rows, &mut addr, with_rows, if store { Touch::Write } else { Touch::Read }) {
            return Flow::Fault;
        }
        for m in 0..count {
            let element = |row: usize, column: usize| (addr[8 * m + row] as *mut u16).add(column);
            let slot = access.slots[m];
            let place = |lane: usize, half: usize| {
                let (row, column) = (lane / 4, 2 * (lane % 4) + half);
                if transposed { (column, row) } else { (row, column) }
            };
            if store {
                let value = get::<u32>(cx, slot);
                for (lane, v) in value.iter().enumerate() {
                    for half in 0..2 {
                        let (row, column) = place(lane, half);
                        element(row, column).write_unaligned((v >> (16 * half)) as u16);
                    }
                }
            } else {
                let value: [u32; LANES] = std::array::from_fn(|lane| {
                    (0..2).fold(0, |v, half| {
                        let (row, column) = place(lane, half);
                        v | u32::from(element(row, column).read_unaligned()) << (16 * half)
                    })
                });
                put(cx, slot, &value, FULL);
            }
        }
    }
    Flow::Next
}

/// `movmatrix.trans`: an 8x8 matrix in registers.
pub(crate) unsafe fn transpose(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    if let Err(flow) = whole_warp(cx, mask) {
        return flow;
    }
    // SAFETY: lowering gave 32-bit registers.
    unsafe {
        let a = get::<u32>(cx, op.a);
        let element = |row: usize, column: usize| a[4 * row + column / 2] >> (16 * (column % 2)) & 0xffff;
        let d: [u32; LANES] = std::array::from_fn(|lane| {
            let (row, column) = (lane / 4, 2 * (lane % 4));
            element(column, row) | element(column + 1, row) << 16
        });
        put(cx, op.d, &d, FULL);
    }
    Flow::Next
}

/// What the factors of a product are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Factor {
    F16,
    Bf16,
    Tf32,
}

/// A shape of `mma`: 16 rows, 8 columns, and this inner extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) factor: Factor,
    pub(crate) inner: usize,
    /// The sum and the addend are pairs of f16.
    pub(crate) half_sum: bool,
}

impl Shape {
    /// Registers of the factors and of the sum.
    pub(crate) fn registers(self) -> (usize, usize, usize) {
        let a = match self.factor {
            Factor::Tf32 => self.inner / 2,
            _ => self.inner / 4,
        };
        (a, a / 2, if self.half_sum { 2 } else { 4 })
    }

    /// As a number, for [`Op::imm`].
    pub(crate) fn encode(self) -> u64 {
        let factor = match self.factor {
            Factor::F16 => 0,
            Factor::Bf16 => 1,
            Factor::Tf32 => 2,
        };
        factor | u64::from(self.half_sum) << 2 | (self.inner as u64) << 3
    }

    fn decode(imm: u64) -> Self {
        let factor = match imm & 3 {
            0 => Factor::F16,
            1 => Factor::Bf16,
            _ => Factor::Tf32,
        };
        Self { factor, inner: (imm >> 3) as usize, half_sum: imm & 4 != 0 }
    }
}

/// `mma.sync`: registers in the list `e`: sum, first factor, second factor, addend.
pub(crate) unsafe fn mma(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    if let Err(flow) = whole_warp(cx, mask) {
        return flow;
    }
    let shape = Shape::decode(op.imm);
    let code = cx.code;
    let list = &code.lists[op.e as usize];
    let (na, nb, nd) = shape.registers();
    let (d_at, rest) = list.split_at(nd);
    let (a_at, rest) = rest.split_at(na);
    let (b_at, c_at) = rest.split_at(nb);
    // SAFETY: lowering gave 32-bit registers.
    unsafe {
        let read = |list: &[u32]| -> Vec<[u32; LANES]> { list.iter().map(|&r| get::<u32>(cx, r)).collect() };
        let (a, b, c) = (read(a_at), read(b_at), read(c_at));
        let half = |v: u32, i: usize| {
            let bits = (v >> (16 * i)) as u16;
            f64::from(if shape.factor == Factor::F16 { f16_to_f32(bits) } else { bf16_to_f32(bits) })
        };
        // tf32 drops the low 13 bits
        let tf32 = |v: u32| f64::from(f32::from_bits(v & !0x1fff));
        let at_a = |row: usize, k: usize| {
            let group = row % 8;
            match shape.factor {
                Factor::Tf32 => tf32(a[row / 8 + 2 * (k / 4)][4 * group + k % 4]),
                _ => half(a[row / 8 + 2 * (k / 8)][4 * group + k % 8 / 2], k % 2),
            }
        };
        let at_b = |k: usize, column: usize| match shape.factor {
            Factor::Tf32 => tf32(b[k / 4][4 * column + k % 4]),
            _ => half(b[k / 8][4 * column + k % 8 / 2], k % 2),
        };
        let mut d = vec![[0u32; LANES]; nd];
        for row in 0..16 {
            for column in 0..8 {
                let lane = 4 * (row % 8) + column / 2;
                let (upper, odd) = (row / 8, column % 2);
                let addend = if shape.half_sum {
                    f64::from(f16_to_f32((c[upper][lane] >> (16 * odd)) as u16))
                } else {
                    f64::from(f32::from_bits(c[2 * upper + odd][lane]))
                };
                let sum = (0..shape.inner).fold(addend, |s, k| at_a(row, k).mul_add(at_b(k, column), s));
                let sum = super::float::canonical(sum as f32);
                if shape.half_sum {
                    d[upper][lane] |= u32::from(f32_to_f16(sum, super::float::Round::Near)) << (16 * odd);
                } else {
                    d[2 * upper + odd][lane] = sum.to_bits();
                }
            }
        }
        for (value, &slot) in d.iter().zip(d_at) {
            put(cx, slot, value, FULL);
        }
    }
    Flow::Next
}
