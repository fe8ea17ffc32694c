//! Loads and stores.

use super::lane::{get, put, put_pred};
use super::machine::{Cx, Flow, Op};
use super::operand::{Access, Kind, LANES, NONE, Touch};
use super::race;
use super::reach::{lanes_of, reach};
use crate::fault::FaultKind;
use crate::ptx::ast::Space;

/// What lies in memory as an element.
pub(crate) trait Raw: Copy + Default {
    fn widen(self, signed: bool) -> u64;
    fn cut(value: u64) -> Self;
}

macro_rules! raw {
    ($($u:ident, $s:ident);*) => { $(impl Raw for $u {
        #[inline(always)]
        fn widen(self, signed: bool) -> u64 {
            if signed { self as $s as i64 as u64 } else { self as u64 }
        }
        #[inline(always)]
        fn cut(value: u64) -> Self {
            value as $u
        }
    })* };
}

raw!(u8, i8; u16, i16; u32, i32; u64, i64);

/// The addresses of an access.
#[inline]
pub(crate) fn addresses(cx: &Cx, op: &Op, access: &Access) -> [u64; LANES] {
    // SAFETY: lowering gave a register of the width.
    unsafe {
        if access.wide {
            get::<u64>(cx, op.a).map(|a| a.wrapping_add(op.imm))
        } else {
            get::<u32>(cx, op.a).map(|a| u64::from(a.wrapping_add(op.imm as u32)))
        }
    }
}

/// `ld`: elements of `T` into registers of [`Access::kind`].
pub(crate) unsafe fn ld<T: Raw>(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    let code = cx.code;
    let access = &code.mems[op.e as usize];
    let mut addr = addresses(cx, op, access);
    if !reach(cx, access, &mut addr, mask, Touch::Read) {
        return Flow::Fault;
    }
    for v in 0..access.count as usize {
        let slot = access.slots[v];
        if slot == NONE {
            continue;
        }
        let offset = v * size_of::<T>();
        // SAFETY: `reach` made pointers to memory of the access's size; the register is of the kind.
        unsafe {
            let mut raw = [T::default(); LANES];
            for l in 0..LANES {
                if mask >> l & 1 != 0 {
                    raw[l] = (addr[l] as *const u8).add(offset).cast::<T>().read_unaligned();
                }
            }
            match access.kind {
                Kind::W16 => put(cx, slot, &raw.map(|x| x.widen(access.signed) as u16), mask),
                Kind::W64 | Kind::F64 => put(cx, slot, &raw.map(|x| x.widen(access.signed)), mask),
                _ => put(cx, slot, &raw.map(|x| x.widen(access.signed) as u32), mask),
            }
        }
    }
    race::found(cx, &addr, mask, access);
    Flow::Next
}

/// `ld.b128`
pub(crate) unsafe fn ld128(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    let code = cx.code;
    let access = &code.mems[op.e as usize];
    let mut addr = addresses(cx, op, access);
    if !reach(cx, access, &mut addr, mask, Touch::Read) {
        return Flow::Fault;
    }
    for v in 0..access.count as usize {
        // SAFETY: as in `ld`.
        unsafe {
            let mut value = [0u128; LANES];
            for l in lanes_of(mask) {
                value[l] = (addr[l] as *const u8).add(v * 16).cast::<u128>().read_unaligned();
            }
            put(cx, access.slots[v], &value, mask);
        }
    }
    race::found(cx, &addr, mask, access);
    Flow::Next
}

/// `st`
pub(crate) unsafe fn st<T: Raw>(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    let code = cx.code;
    let access = &code.mems[op.e as usize];
    let mut addr = addresses(cx, op, access);
    if access.space == Space::Const {
        return cx.fail(FaultKind::Space, mask, "writes to constant memory");
    }
    if !reach(cx, access, &mut addr, mask, Touch::Write) {
        return Flow::Fault;
    }
    for v in 0..access.count as usize {
        let slot = access.slots[v];
        let offset = v * size_of::<T>();
        // SAFETY: `reach` made pointers to memory of the access's size; the register is of the kind.
        unsafe {
            let raw: [T; LANES] = match access.kind {
                Kind::W16 => get::<u16>(cx, slot).map(|x| T::cut(x.into())),
                Kind::W64 | Kind::F64 => get::<u64>(cx, slot).map(T::cut),
                _ => get::<u32>(cx, slot).map(|x| T::cut(x.into())),
            };
            for l in 0..LANES {
                if mask >> l & 1 != 0 {
                    (addr[l] as *mut u8).add(offset).cast::<T>().write_unaligned(raw[l]);
                }
            }
        }
    }
    Flow::Next
}

/// `st.b128`
pub(crate) unsafe fn st128(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    let code = cx.code;
    let access = &code.mems[op.e as usize];
    let mut addr = addresses(cx, op, access);
    if !reach(cx, access, &mut addr, mask, Touch::Write) {
        return Flow::Fault;
    }
    for v in 0..access.count as usize {
        // SAFETY: as in `st`.
        unsafe {
            let value = get::<u128>(cx, access.slots[v]);
            for l in lanes_of(mask) {
                (addr[l] as *mut u8).add(v * 16).cast::<u128>().write_unaligned(value[l]);
            }
        }
    }
    Flow::Next
}

/// `ld.param` of a kernel at a fixed place: the same value for all lanes.
pub(crate) unsafe fn ld_param<T: Raw>(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    let code = cx.code;
    let access = &code.mems[op.e as usize];
    for v in 0..access.count as usize {
        let at = op.imm as usize + v * size_of::<T>();
        if access.slots[v] == NONE {
            continue;
        }
        let mut bytes = [0u8; 8];
        // lowering checked the place against the parameters' size, the launch the parameters against the kernel's
        bytes[..size_of::<T>()].copy_from_slice(&cx.grid.params[at..at + size_of::<T>()]);
        let value = T::cut(u64::from_le_bytes(bytes)).widen(access.signed);
        // SAFETY: the register is of the kind.
        unsafe {
            match access.kind {
                Kind::W16 => put(cx, access.slots[v], &[value as u16; LANES], mask),
                Kind::W64 | Kind::F64 => put(cx, access.slots[v], &[value; LANES], mask),
                _ => put(cx, access.slots[v], &[value as u32; LANES], mask),
            }
        }
    }
    Flow::Next
}

/// `isspacep`: whether a generic address lies in a space; imm is the window, 0 for global.
pub(crate) unsafe fn isspacep(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    // SAFETY: lowering gave a 64-bit register and a predicate.
    unsafe {
        let a = get::<u64>(cx, op.a);
        let inside = |x: u64| match op.imm {
            0 => x >> 32 > 4,
            window => x & !0xffff_ffff == window,
        };
        let bits = (0..LANES).fold(0, |m, l| m | u32::from(inside(a[l])) << l);
        put_pred(cx, op.d, bits, mask);
    }
    Flow::Next
}
