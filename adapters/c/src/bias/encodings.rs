//! The specs of biases: one struct for each encoding.

use posenc::{Alibi, Fire, Kerple, KerpleKind, Sandwich, Sides, Slopes, T5Bias, Toeplitz};

use crate::{Failure, Versioned, size, slice, switch, unknown};

/// Keys of the future: `-slope * |distance|` on both sides.
pub const POSENC_SIDES_SYMMETRIC: u32 = 0;
/// `slope * distance`: the future is rewarded.
pub const POSENC_SIDES_SIGNED: u32 = 1;
/// The first half of the heads sees the past alone, the second half the future alone.
pub const POSENC_SIDES_HALVES: u32 = 2;

/// KERPLE's kernels: `-p * ln(1 + a * |distance|)`.
pub const POSENC_KERPLE_LOG: u32 = 0;
/// `-a * |distance|^p`
pub const POSENC_KERPLE_POWER: u32 = 1;

/// ALiBi: the slopes of some of a model's heads.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencAlibiSpec {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencAlibiSpec)`
    pub size: u32,
    /// heads of the whole model
    pub total_heads: u64,
    /// first head of this shard
    pub first: u64,
    /// heads of this shard
    pub heads: u64,
    /// 8 in the paper
    pub max_bias: f64,
    /// multiplies every slope: 1
    pub scale: f64,
    /// `POSENC_SIDES_...`
    pub sides: u32,
    /// 1: the key's position takes the place of the distance
    pub key_only: u32,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers alone.
unsafe impl Versioned for PosencAlibiSpec {}

/// Slopes of the caller, one for the past and one for the future of each head.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencSlopesSpec {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencSlopesSpec)`
    pub size: u32,
    /// sequences with slopes of their own; 1: all share the same
    pub batch: u64,
    /// heads
    pub heads: u64,
    /// `[batch, heads]` in host memory
    pub left: *const f32,
    /// `[batch, heads]` in host memory; null: as `left`
    pub right: *const f32,
    /// 1: the key's position takes the place of the distance
    pub key_only: u32,
    /// 0
    pub reserved: u32,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers and raw pointers.
unsafe impl Versioned for PosencSlopesSpec {}

/// T5: a number for each bucket of distances and each head.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencT5Spec {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencT5Spec)`
    pub size: u32,
    /// 32 in T5
    pub buckets: u64,
    /// the distance from which all share the last bucket: 128 in T5
    pub max_distance: u64,
    /// heads
    pub heads: u64,
    /// 1: the future has buckets of its own, as in an encoder
    pub bidirectional: u32,
    /// 0
    pub reserved: u32,
    /// `[buckets, heads]` in host memory; null: zeros until `posenc_bias_set_table`
    pub table: *const f32,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers and a raw pointer.
unsafe impl Versioned for PosencT5Spec {}

/// Any law of distance: one row of numbers for each head.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencRowSpec {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencRowSpec)`
    pub size: u32,
    /// heads
    pub heads: u64,
    /// the distance (key - query) of the first number
    pub first: i64,
    /// numbers of each head
    pub distances: u64,
    /// `[heads, distances]` in host memory; a gradient does not look at them
    pub values: *const f32,
    /// 1: distances outside take the number at the row's end
    pub saturates: u32,
    /// 1: the key's position takes the place of the distance
    pub key_only: u32,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers and a raw pointer.
unsafe impl Versioned for PosencRowSpec {}

/// KERPLE.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencKerpleSpec {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencKerpleSpec)`
    pub size: u32,
    /// `POSENC_KERPLE_...`
    pub kind: u32,
    /// 0
    pub reserved: u32,
    /// heads
    pub heads: u64,
    /// `[heads]` in host memory
    pub p: *const f64,
    /// `[heads]` in host memory
    pub a: *const f64,
    /// the smallest distance of a call
    pub least: i64,
    /// the largest distance of a call
    pub most: i64,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers and raw pointers.
unsafe impl Versioned for PosencKerpleSpec {}

/// Sandwich.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencSandwichSpec {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencSandwichSpec)`
    pub size: u32,
    /// heads of the whole model
    pub total_heads: u64,
    /// first head of this shard
    pub first: u64,
    /// heads of this shard
    pub heads: u64,
    /// channels of the sinusoidal embedding: 128 in the paper
    pub width: u64,
    /// the smallest distance of a call
    pub least: i64,
    /// the largest distance of a call
    pub most: i64,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers alone.
unsafe impl Versioned for PosencSandwichSpec {}

/// FIRE.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencFireSpec {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencFireSpec)`
    pub size: u32,
    /// stretches distances
    pub c: f64,
    /// the position from which a query is normalised by its own
    pub threshold: f64,
    /// keeps the normaliser above 0
    pub eps: f64,
    /// inputs of the second layer
    pub width: u64,
    /// heads
    pub heads: u64,
    /// `[width]` in host memory
    pub in_weight: *const f64,
    /// `[width]` in host memory
    pub in_bias: *const f64,
    /// `[heads, width]` in host memory
    pub out_weight: *const f64,
    /// `[heads]` in host memory
    pub out_bias: *const f64,
    /// larger positions and distances are taken as this one
    pub reach: u64,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers and raw pointers.
unsafe impl Versioned for PosencFireSpec {}

fn count(name: &str, sizes: [u64; 2]) -> Result<usize, Failure> {
    match sizes[0].checked_mul(sizes[1]) {
        Some(product) => size(name, product),
        None => Err(Failure::argument(format!("{name} are {} x {}, which no memory holds", sizes[0], sizes[1]))),
    }
}

impl PosencAlibiSpec {
    pub(crate) fn slopes(&self) -> Result<Slopes, Failure> {
        let alibi = Alibi {
            total_heads: size("total_heads", self.total_heads)?,
            first: size("first", self.first)?,
            heads: size("heads", self.heads)?,
            max_bias: self.max_bias,
            scale: self.scale,
            sides: match self.sides {
                POSENC_SIDES_SYMMETRIC => Sides::Symmetric,
                POSENC_SIDES_SIGNED => Sides::Signed,
                POSENC_SIDES_HALVES => Sides::Halves,
                other => return Err(unknown("sides", other)),
            },
        };
        Ok(alibi.slopes()?)
    }
}

impl PosencSlopesSpec {
    /// # Safety
    /// `left` and `right` are null or point to `batch x heads` values.
    pub(crate) unsafe fn slopes(&self) -> Result<Slopes, Failure> {
        let n = count("slopes", [self.batch, self.heads])?;
        // SAFETY: as the caller promises.
        let left = unsafe { slice("left", self.left, n) }?;
        // SAFETY: as the caller promises.
        let right = if self.right.is_null() { left } else { unsafe { slice("right", self.right, n) }? };
        Ok(Slopes::new(size("heads", self.heads)?, left, right)?)
    }
}

impl PosencT5Spec {
    pub(crate) fn t5(&self) -> Result<T5Bias, Failure> {
        let (buckets, most) = (size("buckets", self.buckets)?, size("max_distance", self.max_distance)?);
        Ok(T5Bias::new(buckets, most, switch("bidirectional", self.bidirectional)?))
    }

    /// # Safety
    /// `table` points to `buckets x heads` values.
    pub(crate) unsafe fn row(&self) -> Result<Toeplitz, Failure> {
        let n = count("buckets x heads", [self.buckets, self.heads])?;
        // SAFETY: as the caller promises.
        let table = unsafe { slice("table", self.table, n) }?;
        Ok(self.t5()?.row(table, size("heads", self.heads)?)?)
    }
}

impl PosencRowSpec {
    /// # Safety
    /// `values` is null or points to `heads x distances` values.
    pub(crate) unsafe fn row(&self) -> Result<Toeplitz, Failure> {
        let n = count("heads x distances", [self.heads, self.distances])?;
        // SAFETY: as the caller promises.
        let values = unsafe { slice("values", self.values, n) }?.to_vec();
        let (heads, saturates) = (size("heads", self.heads)?, switch("saturates", self.saturates)?);
        Ok(Toeplitz { heads, first: self.first, values, saturates })
    }
}

impl PosencKerpleSpec {
    /// # Safety
    /// `p` and `a` are null or point to `heads` values.
    pub(crate) unsafe fn kerple(&self) -> Result<Kerple, Failure> {
        let heads = size("heads", self.heads)?;
        Ok(Kerple {
            kind: match self.kind {
                POSENC_KERPLE_LOG => KerpleKind::Log,
                POSENC_KERPLE_POWER => KerpleKind::Power,
                other => return Err(unknown("kind", other)),
            },
            // SAFETY: as the caller promises.
            p: unsafe { slice("p", self.p, heads) }?.to_vec(),
            // SAFETY: as the caller promises.
            a: unsafe { slice("a", self.a, heads) }?.to_vec(),
        })
    }
}

impl PosencSandwichSpec {
    pub(crate) fn row(&self) -> Result<Toeplitz, Failure> {
        let sandwich = Sandwich {
            total_heads: size("total_heads", self.total_heads)?,
            first: size("first", self.first)?,
            heads: size("heads", self.heads)?,
            width: size("width", self.width)?,
        };
        Ok(sandwich.row(self.least..=self.most)?)
    }
}

impl PosencFireSpec {
    /// # Safety
    /// The four layers are null or point to as many values as `width` and `heads` say.
    pub(crate) unsafe fn fire(&self) -> Result<Fire, Failure> {
        let (width, heads) = (size("width", self.width)?, size("heads", self.heads)?);
        let weights = count("heads x width", [self.heads, self.width])?;
        // SAFETY: as the caller promises.
        let layer = |name, pointer, n| unsafe { slice(name, pointer, n) }.map(<[f64]>::to_vec);
        Ok(Fire {
            c: self.c,
            threshold: self.threshold,
            eps: self.eps,
            in_weight: layer("in_weight", self.in_weight, width)?,
            in_bias: layer("in_bias", self.in_bias, width)?,
            out_weight: layer("out_weight", self.out_weight, weights)?,
            out_bias: layer("out_bias", self.out_bias, heads)?,
        })
    }
}
