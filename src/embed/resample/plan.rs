//! [`Resample`] on a device.

use std::marker::PhantomData;

use bytemuck::Zeroable;

use super::Resample;
use crate::embed::launch::{blocks, check_contiguous, fitting, small};
use crate::embed::{Along, GridSize, Tokens};
use crate::filter::Taps;
use crate::gpu::args::ResampleArgs;
use crate::gpu::kernel::RESAMPLE;
use crate::gpu::{Kernel, Launch, Uploaded, View, ViewMut, on_stream};
use crate::memory::reserved;
use crate::{Error, Gpu, Result, Scalar};

// -------------------------------------------------------------------------------------------------------------- launch

impl Resample {
    /// Refuses a tensor that is not the table of a grid `size`, contiguous.
    fn check_table(&self, name: &str, table: &Tokens, size: GridSize) -> Result<()> {
        let Tokens { batch, tokens, dim, .. } = *table;
        let wrong = |text: String| Err(Error::Value(text));
        if dim == 0 {
            return wrong("dim is 0, it must be at least 1".into());
        }
        let rows = self.tokens(size);
        if batch != 1 || tokens != rows {
            return wrong(format!("{name} has {batch} sequences of {tokens} tokens, it must have 1 of {rows}"));
        }
        check_contiguous(name, table)
    }

    /// The grid and the arguments that shapes decide, for accesses of `width` elements; tensors and taps are still missing.
    fn launch(&self, dim: usize, width: usize, transposed: bool) -> Result<Launch<ResampleArgs>> {
        let (from, to) = self.grids(transposed);
        let tokens = self.tokens(to);
        let (blocks, block) = blocks(dim.div_ceil(width), tokens)?;
        small("tokens", tokens)?;
        let args = ResampleArgs {
            prefix: small("tokens of the prefix", self.prefix)?,
            in_columns: small("columns", from.columns)?,
            out_rows: small("rows", to.rows)?,
            out_columns: small("columns", to.columns)?,
            dim: small("channels", dim)?,
            ..ResampleArgs::zeroed()
        };
        Ok(Launch::new([blocks, 1, 1], block, args))
    }
}

impl Resample {
    /// Makes of a launch one in tiles; false if its grid has no dimension for so many channels.
    fn tile(
        &self,
        dim: usize,
        width: usize,
        to: GridSize,
        tile: Tile,
        launch: &mut Launch<ResampleArgs>,
    ) -> Result<bool> {
        let groups = dim.div_ceil(width * TILE_LANES);
        if groups > 65535 {
            return Ok(false);
        }
        let Tile { out: [rows, columns], inputs, shared } = tile;
        let column_tiles = to.columns.div_ceil(columns);
        let tiles = to.rows.div_ceil(rows) * column_tiles;
        let blocks = tiles + self.prefix.div_ceil(rows * columns);
        launch.grid = [small("blocks of tokens", blocks)?, small("groups of channels", groups)?, 1];
        launch.block = [small("lanes", TILE_LANES)?, small("columns", columns)?, small("rows", rows)?];
        launch.shared = small("bytes of shared memory", shared)?;
        launch.args.tiles = small("tiles", tiles)?;
        launch.args.column_tiles = small("tiles", column_tiles)?;
        launch.args.tile_inputs = small("inputs", inputs[0] * inputs[1])?;
        launch.args.tile_rows = small("rows", inputs[0])?;
        Ok(true)
    }
}

/// Bytes of shared memory that a kernel has without asking for more.
const SHARED: usize = 48 << 10;
/// Threads side by side in a tile, 16 bytes each: a sector.
const TILE_LANES: usize = 2;

/// Outputs that a block of the tiles' kernel makes together, and the most inputs of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    /// rows and columns of outputs
    out: [usize; 2],
    /// most rows and columns of inputs
    inputs: [usize; 2],
    /// bytes of shared memory
    shared: usize,
}

impl Tile {
    /// The largest tile whose inputs fit into a block's shared memory with their sums, for accesses of `width` elements: up to 16
    /// columns of 8 rows. None where a tile of one output does not fit, or spans do not begin and end one after another.
    fn new([rows, columns]: [&[Taps]; 2], width: usize) -> Option<Self> {
        let most = |taps: &[Taps]| taps.iter().map(|taps| taps.weights.len()).max().unwrap_or(0);
        let of = |shape: [usize; 2]| {
            let out = [shape[0].min(rows.len().next_power_of_two()), shape[1].min(columns.len().next_power_of_two())];
            let inputs = [most_inputs(rows, out[0])?, most_inputs(columns, out[1])?];
            let units = inputs[0].checked_mul(inputs[1])?.checked_mul(16)?;
            let lines = inputs[0].checked_mul(out[1] * width * size_of::<f32>())?;
            // Spans are as large as two weights.
            let taps = (out[0] * (2 + most(rows))).checked_add(out[1] * (2 + most(columns)))?;
            let shared =
                units.checked_add(lines)?.checked_mul(TILE_LANES)?.checked_add(taps.checked_mul(size_of::<f32>())?)?;
            (shared <= SHARED).then_some(Self { out, inputs, shared })
        };
        [[8, 16], [8, 8], [4, 8], [4, 4], [2, 4], [2, 2], [1, 2], [1, 1]].into_iter().find_map(of)
    }
}

/// The most inputs that `step` outputs one after another read together; none where spans do not begin and end one after another.
fn most_inputs(taps: &[Taps], step: usize) -> Option<usize> {
    let end = |taps: &Taps| taps.first + taps.weights.len();
    let ordered = taps.windows(2).all(|pair| pair[0].first <= pair[1].first && end(&pair[0]) <= end(&pair[1]));
    let read = |tile: &[Taps]| Some(end(tile.last()?) - tile.first()?.first);
    ordered.then(|| taps.chunks(step).filter_map(read).max()).flatten()
}

// ---------------------------------------------------------------------------------------------------------------- plan

/// The taps of one axis on the device.
#[derive(Clone, Debug)]
struct DeviceTaps {
    spans: Uploaded<u32>,
    weights: Uploaded<f32>,
    most: u32,
}

impl DeviceTaps {
    fn new(gpu: &Gpu, taps: &[Taps]) -> Result<Self> {
        let most = taps.iter().map(|taps| taps.weights.len()).max().unwrap_or(0).max(1);
        let mut spans = Vec::with_capacity(2 * taps.len());
        let mut weights = reserved("weights of a resampling", most.saturating_mul(taps.len()))?;
        for Taps { first, weights: own } in taps {
            spans.extend([small("rows", *first)?, small("taps", own.len())?]);
            weights.extend(own.iter().map(|&weight| weight as f32));
            weights.resize(spans.len() / 2 * most, 0.0);
        }
        Ok(Self { spans: gpu.upload(&spans)?, weights: gpu.upload(&weights)?, most: small("taps", most)? })
    }
}

/// [`Resample`] on a [`Gpu`], for one element type: its weights are uploaded, those of the transpose too, and its kernels
/// loaded.
///
/// A call allocates nothing, uploads nothing, synchronises nothing, and is one kernel.
#[derive(Clone, Debug)]
pub struct ResamplePlan<T> {
    gpu: Gpu,
    spec: Resample,
    /// rows and columns of the resampling, then of its transpose
    taps: [[DeviceTaps; 2]; 2],
    tiles: [Option<Tile>; 2],
    /// of tiles, of 16-byte accesses, of single elements
    kernels: [Kernel<ResampleArgs>; 3],
    element: PhantomData<T>,
}

on_stream! { ResamplePlan { gpu } }

impl<T: Scalar> ResamplePlan<T> {
    /// Uploads the weights and loads the kernels.
    ///
    /// # Errors
    /// If the spec is refused, or the kernels cannot be loaded.
    pub fn new(gpu: &Gpu, spec: &Resample) -> Result<Self> {
        spec.check()?;
        let taps = |transposed| [Along::Rows, Along::Columns].map(|along| spec.all_taps(along, transposed));
        let [forward, transposed] = [taps(false), taps(true)];
        let both = |[rows, columns]: &[Vec<Taps>; 2]| {
            Ok::<_, Error>([DeviceTaps::new(gpu, rows)?, DeviceTaps::new(gpu, columns)?])
        };
        Ok(Self {
            gpu: gpu.clone(),
            spec: *spec,
            taps: [both(&forward)?, both(&transposed)?],
            tiles: [&forward, &transposed].map(|[rows, columns]| Tile::new([rows, columns], 16 / size_of::<T>())),
            kernels: gpu.load::<T, _, 3>(RESAMPLE)?,
            element: PhantomData,
        })
    }

    /// The spec.
    pub const fn resample(&self) -> &Resample {
        &self.spec
    }

    /// Resamples a table.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `out` | `[1, prefix + to.rows * to.columns, dim]` | written |
    /// | `table` | `[1, prefix + from.rows * from.columns, dim]` | read |
    ///
    /// Both are contiguous.
    ///
    /// # Accuracy
    /// [`Resample::error_bound`] and the rounding to `T`; the prefix is copied. The same bits on every device, for every
    /// alignment.
    ///
    /// # Errors
    /// If `dim` is 0, a shape is not the spec's or not contiguous, or a buffer is too short, belongs to another context or
    /// shares memory with the other. Nothing is written then.
    ///
    /// # Source
    /// torch 2.15, `interpolate` with `align_corners=False`.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::Gpu;
    /// use posenc::embed::{GridSize, Resample, ResamplePlan, Tokens};
    ///
    /// let gpu = Gpu::open(0)?;
    /// // ViT-B/16 at 384 pixels from its table for 224, class token kept.
    /// let spec = Resample { prefix: 1, ..Resample::new(GridSize::image(14, 14), GridSize::image(24, 24)) };
    /// let plan = ResamplePlan::<f32>::new(&gpu, &spec)?;
    /// let table = gpu.stream().alloc_zeros(197 * 768)?;
    /// let mut out = gpu.stream().alloc_zeros(577 * 768)?;
    /// plan.write(Tokens::new(1, 577, 768).of_mut(&mut out), Tokens::new(1, 197, 768).of(&table))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn write<'a>(&'a self, out: ViewMut<'a, T, Tokens>, table: View<'a, T, Tokens>) -> Result<()> {
        self.run(("out", out), ("table", table), false, false)
    }

    /// The gradient of the table from the gradient of the resampled one: the transpose.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `table` | `[1, prefix + from.rows * from.columns, dim]` | written |
    /// | `grad` | `[1, prefix + to.rows * to.columns, dim]` | read |
    /// | `accumulate` | | adds to what is there |
    ///
    /// # Accuracy
    /// [`Resample::error_bound`] with the taps of the transpose, and the rounding to `T`. Each element has one writer and
    /// one order of addition.
    ///
    /// # Errors
    /// As [`ResamplePlan::write`].
    ///
    /// # Example
    /// ```no_run
    /// use posenc::Gpu;
    /// use posenc::embed::{GridSize, Resample, ResamplePlan, Tokens};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let spec = Resample::new(GridSize::image(14, 14), GridSize::image(24, 24));
    /// let plan = ResamplePlan::<f32>::new(&gpu, &spec)?;
    /// let grad = gpu.stream().alloc_zeros(576 * 768)?;
    /// let mut table = gpu.stream().alloc_zeros(196 * 768)?;
    /// plan.grad(Tokens::new(1, 196, 768).of_mut(&mut table), Tokens::new(1, 576, 768).of(&grad), false)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn grad<'a>(
        &'a self,
        table: ViewMut<'a, T, Tokens>,
        grad: View<'a, T, Tokens>,
        accumulate: bool,
    ) -> Result<()> {
        self.run(("table", table), ("grad", grad), true, accumulate)
    }

    fn run<'a>(
        &'a self,
        (out_name, out): (&'static str, ViewMut<'a, T, Tokens>),
        (table_name, table): (&'static str, View<'a, T, Tokens>),
        transposed: bool,
        accumulate: bool,
    ) -> Result<()> {
        let spec = &self.spec;
        let (from, to) = spec.grids(transposed);
        let dim = out.shape.dim;
        spec.check_table(table_name, &table.shape, from)?;
        spec.check_table(out_name, &out.shape, to)?;
        if table.shape.dim != dim {
            let got = table.shape.dim;
            return Err(Error::Value(format!(
                "{table_name} has {got} channels and {out_name} {dim}, they must be equal"
            )));
        }
        let mut call = self.gpu.call();
        let table = call.view(table_name, table)?;
        let out = call.view_mut(out_name, out)?;
        let steps = out.steps | table.steps | (dim * size_of::<T>()) as u64;
        let [in_tiles, wide, one] = &self.kernels;
        let (&(mut kernel), width) = fitting::<T, _>(&[wide, one], steps);
        let mut launch = spec.launch(dim, width, transposed)?;
        // Without 16-byte accesses an input's place in shared memory is not one access.
        if let (Some(tile), 2..) = (self.tiles[usize::from(transposed)], width)
            && spec.tile(dim, width, to, tile, &mut launch)?
        {
            kernel = in_tiles;
        }
        let [rows, columns] = &self.taps[usize::from(transposed)];
        let args = &mut launch.args;
        (args.out, args.table) = (out.at, table.at);
        (args.row_taps, args.column_taps) = (rows.most, columns.most);
        args.row_spans = call.table("row spans", &rows.spans)?;
        args.row_weights = call.table("row weights", &rows.weights)?;
        args.column_spans = call.table("column spans", &columns.spans)?;
        args.column_weights = call.table("column weights", &columns.weights)?;
        args.accumulate = u32::from(accumulate);
        call.launch(kernel, &launch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tile(from: usize, to: usize, antialias: bool, transposed: bool) -> Option<Tile> {
        let spec = Resample { antialias, ..Resample::new(GridSize::image(from, from), GridSize::image(to, to)) };
        let taps = [Along::Rows, Along::Columns].map(|along| spec.all_taps(along, transposed));
        Tile::new([&taps[0], &taps[1]], 8)
    }

    #[test]
    fn tiles_fit_into_shared_memory() {
        // Of 14 to 24, rows 8 to 15 read rows 3 to 10, and columns 0 to 15 read columns 0 to 10.
        let vit =
            Tile { out: [8, 16], inputs: [8, 11], shared: 2 * (16 * 8 * 11 + 32 * 8 * 16) + (2 + 4) * 4 * (8 + 16) };
        assert_eq!(tile(14, 24, false, false), Some(vit));
        assert_eq!(tile(14, 1, false, false).map(|tile| tile.out), Some([1, 1]));
        for (from, to) in [(37, 16), (64, 8), (16, 64), (3, 3), (1, 9), (200, 100)] {
            for (antialias, transposed) in [(false, false), (true, false), (false, true), (true, true)] {
                if let Some(Tile { out, shared, .. }) = tile(from, to, antialias, transposed) {
                    assert!(shared <= SHARED && out.iter().product::<usize>() * TILE_LANES <= 256);
                }
            }
        }
        // All of a large table for one output, and inputs that no output reads.
        assert_eq!(tile(100, 1, true, false), None);
        assert_eq!(tile(64, 8, false, true), None);
    }
}
