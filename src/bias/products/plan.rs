//! Products on a device: one launch, which makes and adds them.

use bytemuck::Zeroable;

use super::RelativeProducts;
use crate::bias::form::{BiasInputs, hold_places};
use crate::bias::terms::plan::strides;
use crate::bias::{By, Outside, Sign};
use crate::gpu::args::{Divisor, Out, PRODUCT_BAND, PRODUCT_STAGED, PRODUCT_TILE, ProductsArgs, ToeplitzArgs};
use crate::gpu::kernel::PRODUCTS;
use crate::gpu::{Gpu, Kernel, Launch, Placed, Read, Uploaded, View, ViewMut, on_stream, widest};
use crate::position::Places;
use crate::shape::{Numbers, product};
use crate::{Error, Heads, Logits, Result, Scalar};

// -------------------------------------------------------------------------------------------------------------- launch

/// Warps of a block, 16 states each.
const WARPS: usize = PRODUCT_TILE / 16;
/// 16-byte packs of a row that shared memory holds at once: 128 channels of a half type.
const MOST_PACKS: usize = 16;
/// The same where a block has less than [`NEEDED`] bytes of shared memory: 7.5.
const FEW_PACKS: usize = 8;
/// Bytes of shared memory for [`MOST_PACKS`].
const NEEDED: u32 = shared(MOST_PACKS);
/// Blocks of a multiprocessor that a call has before its blocks walk over more than one tile: two rounds of those that fit.
const FULL: usize = 8;
/// The most tiles that a block walks: beyond, the rows of the table that two walks share are few.
const MOST_WALK: usize = 16;

/// Bytes of shared memory: the ring, the states, and what each warp lays there.
const fn shared(packs: usize) -> u32 {
    // A pack more for each row keeps rows in different banks.
    ((PRODUCT_BAND + PRODUCT_TILE) * (packs + 1) * 16 + WARPS * PRODUCT_STAGED * 4) as u32
}

/// What the device decides: no bit of a result.
#[derive(Clone, Copy, Debug)]
struct Room {
    multiprocessors: u32,
    packs: usize,
}

/// The grid: how many tiles a block walks, and where each block begins.
fn launch<T>(mut args: ProductsArgs, x: &Placed<Out, Logits>, by: By, room: Room) -> Result<Launch<ProductsArgs>> {
    let Logits { batch, heads, queries, keys, .. } = x.shape;
    let (rows, columns) = if by == By::Keys { (keys, queries) } else { (queries, keys) };
    let (row_tiles, tiles) = (rows.div_ceil(PRODUCT_TILE), columns.div_ceil(PRODUCT_TILE));
    let lines = product("batch x heads x tiles", &[batch, heads, row_tiles])?;
    let all = product("batch x heads x tiles", &[lines, tiles])?;
    let walk = (all / (FULL * room.multiprocessors as usize)).clamp(1, MOST_WALK);
    let walks = tiles.div_ceil(walk);
    let blocks = product("batch x heads x walks", &[lines, walks])?;
    let grid = u32::try_from(blocks).ok().filter(|&blocks| blocks <= i32::MAX as u32).ok_or_else(|| {
        Error::Value(format!("the call has {blocks} walks of tiles (batch x heads x tiles), one takes 2147483647"))
    })?;
    let wide = 16 / size_of::<T>();
    let all_packs = (args.width as usize).div_ceil(2 * wide) * 2;
    // All of them lie below the count of blocks, or of packs.
    args.packs = all_packs.min(room.packs) as u32;
    (args.walk, args.walks, args.row_tiles) = (walk as u32, walks as u32, row_tiles as u32);
    (args.by_walks, args.by_row_tiles) = (Divisor::new(args.walks), Divisor::new(args.row_tiles));
    let shared = shared(args.packs as usize);
    Ok(Launch { shared, ..Launch::new([grid, 1, 1], [32 * WARPS as u32, 1, 1], args) })
}

// ---------------------------------------------------------------------------------------------------------------- plan

/// [`RelativeProducts`] on a [`Gpu`], for one element type: the lookup is uploaded, the kernels are loaded.
///
/// A call multiplies states and table and adds the products to logits, or writes them, in one kernel: f16 and bf16 on tensor cores
/// (compute capability 8.0 and above), f32 by FMA. The products of states and table are never stored. A call allocates nothing,
/// uploads nothing and synchronises nothing.
#[derive(Clone, Debug)]
pub struct RelativeProductsPlan<T> {
    gpu: Gpu,
    spec: RelativeProducts,
    /// entries by distance
    lookup: Option<Uploaded<u16>>,
    kernel: Kernel<ProductsArgs>,
    room: Room,
    element: std::marker::PhantomData<T>,
}

/// What a call multiplies.
struct Factors<'a, T> {
    states: View<'a, T, Heads>,
    bias: Option<Read<'a, f32>>,
    table: View<'a, T, Numbers>,
}

on_stream! { RelativeProductsPlan { gpu } }

impl<T: Scalar> RelativeProductsPlan<T> {
    /// Uploads the lookup and loads the kernels.
    ///
    /// # Errors
    /// If the spec is refused, or the kernels cannot be loaded.
    pub fn new(gpu: &Gpu, spec: &RelativeProducts) -> Result<Self> {
        spec.check()?;
        let lookup = match &spec.index.lookup[..] {
            [] => None,
            lookup => Some(gpu.upload(lookup)?),
        };
        let [queries, keys] = gpu.load::<T, _, 2>(PRODUCTS)?;
        let kernel = if spec.by == By::Keys { keys } else { queries };
        let packs = if gpu.shared_memory()? < NEEDED { FEW_PACKS } else { MOST_PACKS };
        kernel.reserve(shared(packs))?;
        let room = Room { multiprocessors: gpu.multiprocessors(), packs };
        Ok(Self { gpu: gpu.clone(), spec: spec.clone(), lookup, kernel, room, element: std::marker::PhantomData })
    }

    /// Adds the products of states and table to logits in place, in one kernel. Across packed sequences -inf is added.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `logits` | `[batch, heads, queries, keys]` | changed in place |
    /// | `states` | `[batch, tokens, heads, width]` | of the queries or of the keys; any width up to 65536 |
    /// | `bias` | `[heads, width]` | `v`, added to the states in f32; the sum is rounded to `T` |
    /// | `table` | `[batch or 1, heads or 1, entries, width]` | [`Numbers`] whose rows are entries: `Numbers::rows(1, heads, entries, width)` |
    /// | `places` | | positions of queries and keys |
    ///
    /// Tensor cores take tiles of 64 states and 64 columns whose positions follow one another. With positions given one by one, and
    /// in tiles that hold several packed sequences, each pair's row of the table is read for itself: about ten times the work.
    ///
    /// # Accuracy
    /// [`RelativeProducts::error_bound`], one rounding of the sum to f32 and the rounding to `T`. A pair's sum depends on the width
    /// alone: a chunk of batch, heads, queries or keys, and a packed sequence, is the slice of the whole, bit for bit, on one device.
    /// The order of the 16 products of a tensor core's step is the device's own, so that f16 and bf16 may differ in their last bits
    /// between generations of devices; f32 does not.
    ///
    /// # Errors
    /// If a buffer is too short, belongs to another context or shares memory with `logits`, elements of `logits` overlap, or sizes do
    /// not go together. Nothing is written then. Lengths and positions on the device are not looked at.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::bias::{Distances, Numbers, RelativeProducts, RelativeProductsPlan};
    /// use posenc::{Gpu, Heads, Logits, Places};
    ///
    /// // A Conformer layer: 8 heads of 64 channels, 500 frames.
    /// let gpu = Gpu::open(0)?;
    /// let spec = RelativeProducts { factor: 0.125, ..RelativeProducts::queries(Distances::conformer(500)) };
    /// let plan = RelativeProductsPlan::<half::bf16>::new(&gpu, &spec)?;
    /// let (q, v) = (gpu.stream().alloc_zeros(500 * 8 * 64)?, gpu.stream().alloc_zeros::<f32>(8 * 64)?);
    /// let table = gpu.stream().alloc_zeros(8 * 999 * 64)?;
    /// let mut logits = gpu.stream().alloc_zeros(8 * 500 * 500)?;
    /// plan.add(
    ///     Logits::bhqk(1, 8, 500, 500).of_mut(&mut logits),
    ///     Heads::thd(500, 8, 64).of(&q),
    ///     Some(&v),
    ///     Numbers::rows(1, 8, 999, 64).of(&table),
    ///     Places::counted(0, 0),
    /// )?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn add<'a>(
        &'a self,
        logits: ViewMut<'a, T, Logits>,
        states: View<'a, T, Heads>,
        bias: Option<Read<'a, f32>>,
        table: View<'a, T, Numbers>,
        places: Places<Read<'a, i32>>,
    ) -> Result<()> {
        self.run("logits", true, logits, Factors { states, bias, table }, places)
    }

    /// Writes the products of every query and key, in one kernel. Across packed sequences -inf is written. Arguments, accuracy and
    /// errors as [`RelativeProductsPlan::add`].
    ///
    /// # Errors
    /// As [`RelativeProductsPlan::add`].
    pub fn write<'a>(
        &'a self,
        out: ViewMut<'a, T, Logits>,
        states: View<'a, T, Heads>,
        bias: Option<Read<'a, f32>>,
        table: View<'a, T, Numbers>,
        places: Places<Read<'a, i32>>,
    ) -> Result<()> {
        self.run("out", false, out, Factors { states, bias, table }, places)
    }

    fn run<'a>(
        &'a self,
        name: &'static str,
        add: bool,
        x: ViewMut<'a, T, Logits>,
        factors: Factors<'a, T>,
        places: Places<Read<'a, i32>>,
    ) -> Result<()> {
        let mut call = self.gpu.call();
        let x = call.view_mut(name, x)?;
        let bias = hold_places(&mut call, &x.shape, &BiasInputs::from(places))?;
        let Factors { states, bias: v, table } = factors;
        let (states, table) = (call.view("states", states)?, call.view("table", table)?);
        self.spec.check_shapes(&x.shape, &states.shape, &table.shape)?;
        let need = product("heads x width", &[states.shape.heads, states.shape.dim])?;
        let state_bias = call.read_some("bias", v, need)?;
        let lookup = self.lookup.as_ref().map_or(Ok(crate::gpu::args::In::NULL), |of| call.table("lookup", of))?;
        if x.shape.is_empty() {
            return Ok(());
        }
        let toeplitz = ToeplitzArgs {
            bias,
            x: x.at,
            strides: x.shape.strides.map(|stride| stride as i64),
            aligned: u32::from(widest(x.steps) == 16),
            add: u32::from(add),
            ..ToeplitzArgs::zeroed()
        };
        let table_strides = strides(&table.shape);
        let index = &self.spec.index;
        // Widths lie within 2^16, distances and entries within 2^30, as the checks say.
        let args = ProductsArgs {
            call: toeplitz,
            states: states.at,
            state_bias,
            table: table.at,
            lookup,
            state_strides: states.shape.strides.map(|stride| stride as i64),
            table_strides,
            width: states.shape.dim as u32,
            factor: self.spec.factor,
            first: index.first as i32,
            count: index.count as i32,
            reversed: u32::from(index.sign == Sign::QueryMinusKey),
            zero_outside: u32::from(index.outside == Outside::Zero),
            wide_states: u32::from(widest(states.steps) == 16),
            wide_table: u32::from(widest(table.steps) == 16 && table_strides[3] <= 1),
            ..ProductsArgs::zeroed()
        };
        call.launch(&self.kernel, &launch::<T>(args, &x, self.spec.by, self.room)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_has_one_block() {
        for (queries, keys) in [(1, 1), (64, 64), (65, 1), (1, 40_000), (3000, 5000), (20_000, 20_000)] {
            for (heads, width, multiprocessors, by) in
                [(1, 1, 1, By::Queries), (16, 64, 132, By::Keys), (3, 300, 40, By::Keys)]
            {
                let x = Placed { at: Out::NULL, shape: Logits::bhqk(2, heads, queries, keys), steps: 0 };
                let args = ProductsArgs { width, ..ProductsArgs::zeroed() };
                let room = Room { multiprocessors, packs: MOST_PACKS };
                let Launch { grid, shared, args, .. } = launch::<f32>(args, &x, by, room).unwrap();
                let (rows, columns) = if by == By::Keys { (keys, queries) } else { (queries, keys) };
                assert_eq!(args.row_tiles as usize, rows.div_ceil(PRODUCT_TILE));
                assert_eq!(grid, [2 * heads as u32 * args.row_tiles * args.walks, 1, 1]);
                let tiles = columns.div_ceil(PRODUCT_TILE);
                let (walk, walks) = (args.walk as usize, args.walks as usize);
                assert!(walk * walks >= tiles && walk * (walks - 1) < tiles, "{walk} {walks} {tiles}");
                assert!(walk == 1 || grid[0] as usize * walk >= FULL * multiprocessors as usize);
                assert!(args.packs.is_multiple_of(2) && args.packs >= 2 && shared <= NEEDED);
            }
        }
    }
}
