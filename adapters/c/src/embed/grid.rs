//! Sinusoids of a grid's rows, columns and frames.

use posenc::Gpu;
use posenc::embed::{Along, Axis, Blocks, Counted, Grid, GridPlan, GridSize};

use crate::embed::{PosencSinusoidSpec, PosencTokens};
use crate::{
    Failure, PosencBuffer, PosencGpu, PosencStatus, Versioned, call, factor, free, make, make_plan, plans, size, slice,
    switch, unknown, versioned, with_plan,
};

/// Directions of a grid: time, of videos.
pub const POSENC_ALONG_FRAMES: u32 = 0;
/// downwards: y
pub const POSENC_ALONG_ROWS: u32 = 1;
/// to the right: x
pub const POSENC_ALONG_COLUMNS: u32 = 2;

/// Channels of several axes: the first axis whole, then the second.
pub const POSENC_BY_AXIS: u32 = 0;
/// The first wave of every axis, then the second.
pub const POSENC_BY_WAVE: u32 = 1;

/// One axis of a grid.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencAxis {
    /// `POSENC_ALONG_FRAMES`, `POSENC_ALONG_ROWS` or `POSENC_ALONG_COLUMNS`
    pub along: u32,
    /// 0
    pub reserved: u32,
    /// of its index; `offset` crops, `scale` stretches
    pub sinusoid: PosencSinusoidSpec,
}

/// What to compute: the sinusoids of a grid's axes side by side.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencGridSpec {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencGridSpec)`
    pub size: u32,
    /// `POSENC_BY_AXIS` or `POSENC_BY_WAVE`
    pub blocks: u32,
    /// axes
    pub axis_count: u32,
    /// in the order of their channels, in host memory
    pub axes: *const PosencAxis,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers and a raw pointer.
unsafe impl Versioned for PosencGridSpec {}

/// One call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencGridCall {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencGridCall)`
    pub size: u32,
    /// written, or added to
    pub x: PosencBuffer,
    /// the shape of `x`; its number of tokens is the grid's
    pub tokens: PosencTokens,
    /// frames, 1 for an image
    pub frames: u64,
    /// rows of a frame
    pub rows: u64,
    /// columns of a row
    pub columns: u64,
    /// multiplies `x` before the grid is added; `posenc_grid_write` does not look at it
    pub scale: f64,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers alone.
unsafe impl Versioned for PosencGridCall {}

/// One call that counts coordinates over a padding mask.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PosencGridMaskedCall {
    /// `POSENC_ABI`
    pub version: u32,
    /// `sizeof(PosencGridMaskedCall)`
    pub size: u32,
    /// `[batch, rows * columns, dim]`, written
    pub out: PosencBuffer,
    /// `[batch, rows * columns]` bytes, not 0 for a token of the image
    pub mask: PosencBuffer,
    /// images
    pub batch: u64,
    /// rows of each
    pub rows: u64,
    /// columns of each row
    pub columns: u64,
    /// 1: counts are divided by the last one and multiplied by `scale`
    pub normalize: u32,
    /// 0
    pub reserved: u32,
    /// 2 pi in DETR
    pub scale: f64,
    /// taken off the count: 0 in DETR, 0.5 in Deformable DETR
    pub centre: f64,
}

// SAFETY: `repr(C)`, two 32-bit numbers first, numbers alone.
unsafe impl Versioned for PosencGridMaskedCall {}

/// A grid's sinusoids on a device, for one element type.
pub struct PosencGrid {
    plan: plans!(GridPlan),
    gpu: Gpu,
}

/// # Safety
/// `spec.axes` is null or points to `axis_count` axes.
unsafe fn grid(spec: &PosencGridSpec) -> Result<Grid, Failure> {
    // SAFETY: as the caller promises.
    let axes = unsafe { slice("axes", spec.axes, spec.axis_count as usize) }?;
    let axis = |axis: &PosencAxis| {
        let along = match axis.along {
            POSENC_ALONG_FRAMES => Along::Frames,
            POSENC_ALONG_ROWS => Along::Rows,
            POSENC_ALONG_COLUMNS => Along::Columns,
            other => return Err(unknown("along", other)),
        };
        // SAFETY: a reference to what lies in the array.
        let sinusoid = unsafe { versioned("an axis's sinusoid", &axis.sinusoid) }?;
        Ok(Axis { along, sinusoid: sinusoid.sinusoid()? })
    };
    let blocks = match spec.blocks {
        POSENC_BY_AXIS => Blocks::ByAxis,
        POSENC_BY_WAVE => Blocks::ByWave,
        other => return Err(unknown("blocks", other)),
    };
    Ok(Grid { axes: axes.iter().map(axis).collect::<Result<_, _>>()?, blocks })
}

/// Makes a plan: uploads the channels and loads the kernels for `element`.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_grid_new(
    gpu: *const PosencGpu,
    spec: *const PosencGridSpec,
    element: u32,
    out: *mut *mut PosencGrid,
) -> PosencStatus {
    // SAFETY: as the caller promises, `axes` too.
    unsafe {
        make(gpu, spec, out, |gpu, spec| {
            let spec = grid(spec)?;
            Ok(PosencGrid { plan: make_plan!(element, T => GridPlan::<T>::new(gpu, &spec)?), gpu: gpu.clone() })
        })
    }
}

/// Frees a plan; null is allowed.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_grid_free(grid: *mut PosencGrid) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe { free(grid) }
}

/// Writes the grid's table, once for every sequence, in one kernel.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_grid_write(grid: *const PosencGrid, call: *const PosencGridCall) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe {
        self::call("grid", grid, call, |grid, call| {
            let (tokens, size) = (call.tokens.shape()?, call.grid_size()?);
            Ok(with_plan!(&grid.plan, plan => plan.write(&mut call.x.get(&grid.gpu, "x")?, tokens, size))?)
        })
    }
}

/// `x = x * scale + grid` in place, in one kernel.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_grid_add(grid: *const PosencGrid, call: *const PosencGridCall) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe {
        self::call("grid", grid, call, |grid, call| {
            let (tokens, size, scale) = (call.tokens.shape()?, call.grid_size()?, factor("scale", call.scale)?);
            Ok(with_plan!(&grid.plan, plan => plan.add(&mut call.x.get(&grid.gpu, "x")?, tokens, size, scale))?)
        })
    }
}

/// Writes a table for each image whose coordinates are counted over a padding mask, in one kernel.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posenc_grid_write_masked(
    grid: *const PosencGrid,
    call: *const PosencGridMaskedCall,
) -> PosencStatus {
    // SAFETY: as the caller promises.
    unsafe {
        self::call("grid", grid, call, |grid, call| {
            let image = GridSize::image(size("rows", call.rows)?, size("columns", call.columns)?);
            let normalize = switch("normalize", call.normalize)?;
            let scale = if normalize { factor("scale", call.scale)? } else { call.scale };
            let counted = Counted { normalize, scale, centre: call.centre };
            let (mask, batch) = (call.mask.get::<u8>(&grid.gpu, "mask")?, size("batch", call.batch)?);
            Ok(with_plan!(&grid.plan, plan => {
                plan.write_masked(&mut call.out.get(&grid.gpu, "out")?, &mask, batch, image, counted)
            })?)
        })
    }
}

impl PosencGridCall {
    fn grid_size(&self) -> Result<GridSize, Failure> {
        let (frames, rows) = (size("frames", self.frames)?, size("rows", self.rows)?);
        Ok(GridSize { frames, rows, columns: size("columns", self.columns)? })
    }
}
