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
    kernels: [Kernel<ResampleArgs>; 2],
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
        let taps = |along, transposed| DeviceTaps::new(gpu, &spec.all_taps(along, transposed));
        let both = |transposed| Ok::<_, Error>([taps(Along::Rows, transposed)?, taps(Along::Columns, transposed)?]);
        Ok(Self {
            gpu: gpu.clone(),
            spec: *spec,
            taps: [both(false)?, both(true)?],
            kernels: gpu.load::<T, _, 2>(RESAMPLE)?,
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
        let (kernel, width) = fitting::<T, _>(&self.kernels, steps);
        let mut launch = spec.launch(dim, width, transposed)?;
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
