//! Loads, stores, atomics, and the checks that each address goes through.

use super::control::{Builtin, Call};
use super::lane::{Kind, LANES, get, put};
use super::{Cx, Flow, LOCAL_WINDOW, NONE, Op, PARAM_WINDOW, SHARED_WINDOW};
use crate::check;
use crate::fault::FaultKind;
use crate::ptx::ast::{Space, Ty};

/// Why memory is touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Touch {
    Read,
    Write,
    Atomic,
}

/// How an access is ordered, for the race detector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// An ordinary access.
    Weak,
    /// `ld.global.nc`: memory that must not change.
    ReadOnly,
    /// `.volatile`, `.relaxed`: never a race with its like.
    Strong,
    /// `.acquire`, `.release`.
    Sync,
}

/// Everything about a load or store.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub(crate) space: Space,
    /// Bytes of an element.
    pub(crate) size: u8,
    /// Elements.
    pub(crate) count: u8,
    pub(crate) signed: bool,
    /// The address register has 64 bits.
    pub(crate) wide: bool,
    pub(crate) order: Order,
    /// Registers of the elements; [`NONE`] drops one.
    pub(crate) slots: [u32; 8],
    pub(crate) kind: Kind,
}

impl Access {
    fn bytes(&self) -> u64 {
        u64::from(self.size) * u64::from(self.count)
    }
}

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

fn addresses(cx: &Cx, op: &Op, access: &Access) -> [u64; LANES] {
    // SAFETY: lowering gave a register of the width.
    unsafe {
        if access.wide {
            get::<u64>(cx, op.a).map(|a| a.wrapping_add(op.imm))
        } else {
            get::<u32>(cx, op.a).map(|a| u64::from(a.wrapping_add(op.imm as u32)))
        }
    }
}

fn lanes_of(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let lane = left.trailing_zeros() as usize;
        left &= left - 1;
        Some(lane)
    })
}

/// Checks and counts an access, and turns addresses into host pointers. `false`: the launch has failed.
#[inline]
pub(crate) fn reach(cx: &mut Cx, access: &Access, addr: &mut [u64; LANES], mask: u32, touch: Touch) -> bool {
    let bytes = access.bytes();
    match access.space {
        Space::Global | Space::Const => reach_global(cx, access, addr, mask, touch, bytes),
        Space::Shared => reach_shared(cx, access, addr, mask, touch, bytes),
        Space::Local => reach_local(cx, access, addr, mask, touch, bytes),
        Space::Param => reach_param(cx, access, addr, mask, touch, bytes),
        Space::Generic => {
            let mut left = mask;
            while left != 0 {
                let window = addr[left.trailing_zeros() as usize] >> 32;
                let same = lanes_of(left)
                    .filter(|&l| {
                        let other = addr[l] >> 32;
                        other == window || (other > 3 && window > 3) || (other == 0 && window > 3)
                    })
                    .fold(0, |m, l| m | 1 << l);
                let cut = |addr: &mut [u64; LANES], base: u64| {
                    for l in lanes_of(same) {
                        addr[l] -= base;
                    }
                };
                let fine = match window << 32 {
                    SHARED_WINDOW => {
                        cut(addr, SHARED_WINDOW);
                        reach_shared(cx, access, addr, same, touch, bytes)
                    }
                    LOCAL_WINDOW => {
                        cut(addr, LOCAL_WINDOW);
                        reach_local(cx, access, addr, same, touch, bytes)
                    }
                    PARAM_WINDOW => {
                        cut(addr, PARAM_WINDOW);
                        reach_param(cx, access, addr, same, touch, bytes)
                    }
                    _ => reach_global(cx, access, addr, same, touch, bytes),
                };
                if !fine {
                    return false;
                }
                left &= !same;
            }
            true
        }
    }
}

fn verb(touch: Touch) -> &'static str {
    match touch {
        Touch::Read => "reads",
        Touch::Write => "writes",
        Touch::Atomic => "updates",
    }
}

fn misaligned(cx: &mut Cx, addr: &[u64; LANES], mask: u32, touch: Touch, bytes: u64, space: &str) -> bool {
    for l in lanes_of(mask) {
        if !addr[l].is_multiple_of(bytes) {
            let what =
                format!("{} {bytes} bytes of {space} memory at {:#x}, which is misaligned", verb(touch), addr[l]);
            cx.fail(FaultKind::Misaligned, 1 << l, &what);
            return true;
        }
    }
    false
}

#[inline]
fn reach_global(cx: &mut Cx, access: &Access, addr: &mut [u64; LANES], mask: u32, touch: Touch, bytes: u64) -> bool {
    let first = addr[mask.trailing_zeros() as usize];
    let (mut low, mut high, mut bits) = (u64::MAX, 0, 0);
    for l in 0..LANES {
        let a = if mask >> l & 1 != 0 { addr[l] } else { first };
        low = low.min(a);
        high = high.max(a);
        bits |= a;
    }
    if bits & (bytes - 1) != 0 && cx.grid.strict.bounds && misaligned(cx, addr, mask, touch, bytes, "global") {
        return false;
    }
    let slot = cx.pc as usize % cx.cache.len();
    let (start, end) = cx.cache[slot];
    if (low < start || high > end.wrapping_sub(bytes) || end < bytes) && !locate(cx, addr, mask, touch, bytes, slot) {
        return false;
    }
    // counters
    let lanes = u64::from(mask.count_ones());
    let sectors = sectors(addr, mask, bytes, low, high, lanes);
    let c = &mut cx.counters;
    c.global_accesses[bytes.trailing_zeros() as usize & 7] += lanes;
    if touch != Touch::Write {
        c.bytes_read += lanes * bytes;
        c.sectors_read += sectors;
    }
    if touch != Touch::Read {
        c.bytes_written += lanes * bytes;
        c.sectors_written += sectors;
    }
    let strict = cx.grid.strict;
    if strict.uninitialised && !check::global_init(cx, addr, mask, touch, bytes) {
        return false;
    }
    if strict.races && !check::global_race(cx, addr, mask, touch, bytes, access.order) {
        return false;
    }
    true
}

/// Distinct sectors of 32 bytes.
#[inline]
fn sectors(addr: &[u64; LANES], mask: u32, bytes: u64, low: u64, high: u64, lanes: u64) -> u64 {
    // consecutive lanes at consecutive addresses: the usual case needs no list
    if high - low == (lanes - 1) * bytes {
        let dense = {
            let mut next = low;
            let mut dense = true;
            for l in lanes_of(mask) {
                dense &= addr[l] == next;
                next += bytes;
            }
            dense
        };
        if dense {
            return (high + bytes - 1) / 32 - low / 32 + 1;
        }
    }
    let mut list = [0u64; LANES];
    let mut n = 0;
    let mut sorted = true;
    for l in lanes_of(mask) {
        let sector = addr[l] / 32;
        if n > 0 && sector == list[n - 1] {
            continue;
        }
        sorted &= n == 0 || sector > list[n - 1];
        list[n] = sector;
        n += 1;
    }
    if !sorted {
        list[..n].sort_unstable();
        let mut distinct = 1;
        for i in 1..n {
            distinct += usize::from(list[i] != list[i - 1]);
        }
        n = distinct;
    }
    n as u64
}

/// Finds the allocations of all lanes.
#[cold]
fn locate(cx: &mut Cx, addr: &[u64; LANES], mask: u32, touch: Touch, bytes: u64, slot: usize) -> bool {
    let grid = cx.grid;
    for l in lanes_of(mask) {
        match grid.table.find(addr[l]) {
            Some(found) if addr[l] + bytes <= found.end => {
                cx.cache[slot] = (found.start, found.end);
            }
            _ => {
                // without checks the whole reserved region may be touched, as on a device
                if !grid.strict.bounds && grid.table.reserved(addr[l], bytes) {
                    continue;
                }
                let place = grid.table.describe(addr[l], bytes);
                let what = format!("{} {bytes} bytes of global memory at {:#x}, {place}", verb(touch), addr[l]);
                cx.fail(FaultKind::Bounds, 1 << l, &what);
                return false;
            }
        }
    }
    true
}

fn reach_shared(cx: &mut Cx, access: &Access, addr: &mut [u64; LANES], mask: u32, touch: Touch, bytes: u64) -> bool {
    let size = cx.block.shared.len() as u64;
    let mut bits = 0;
    for l in lanes_of(mask) {
        bits |= addr[l];
        if addr[l].checked_add(bytes).is_none_or(|end| end > size) {
            let what =
                format!("{} {bytes} bytes of shared memory at {:#x}, the block has {size} bytes", verb(touch), addr[l]);
            cx.fail(FaultKind::Bounds, 1 << l, &what);
            return false;
        }
    }
    if bits & (bytes - 1) != 0 && cx.grid.strict.bounds && misaligned(cx, addr, mask, touch, bytes, "shared") {
        return false;
    }
    let lanes = u64::from(mask.count_ones());
    if touch != Touch::Write {
        cx.counters.shared_bytes_read += lanes * bytes;
    }
    if touch != Touch::Read {
        cx.counters.shared_bytes_written += lanes * bytes;
    }
    cx.counters.bank_conflicts += conflicts(addr, mask, bytes);
    let strict = cx.grid.strict;
    if (strict.uninitialised || strict.races) && !check::shared(cx, addr, mask, touch, bytes, access.order) {
        return false;
    }
    let base = cx.block.shared.as_mut_ptr() as u64;
    for a in addr.iter_mut().enumerate().filter(|(l, _)| mask >> l & 1 != 0) {
        *a.1 += base;
    }
    true
}

/// Passes beyond the first. 4-byte words in 32 banks; wider accesses go in halves or quarters of the warp.
fn conflicts(addr: &[u64; LANES], mask: u32, bytes: u64) -> u64 {
    let group = match bytes {
        0..=4 => 32,
        8 => 16,
        _ => 8,
    };
    let mut extra = 0;
    for start in (0..LANES).step_by(group) {
        let part = (mask >> start) & if group == 32 { u32::MAX } else { (1 << group) - 1 };
        if part == 0 {
            continue;
        }
        // words in order of lanes: no conflict is the usual case, seen by a bank being met with one word only
        let mut words = [u64::MAX; 32];
        let mut clash = false;
        for l in lanes_of(part) {
            let first = addr[start + l] / 4;
            for word in first..first + bytes.div_ceil(4) {
                let bank = (word % 32) as usize;
                clash |= words[bank] != u64::MAX && words[bank] != word;
                words[bank] = word;
            }
        }
        if clash {
            let mut all: Vec<u64> = lanes_of(part)
                .flat_map(|l| {
                    let first = addr[start + l] / 4;
                    first..first + bytes.div_ceil(4)
                })
                .collect();
            all.sort_unstable();
            all.dedup();
            let mut load = [0u64; 32];
            for word in all {
                load[(word % 32) as usize] += 1;
            }
            extra += load.iter().max().map_or(0, |m| m - 1);
        }
    }
    extra
}

fn reach_local(cx: &mut Cx, _access: &Access, addr: &mut [u64; LANES], mask: u32, touch: Touch, bytes: u64) -> bool {
    let stack = cx.grid.stack as u64;
    for l in lanes_of(mask) {
        if addr[l].checked_add(bytes).is_none_or(|end| end > stack) {
            let what =
                format!("{} {bytes} bytes of local memory at {:#x}, a thread has {stack} bytes", verb(touch), addr[l]);
            cx.fail(FaultKind::Bounds, 1 << l, &what);
            return false;
        }
        if addr[l] & (bytes - 1) != 0 && cx.grid.strict.bounds {
            misaligned(cx, addr, 1 << l, touch, bytes, "local");
            return false;
        }
    }
    let lanes = u64::from(mask.count_ones());
    match touch {
        Touch::Read => cx.counters.local_bytes_read += lanes * bytes,
        _ => cx.counters.local_bytes_written += lanes * bytes,
    }
    let base = cx.warp().local.as_mut_ptr() as u64;
    for l in lanes_of(mask) {
        addr[l] += base + l as u64 * stack;
    }
    true
}

fn reach_param(cx: &mut Cx, _access: &Access, addr: &mut [u64; LANES], mask: u32, touch: Touch, bytes: u64) -> bool {
    let size = cx.grid.params.len() as u64;
    for l in lanes_of(mask) {
        if touch != Touch::Read {
            cx.fail(FaultKind::Space, 1 << l, "writes to the kernel's parameters");
            return false;
        }
        if addr[l].checked_add(bytes).is_none_or(|end| end > size) {
            let what =
                format!("reads {bytes} bytes of parameters at {:#x}, the kernel has {size} bytes of them", addr[l]);
            cx.fail(FaultKind::Bounds, 1 << l, &what);
            return false;
        }
    }
    let base = cx.grid.params.as_ptr() as u64;
    for l in lanes_of(mask) {
        addr[l] += base;
    }
    true
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

// ---- atomics ---------------------------------------------------------------------------------------------------------

/// What an atomic does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Atom {
    And,
    Or,
    Xor,
    Cas,
    Exch,
    Add,
    Inc,
    Dec,
    Min,
    Max,
}

const ATOMS: [Atom; 10] =
    [Atom::And, Atom::Or, Atom::Xor, Atom::Cas, Atom::Exch, Atom::Add, Atom::Inc, Atom::Dec, Atom::Min, Atom::Max];
const ATOM_TYPES: [Ty; 14] = [
    Ty::B16,
    Ty::B32,
    Ty::B64,
    Ty::U32,
    Ty::U64,
    Ty::S32,
    Ty::S64,
    Ty::F32,
    Ty::F64,
    Ty::F16,
    Ty::Bf16,
    Ty::F16x2,
    Ty::Bf16x2,
    Ty::B128,
];

/// What an atomic does, from its constant.
fn decode(imm: u64) -> (Atom, Ty) {
    (ATOMS[(imm & 15) as usize], ATOM_TYPES[(imm >> 4 & 15) as usize])
}

/// The constant that says what an atomic does, or `None` if PTX has no such combination.
pub(crate) fn encode(atom: Atom, ty: Ty) -> Option<u64> {
    let a = ATOMS.iter().position(|x| *x == atom)?;
    let t = ATOM_TYPES.iter().position(|x| *x == ty)?;
    Some(a as u64 | (t as u64) << 4)
}

fn apply(atom: Atom, ty: Ty, old: u64, b: u64, c: u64) -> u64 {
    use super::float::{BF16, F16, Round, bf16_to_f32, canonical, f16_to_f32};
    let f = |x: u64| f32::from_bits(x as u32);
    let half2 = |op: &dyn Fn(u64, u64) -> u64| {
        (0..2).fold(0, |all, i| all | op(old >> (16 * i) & 0xffff, b >> (16 * i) & 0xffff) << (16 * i))
    };
    let min16 = |format, max: bool| {
        move |x: u64, y: u64| {
            let wide = |v: u64| if format == F16 { f16_to_f32(v as u16) } else { bf16_to_f32(v as u16) };
            let (p, q) = (wide(x), wide(y));
            match () {
                () if p.is_nan() => y,
                () if q.is_nan() => x,
                () => {
                    if (p.total_cmp(&q).is_lt()) != max {
                        x
                    } else {
                        y
                    }
                }
            }
        }
    };
    match (atom, ty) {
        (Atom::And, _) => old & b,
        (Atom::Or, _) => old | b,
        (Atom::Xor, _) => old ^ b,
        (Atom::Exch, _) => b,
        (Atom::Cas, _) => {
            if old == b {
                c
            } else {
                old
            }
        }
        (Atom::Add, Ty::F32) => u64::from(canonical(f(old) + f(b)).to_bits()),
        (Atom::Add, Ty::F64) => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
        (Atom::Add, Ty::F16) => super::float::add(old, b, F16, Round::Near),
        (Atom::Add, Ty::Bf16) => super::float::add(old, b, BF16, Round::Near),
        (Atom::Add, Ty::F16x2) => half2(&|x, y| super::float::add(x, y, F16, Round::Near)),
        (Atom::Add, Ty::Bf16x2) => half2(&|x, y| super::float::add(x, y, BF16, Round::Near)),
        (Atom::Min, Ty::F16) => min16(F16, false)(old, b),
        (Atom::Max, Ty::F16) => min16(F16, true)(old, b),
        (Atom::Min, Ty::Bf16) => min16(BF16, false)(old, b),
        (Atom::Max, Ty::Bf16) => min16(BF16, true)(old, b),
        (Atom::Min, Ty::F16x2) => half2(&min16(F16, false)),
        (Atom::Max, Ty::F16x2) => half2(&min16(F16, true)),
        (Atom::Min, Ty::Bf16x2) => half2(&min16(BF16, false)),
        (Atom::Max, Ty::Bf16x2) => half2(&min16(BF16, true)),
        (Atom::Add, Ty::U32 | Ty::S32) => u64::from((old as u32).wrapping_add(b as u32)),
        (Atom::Add, _) => old.wrapping_add(b),
        (Atom::Inc, _) => {
            if old as u32 >= b as u32 {
                0
            } else {
                old + 1
            }
        }
        (Atom::Dec, _) => {
            if old as u32 == 0 || old as u32 > b as u32 {
                b
            } else {
                old - 1
            }
        }
        (Atom::Min, Ty::S32) => u64::from((old as i32).min(b as i32) as u32),
        (Atom::Max, Ty::S32) => u64::from((old as i32).max(b as i32) as u32),
        (Atom::Min, Ty::S64) => (old as i64).min(b as i64) as u64,
        (Atom::Max, Ty::S64) => (old as i64).max(b as i64) as u64,
        (Atom::Min, _) => old.min(b),
        (Atom::Max, _) => old.max(b),
    }
}

/// `atom` and `red`: a address, b and c operands, d the old value or [`NONE`].
pub(crate) unsafe fn atom(cx: &mut Cx, op: &Op, mask: u32) -> Flow {
    use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering::SeqCst};
    let code = cx.code;
    let access = &code.mems[op.e as usize];
    let mut addr = addresses(cx, op, access);
    // sums of singles in global memory have no subnormals, in shared memory they have (PTX ISA, `atom`)
    let windows = addr;
    let global = |l: usize| match access.space {
        Space::Generic => windows[l] >> 32 > 4,
        space => space == Space::Global,
    };
    if !reach(cx, access, &mut addr, mask, Touch::Atomic) {
        return Flow::Fault;
    }
    // the code stands where a load has its signedness and slots
    let (what, ty) = decode(u64::from(access.slots[0]));
    // SAFETY: lowering gave registers of the access's size; `reach` made aligned pointers.
    unsafe {
        let read = |cx: &Cx, at: u32| -> [u64; LANES] {
            if at == NONE {
                return [0; LANES];
            }
            match access.size {
                2 => get::<u16>(cx, at).map(u64::from),
                4 => get::<u32>(cx, at).map(u64::from),
                _ => get::<u64>(cx, at),
            }
        };
        let mut old = [0u64; LANES];
        let count = access.count as usize;
        for v in 0..count {
            // vectors: element registers stand in the lists
            let (b_at, d_at) = if count == 1 {
                (op.b, op.d)
            } else {
                let list = &code.lists[op.c as usize];
                (list[v], if op.d == NONE { NONE } else { list[count + v] })
            };
            let b = read(cx, b_at);
            let c = if count == 1 { read(cx, op.c) } else { [0; LANES] };
            for l in lanes_of(mask) {
                let at = addr[l] as usize + v * access.size as usize;
                let flushes = (what, ty) == (Atom::Add, Ty::F32) && global(l);
                let flush = |x: u64| if flushes && x & 0x7f80_0000 == 0 { x & 0x8000_0000 } else { x };
                let f = |x: u64| flush(apply(what, ty, flush(x), flush(b[l]), c[l]));
                old[l] = match access.size {
                    2 => u64::from(
                        (*(at as *const AtomicU16))
                            .fetch_update(SeqCst, SeqCst, |x| Some(f(x.into()) as u16))
                            .unwrap_or_default(),
                    ),
                    4 => u64::from(
                        (*(at as *const AtomicU32))
                            .fetch_update(SeqCst, SeqCst, |x| Some(f(x.into()) as u32))
                            .unwrap_or_default(),
                    ),
                    _ => (*(at as *const AtomicU64)).fetch_update(SeqCst, SeqCst, |x| Some(f(x))).unwrap_or_default(),
                };
            }
            if d_at != NONE {
                match access.size {
                    2 => put(cx, d_at, &old.map(|x| x as u16), mask),
                    4 => put(cx, d_at, &old.map(|x| x as u32), mask),
                    _ => put(cx, d_at, &old, mask),
                }
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
        super::lane::put_pred(cx, op.d, bits, mask);
    }
    Flow::Next
}

/// `fence` and `membar` of the device or the system: earlier writes are ordered before later atomics.
pub(crate) unsafe fn fence(cx: &mut Cx, _op: &Op, _mask: u32) -> Flow {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    if cx.grid.strict.races {
        check::fence(cx);
    }
    Flow::Next
}

// ---- functions of the driver -----------------------------------------------------------------------------------------

/// Reads a byte of memory at a generic address; the launch fails if there is none.
fn byte_at(cx: &mut Cx, lane: usize, at: u64) -> Option<u8> {
    let access = Access {
        space: Space::Generic,
        size: 1,
        count: 1,
        signed: false,
        wide: true,
        order: Order::Weak,
        slots: [NONE; 8],
        kind: Kind::W16,
    };
    let mut addr = [at; LANES];
    // SAFETY: `reach` made a pointer to one byte.
    reach(cx, &access, &mut addr, 1 << lane, Touch::Read).then(|| unsafe { *(addr[lane] as *const u8) })
}

fn text_at(cx: &mut Cx, lane: usize, mut at: u64) -> Option<String> {
    let mut bytes = Vec::new();
    while bytes.len() < 4096 {
        match byte_at(cx, lane, at)? {
            0 => break,
            byte => bytes.push(byte),
        }
        at += 1;
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// A call of `vprintf` or `__assertfail`.
pub(crate) fn builtin(cx: &mut Cx, what: Builtin, call: &Call, mask: u32) -> Flow {
    let stack = cx.grid.stack;
    let frame = cx.frame as usize;
    let base = cx.warp().frames[frame].local;
    let argument = |cx: &mut Cx, lane: usize, i: usize| -> u64 {
        let Some(&(at, size)) = call.arguments.get(i) else { return 0 };
        let from = lane * stack + (base + at) as usize;
        let mut bytes = [0u8; 8];
        let size = (size as usize).min(8);
        bytes[..size].copy_from_slice(&cx.warp().local[from..from + size]);
        u64::from_le_bytes(bytes)
    };
    for lane in lanes_of(mask) {
        let first = argument(cx, lane, 0);
        let Some(text) = text_at(cx, lane, first) else { return Flow::Fault };
        match what {
            Builtin::Print => {
                let list = argument(cx, lane, 1);
                let Some(line) = print(cx, lane, &text, list) else { return Flow::Fault };
                use std::io::Write;
                let _ = std::io::stdout().write_all(line.as_bytes());
                if let Some(&(to, size)) = call.results.first() {
                    let to = lane * stack + (base + to) as usize;
                    let size = (size as usize).min(4);
                    cx.warp().local[to..to + size].copy_from_slice(&1u32.to_le_bytes()[..size]);
                }
            }
            Builtin::Assert => {
                let (file, line) = (argument(cx, lane, 1), argument(cx, lane, 2));
                let file = text_at(cx, lane, file).unwrap_or_default();
                return cx.fail(
                    FaultKind::Assert,
                    1 << lane,
                    &format!("the assertion `{text}` of {file}:{} does not hold", line as u32),
                );
            }
        }
    }
    Flow::Next
}

/// `printf`: arguments lie one after another, aligned to their size.
fn print(cx: &mut Cx, lane: usize, format: &str, list: u64) -> Option<String> {
    let mut out = String::new();
    let mut at = list;
    let mut take = |cx: &mut Cx, size: u64| -> Option<u64> {
        at = at.next_multiple_of(size);
        let mut value = 0;
        for i in 0..size {
            value |= u64::from(byte_at(cx, lane, at + i)?) << (8 * i);
        }
        at += size;
        Some(value)
    };
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let (mut flags, mut long) = (String::new(), 0);
        loop {
            match chars.next() {
                None => break,
                Some('%') => {
                    out.push('%');
                    break;
                }
                Some('l' | 'z' | 'j' | 't') => long += 1,
                Some('h') => {}
                Some(c @ ('d' | 'i')) => {
                    let _ = c;
                    let v = if long > 0 { take(cx, 8)? as i64 } else { i64::from(take(cx, 4)? as i32) };
                    out.push_str(&padded(&flags, &v.to_string()));
                    break;
                }
                Some(c @ ('u' | 'x' | 'X' | 'o')) => {
                    let v = if long > 0 { take(cx, 8)? } else { take(cx, 4)? };
                    let text = match c {
                        'x' => format!("{v:x}"),
                        'X' => format!("{v:X}"),
                        'o' => format!("{v:o}"),
                        _ => v.to_string(),
                    };
                    out.push_str(&padded(&flags, &text));
                    break;
                }
                Some('p') => {
                    let v = take(cx, 8)?;
                    out.push_str(&format!("{v:#x}"));
                    break;
                }
                Some('c') => {
                    let v = take(cx, 4)?;
                    out.push(v as u8 as char);
                    break;
                }
                Some('s') => {
                    let p = take(cx, 8)?;
                    let text = text_at(cx, lane, p)?;
                    out.push_str(&padded(&flags, &text));
                    break;
                }
                Some(c @ ('f' | 'F' | 'g' | 'G' | 'e' | 'E' | 'a')) => {
                    let v = f64::from_bits(take(cx, 8)?);
                    let places = flags.split('.').nth(1).and_then(|p| p.parse().ok());
                    let text = match c {
                        'e' | 'E' => format!("{v:.*e}", places.unwrap_or(6)),
                        'g' | 'G' => format!("{v}"),
                        _ => format!("{v:.*}", places.unwrap_or(6)),
                    };
                    out.push_str(&padded(&flags, &text));
                    break;
                }
                Some(other) => flags.push(other),
            }
        }
    }
    Some(out)
}

fn padded(flags: &str, text: &str) -> String {
    let left = flags.starts_with('-');
    let zero = flags.starts_with('0');
    let width: usize =
        flags.trim_start_matches(['-', '+', ' ', '#']).split('.').next().unwrap_or("").parse().unwrap_or(0);
    match () {
        () if left => format!("{text:<width$}"),
        () if zero && text.starts_with('-') => format!("-{:0>1$}", &text[1..], width.saturating_sub(1)),
        () if zero => format!("{text:0>width$}"),
        () => format!("{text:>width$}"),
    }
}
