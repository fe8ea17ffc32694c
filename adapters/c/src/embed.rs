//! A vector is added to the token embedding: sinusoids, timesteps, grids, learned tables, resampling.

use posenc::embed::{
    Along, Axis, Blocks, Counted, ErrorFlag, Filter, Frequencies, Grid, GridPlan, GridSize, Learned, LearnedGradPlan,
    LearnedPlan, Lookup, Norm, NormGrad, Odd, Resample, ResamplePlan, Rows, Sinusoid, SinusoidPlan, TableGrad, Tables,
    TimestepPlan, Wave, Weighting,
};
use posenc::{Gpu, Pairing, Scalar};

use crate::header::{Coded, header};
use crate::memory::{Scope, Space};
use crate::{
    Failure, POSENC_F32, POSENC_F64, PosencBuffer, PosencGpu, PosencIds, PosencPositions, PosencStatus, PosencTokens,
    borrow_mut, factor, guarded, list, make, nested, switch, unknown,
};

header! {{}
    codes Odd {
        POSENC_ODD_REFUSE = 0 => Refuse: "Of an odd number of channels, the last one: is refused.",
        POSENC_ODD_ZERO = 1 => Zero: "holds 0",
        POSENC_ODD_LONGER = 2 => Longer: "holds the first wave of one more pair",
    }
    codes Frequencies {
        POSENC_FREQUENCIES_EXACT = 0 => Exact: "Frequencies: as the formula says.",
        POSENC_FREQUENCIES_F32 = 1 => F32: "rounded to f32",
        POSENC_FREQUENCIES_F16 = 2 => F16: "rounded to f32, then to f16",
        POSENC_FREQUENCIES_BF16 = 3 => Bf16: "rounded to f32, then to bf16",
    }
    codes Along {
        POSENC_ALONG_FRAMES = 0 => Frames: "Directions of a grid: time, of videos.",
        POSENC_ALONG_ROWS = 1 => Rows: "downwards: y",
        POSENC_ALONG_COLUMNS = 2 => Columns: "to the right: x",
    }
    codes Blocks {
        POSENC_BY_AXIS = 0 => ByAxis: "Channels of several axes: the first axis whole, then the second.",
        POSENC_BY_WAVE = 1 => ByWave: "The first wave of every axis, then the second.",
    }
    codes Filter {
        POSENC_BILINEAR = 0 => Bilinear: "Filters: the two nearest on each axis.",
        POSENC_BICUBIC = 1 => Bicubic: "The four nearest on each axis, by Keys' cubic.",
    }
    codes Weighting {
        POSENC_WEIGHTING_EXACT = 0 => Exact: "Weights of a filter: the law's.",
        POSENC_WEIGHTING_TORCH_F32 = 1 => TorchF32: "as PyTorch's CPU and CUDA kernels round them",
    }
    kinds Rows {
        POSENC_ROWS_OFFSET = 0 => Offset: "Rows of the position table: `position + first`.",
        POSENC_ROWS_KEPT_BY_ID = 1 => Kept: "Tokens whose id is not `padding` are counted from row `first` on; padding \
            reads row `padded`.",
        POSENC_ROWS_KEPT_BY_MASK = 2 => Kept: "The same, by the mask.",
    }
    kinds Norm {
        POSENC_NORM_NONE = 0: "Norms of the sum: none.",
        POSENC_NORM_LAYER = 1 => Layer: "layer norm: gain and bias",
        POSENC_NORM_RMS = 2 => Rms: "root mean square: gain",
    }

    /// Sinusoids of `dim` channels: `sin` and `cos` of `scale * (position + offset) * max_period^(-pair / (dim / 2 - shift))`.
    ///
    /// Of positions, of timesteps, and of the axes of a grid.
    versioned struct PosencSinusoidSpec {
        dim: u64 => "channels",
        pairing: u32 => "`POSENC_INTERLEAVED` (the paper) or `POSENC_HALF`",
        cosine_first: u32 => "1: the cosine comes first",
        odd: u32 => "`POSENC_ODD_...`",
        frequencies: u32 => "`POSENC_FREQUENCIES_...`",
        shift: f64 => "taken off half of `dim` in the exponent: 0 in the paper",
        max_period: f64 => "10000 in the paper",
        scale: f64 => "multiplies the position: 1 in the paper",
        offset: i64 => "added to the position",
        has_padding: u32 => "1: the position `padding` gives zeros",
        reserved: u32 => "0",
        padding: i64 => "see `has_padding`; `offset` included",
    }
    /// One call.
    versioned struct PosencSinusoidCall {
        x: PosencBuffer => "written, or added to",
        tokens: PosencTokens => "the shape of `x`",
        positions: PosencPositions => "token positions",
        scale: f64 => "multiplies `x` before the sinusoid is added; `posenc_sinusoid_write` does not read it",
    }

    /// Sinusoids of positions on a device, for one element type.
    plan PosencSinusoid(SinusoidPlan, Sinusoid);
    /// Makes a plan: uploads the frequencies and loads the kernels for `element`.
    new posenc_sinusoid_new(spec: PosencSinusoidSpec) -> PosencSinusoid as SinusoidPlan::new
        where sinusoid = spec.sinusoid()?, |gpu| SinusoidPlan::new(gpu, &sinusoid);
    on posenc_sinusoid_on(sinusoid: PosencSinusoid) as SinusoidPlan::on;
    free posenc_sinusoid_free(sinusoid: PosencSinusoid);
    /// Writes sinusoids, in one kernel.
    verb posenc_sinusoid_write(sinusoid: PosencSinusoid, call: PosencSinusoidCall) as SinusoidPlan::write where cpu = write, |plan, scope| {
        plan.write(call.tokens.of_mut(&call.x, scope, "x")?, call.positions.get(scope)?)
    };
    /// `x = x * scale + sinusoid` in place, in one kernel.
    verb posenc_sinusoid_add(sinusoid: PosencSinusoid, call: PosencSinusoidCall) as SinusoidPlan::add where cpu = add, |plan, scope| {
        let scale = factor("scale", call.scale)?;
        plan.add(call.tokens.of_mut(&call.x, scope, "x")?, call.positions.get(scope)?, scale)
    };

    /// One call.
    versioned struct PosencTimestepCall {
        out: PosencBuffer => "written: a row for each time",
        tokens: PosencTokens => "the shape of `out`; batch times tokens are the times",
        t: PosencBuffer => "the times, one after another",
        t_element: u32 => "the type of `t`: `POSENC_F32` or `POSENC_F64`",
        reserved: u32 => "0",
    }

    /// Sinusoids of fractional times, of diffusion models, on a device, for one element type.
    plan PosencTimestep(TimestepPlan, Sinusoid);
    /// Makes a plan: uploads the frequencies and loads the kernels for `element`.
    new posenc_timestep_new(spec: PosencSinusoidSpec) -> PosencTimestep as TimestepPlan::new
        where sinusoid = spec.sinusoid()?, |gpu| TimestepPlan::new(gpu, &sinusoid);
    on posenc_timestep_on(timestep: PosencTimestep) as TimestepPlan::on;
    free posenc_timestep_free(timestep: PosencTimestep);
    /// Writes one row for each time, in one kernel.
    verb posenc_timestep_write(timestep: PosencTimestep, call: PosencTimestepCall) as TimestepPlan::write where cpu = write, |plan, scope| {
        let out = call.tokens.of_mut(&call.out, scope, "out")?;
        match call.t_element {
            POSENC_F32 => plan.write::<f32>(out, call.t.read(scope, "t")?),
            POSENC_F64 => plan.write::<f64>(out, call.t.read(scope, "t")?),
            other => return Err(unknown("t_element", other)),
        }
    };

    /// One axis of a grid.
    struct PosencAxis {
        along: u32 => "`POSENC_ALONG_...`",
        reserved: u32 => "0",
        sinusoid: PosencSinusoidSpec => "of its index; `offset` crops, `scale` stretches",
    }
    /// The sinusoids of a grid's axes side by side.
    versioned struct PosencGridSpec {
        blocks: u32 => "`POSENC_BY_AXIS` or `POSENC_BY_WAVE`",
        axis_count: u32 => "axes",
        axes: *const PosencAxis => "in the order of their channels, in host memory",
    }
    /// One call.
    versioned struct PosencGridCall {
        x: PosencBuffer => "written, or added to",
        tokens: PosencTokens => "the shape of `x`; its number of tokens is the grid's",
        frames: u64 => "frames, 1 for an image",
        rows: u64 => "rows of a frame",
        columns: u64 => "columns of a row",
        scale: f64 => "multiplies `x` before the grid is added; `posenc_grid_write` does not read it",
    }
    /// One call that counts coordinates over a padding mask.
    versioned struct PosencGridMaskedCall {
        out: PosencBuffer => "written",
        tokens: PosencTokens => "the shape of `out`: `rows * columns` tokens for each image of the batch",
        mask: PosencBuffer => "`[batch, rows * columns]` bytes, not 0 for a token of the image",
        rows: u64 => "rows of each image",
        columns: u64 => "columns of each row",
        normalize: u32 => "1: counts are divided by the last one and multiplied by `scale`",
        reserved: u32 => "0",
        scale: f64 => "2 pi in DETR",
        centre: f64 => "taken off the count: 0 in DETR, 0.5 in Deformable DETR",
    }

    /// A grid's sinusoids on a device, for one element type.
    plan PosencGrid(GridPlan, Grid);
    /// Makes a plan: uploads the channels and loads the kernels for `element`.
    new posenc_grid_new(spec: PosencGridSpec) -> PosencGrid as GridPlan::new where grid = spec.grid()?, |gpu| GridPlan::new(gpu, &grid);
    on posenc_grid_on(grid: PosencGrid) as GridPlan::on;
    free posenc_grid_free(grid: PosencGrid);
    /// Writes the grid's table, once for every sequence, in one kernel.
    verb posenc_grid_write(grid: PosencGrid, call: PosencGridCall) as GridPlan::write where cpu = write, |plan, scope| {
        plan.write(call.tokens.of_mut(&call.x, scope, "x")?, call.size())
    };
    /// `x = x * scale + grid` in place, in one kernel.
    verb posenc_grid_add(grid: PosencGrid, call: PosencGridCall) as GridPlan::add where cpu = add, |plan, scope| {
        let scale = factor("scale", call.scale)?;
        plan.add(call.tokens.of_mut(&call.x, scope, "x")?, call.size(), scale)
    };
    /// Writes a table for each image whose coordinates are counted over a padding mask, in one kernel.
    verb posenc_grid_write_masked(grid: PosencGrid, call: PosencGridMaskedCall) as GridPlan::write_masked where cpu = write, |plan, scope| {
        let out = call.tokens.of_mut(&call.out, scope, "out")?;
        plan.write_masked(out, call.mask.read(scope, "mask")?, call.size(), call.counted()?)
    };

    /// Learned tables: `norm(token[id] * scale + position[row] + type[kind])`.
    versioned struct PosencLearnedSpec {
        dim: u64 => "channels of one row of every table",
        scale: f64 => "multiplies token rows: 1, or the root of `dim`",
        rows: u32 => "`POSENC_ROWS_...`",
        norm: u32 => "`POSENC_NORM_...`",
        first: i64 => "see `rows`",
        padded: i64 => "see `rows`",
        padding: i64 => "see `rows`",
        eps: f64 => "of the norm",
    }
    /// The tables of a call, each `[rows, dim]` by its length; no `data`: there is none.
    struct PosencTables {
        token: PosencBuffer => "by token id; without it, the rows of `x` take its place",
        position: PosencBuffer => "by the row that the spec gives",
        types: PosencBuffer => "by token type",
        gain: PosencBuffer => "`[dim]`, of the norm; ones without it",
        bias: PosencBuffer => "`[dim]`, of the norm; zeros without it",
    }
    /// Token ids, types, mask and positions of a call, each `[batch, tokens]`; no `data`: there is none.
    struct PosencLookup {
        ids: PosencIds => "token ids",
        types: PosencIds => "token types",
        mask: PosencBuffer => "bytes: 1 for a token, 0 for padding",
        positions: PosencPositions => "token positions",
    }

    /// A flag on the device that kernels raise when an id lies outside its table.
    opaque PosencErrorFlag { flag: Option<(ErrorFlag, Gpu)> }
    /// Makes a flag that is down. The CPU's stays down: its calls refuse such an id themselves.
    fn posenc_error_flag_new(gpu: *const PosencGpu, out: *mut *mut PosencErrorFlag) -> PosencStatus {
        make(gpu, out, |gpu| {
            let flag = gpu.map(|gpu| Ok::<_, Failure>((ErrorFlag::new(gpu)?, gpu.clone()))).transpose()?;
            Ok(PosencErrorFlag { flag })
        })
    }
    free posenc_error_flag_free(flag: PosencErrorFlag);
    /// Waits for the stream and takes the flag down; `POSENC_VALUE`, with the first token and its table, if it was up. No other
    /// call uses `flag` at the same time.
    fn posenc_error_flag_check(flag: *mut PosencErrorFlag) -> PosencStatus {
        guarded(|| {
            match &mut borrow_mut("flag", flag)?.flag {
                Some((flag, gpu)) => Ok(flag.check(gpu)?),
                None => Ok(()),
            }
        })
    }

    /// One call.
    versioned struct PosencLearnedCall {
        x: PosencBuffer => "written; read too if there is no token table",
        tokens: PosencTokens => "the shape of `x`",
        tables: PosencTables => "the tables",
        lookup: PosencLookup => "ids and positions",
        flag: *mut PosencErrorFlag => "raised when an id lies outside its table; or null. Two calls at once need two of \
            them",
    }
    /// One call that writes the row of the position table that each token reads.
    versioned struct PosencRowsCall {
        rows: PosencBuffer => "`[batch, tokens]` of 64-bit integers, written",
        batch: u64 => "sequences",
        tokens: u64 => "tokens of each",
        lookup: PosencLookup => "ids and positions",
    }

    /// Learned tables on a device, for one element type.
    plan PosencLearned(LearnedPlan, Learned);
    /// Makes a plan: loads the kernels for `element`.
    new posenc_learned_new(spec: PosencLearnedSpec) -> PosencLearned as LearnedPlan::new
        where learned = spec.learned()?, |gpu| LearnedPlan::new(gpu, &learned);
    on posenc_learned_on(learned: PosencLearned) as LearnedPlan::on;
    free posenc_learned_free(learned: PosencLearned);
    /// Gathers, adds and normalises, in one kernel. A row whose id lies outside its table becomes NaN.
    verb posenc_learned_gather(learned: PosencLearned, call: PosencLearnedCall) as LearnedPlan::gather where cpu = gather, |plan, scope| {
        let (tables, lookup) = (call.tables.get(scope)?, call.lookup.get(scope)?);
        let flag = call.flag.as_mut().map(PosencErrorFlag::on_device).transpose()?;
        plan.gather(call.tokens.of_mut(&call.x, scope, "x")?, &tables, &lookup, flag)
    };
    /// Writes the row of the position table that each token reads, in one kernel.
    verb posenc_learned_rows(learned: PosencLearned, call: PosencRowsCall) as LearnedPlan::rows where cpu = write, |plan, scope| {
        let lookup = call.lookup.get(scope)?;
        plan.rows(call.rows.write(scope, "rows")?, call.batch as usize, call.tokens as usize, &lookup)
    };

    /// One call for the gradients of the sum before a norm, of gain and of bias.
    versioned struct PosencNormGradCall {
        sum: PosencBuffer => "written: the gradient of the sum",
        sum_tokens: PosencTokens => "its shape",
        gain: PosencBuffer => "`[dim]`, written: the gradient of the gain; or none",
        bias: PosencBuffer => "`[dim]`, written: the gradient of the bias; or none",
        grad: PosencBuffer => "gradient of the result",
        grad_tokens: PosencTokens => "its shape",
        x: PosencBuffer => "what the forward call read in place of token rows; none with a token table",
        x_tokens: PosencTokens => "its shape",
        tables: PosencTables => "as in the forward call",
        lookup: PosencLookup => "as in the forward call",
        flag: *mut PosencErrorFlag => "as in the forward call",
        accumulate: u32 => "1: adds to what is in `gain` and `bias`",
        reserved: u32 => "0",
    }
    /// One call for the gradient of a table.
    versioned struct PosencTableGradCall {
        table: PosencBuffer => "`[rows, dim]`, written at the rows that some token reads",
        rows: u64 => "rows of the table",
        grad: PosencBuffer => "gradient of the sum",
        tokens: PosencTokens => "the shape of `grad`",
        ids: PosencIds => "`[batch, tokens]`; `posenc_learned_grad_counted` has none",
        order: PosencBuffer => "every token once, in the order of their ids, 32 bits without sign, as \
            `posenc_learned_grad_order` writes it; if it is not sorted, a row whose tokens lie in several runs gets the sum of \
            one of them, any",
        first: u64 => "of `posenc_learned_grad_counted`: the row of the first token",
        scale: f64 => "multiplies the sums: the forward call's scale for the token table, 1 for the others",
        has_skipped: u32 => "1: the row of the id `skipped` has no gradient",
        accumulate: u32 => "1: added to what is there",
        skipped: i64 => "see `has_skipped`",
    }
    /// One call that orders tokens by their ids.
    versioned struct PosencOrderCall {
        order: PosencBuffer => "`[count]` of 32 bits without sign, written",
        ids: PosencIds => "`[count]`",
        count: u64 => "ids",
    }

    /// Gradients of learned tables on a device, for one element type. Its calls follow one another in the stream.
    plan PosencLearnedGrad(LearnedGradPlan, Learned);
    /// Makes a plan: loads the kernels for `element`, and allocates scratch memory for calls of up to the sequences and
    /// tokens of `max_shape`.
    new posenc_learned_grad_new(spec: PosencLearnedSpec, max_shape: PosencTokens) -> PosencLearnedGrad as LearnedGradPlan::new
        where learned = spec.learned()?, |gpu| LearnedGradPlan::new(gpu, &learned, max_shape.shape());
    on posenc_learned_grad_on(grad: PosencLearnedGrad) as LearnedGradPlan::on;
    free posenc_learned_grad_free(grad: PosencLearnedGrad);
    /// The gradient of the sum from that of the normalised result, in one kernel; with gain or bias in two.
    verb posenc_learned_grad_norm(grad: PosencLearnedGrad, call: PosencNormGradCall)
        as LearnedGradPlan::norm where cpu = grad, |plan, scope| {
        let (tables, lookup) = (call.tables.get(scope)?, call.lookup.get(scope)?);
        let out = NormGrad {
            sum: call.sum_tokens.of_mut(&call.sum, scope, "sum")?,
            gain: call.gain.write_some(scope, "gain")?,
            bias: call.bias.write_some(scope, "bias")?,
            accumulate: switch("accumulate", call.accumulate)?,
            flag: call.flag.as_mut().map(PosencErrorFlag::on_device).transpose()?,
        };
        let grad = call.grad_tokens.of(&call.grad, scope, "grad")?;
        plan.norm(out, grad, call.x_tokens.of_some(&call.x, scope, "x")?, &tables, &lookup)
    };
    /// The gradient of a position table whose positions are counted, a sum over the batch, in one kernel.
    verb posenc_learned_grad_counted(grad: PosencLearnedGrad, call: PosencTableGradCall)
        as LearnedGradPlan::counted where cpu = counted, |plan, scope| {
        let how = call.how()?;
        let grad = call.tokens.of(&call.grad, scope, "grad")?;
        plan.counted(call.table.write(scope, "table")?, grad, call.first as usize, how)
    };
    /// Writes the tokens in the order of their ids, in one kernel up to 1024 of them.
    verb posenc_learned_grad_order(grad: PosencLearnedGrad, call: PosencOrderCall)
        as LearnedGradPlan::order where cpu = write, |plan, scope| {
        plan.order(call.order.write(scope, "order")?, call.ids.get(scope, "ids")?, call.count as usize)
    };
    /// The gradient of a table by ids, in two kernels.
    verb posenc_learned_grad_table(grad: PosencLearnedGrad, call: PosencTableGradCall)
        as LearnedGradPlan::table where cpu = by_ids, |plan, scope| {
        let how = call.how()?;
        let (grad, ids) = (call.tokens.of(&call.grad, scope, "grad")?, call.ids.get(scope, "ids")?);
        plan.table(call.table.write(scope, "table")?, grad, ids, call.order.read(scope, "order")?, how)
    };

    /// Resampling of a learned table of an image's tokens.
    versioned struct PosencResampleSpec {
        from: [u64; 2] => "rows and columns of the table",
        to: [u64; 2] => "rows and columns of the one that is made",
        prefix: u64 => "tokens before the grid, copied",
        filter: u32 => "`POSENC_BILINEAR` or `POSENC_BICUBIC`",
        antialias: u32 => "1: the filter widens where the grid shrinks",
        factors: [f64; 2] => "new over old of rows and columns; 0 and 0: the quotient of the sizes",
        weighting: u32 => "`POSENC_WEIGHTING_...`",
        align_corners: u32 => "1: the first and last outputs stand on the first and last inputs; without factors and antialias",
    }
    /// One call.
    versioned struct PosencResampleCall {
        table: PosencBuffer => "read, and written by the gradient",
        table_tokens: PosencTokens => "its shape: `prefix + from rows * columns` tokens",
        resampled: PosencBuffer => "written, and read by the gradient",
        resampled_tokens: PosencTokens => "its shape: `prefix + to rows * columns` tokens",
        accumulate: u32 => "1: the gradient is added to what is there",
        reserved: u32 => "0",
    }

    /// Resampling on a device, for one element type.
    plan PosencResample(ResamplePlan, Resample);
    /// Makes a plan: uploads the weights and loads the kernels for `element`.
    new posenc_resample_new(spec: PosencResampleSpec) -> PosencResample as ResamplePlan::new
        where resample = spec.resample()?, |gpu| ResamplePlan::new(gpu, &resample);
    on posenc_resample_on(resample: PosencResample) as ResamplePlan::on;
    free posenc_resample_free(resample: PosencResample);
    /// Resamples a table, in one kernel.
    verb posenc_resample_write(resample: PosencResample, call: PosencResampleCall) as ResamplePlan::write where cpu = write, |plan, scope| {
        let out = call.resampled_tokens.of_mut(&call.resampled, scope, "resampled")?;
        plan.write(out, call.table_tokens.of(&call.table, scope, "table")?)
    };
    /// The gradient of the table from that of the resampled one, in one kernel.
    verb posenc_resample_grad(resample: PosencResample, call: PosencResampleCall) as ResamplePlan::grad where cpu = grad, |plan, scope| {
        let accumulate = switch("accumulate", call.accumulate)?;
        let table = call.table_tokens.of_mut(&call.table, scope, "table")?;
        plan.grad(table, call.resampled_tokens.of(&call.resampled, scope, "resampled")?, accumulate)
    };
}

impl PosencErrorFlag {
    fn on_device(&mut self) -> Result<&mut ErrorFlag, Failure> {
        let other = || Failure::argument("the flag is the CPU's, the plan is a device's".into());
        self.flag.as_mut().map(|(flag, _)| flag).ok_or_else(other)
    }
}

impl PosencSinusoidSpec {
    fn sinusoid(&self) -> Result<Sinusoid, Failure> {
        Ok(Sinusoid {
            dim: self.dim as usize,
            pairing: Pairing::of("pairing", self.pairing)?,
            first: if switch("cosine_first", self.cosine_first)? { Wave::Cosine } else { Wave::Sine },
            odd: Odd::of("odd", self.odd)?,
            shift: self.shift,
            max_period: self.max_period,
            scale: factor("scale", self.scale)?,
            offset: self.offset,
            padding: switch("has_padding", self.has_padding)?.then_some(self.padding),
            frequencies: Frequencies::of("frequencies", self.frequencies)?,
        })
    }
}

impl PosencGridSpec {
    /// # Safety
    /// `axes` is null or points to `axis_count` axes.
    unsafe fn grid(&self) -> Result<Grid, Failure> {
        let axis = |axis: PosencAxis| {
            let along = Along::of("along", axis.along)?;
            let sinusoid = nested("an axis's sinusoid", &axis.sinusoid)?.sinusoid()?;
            Ok(Axis { along, sinusoid })
        };
        // SAFETY: as the caller promises.
        let axes = unsafe { list("axes", self.axes, self.axis_count.into()) }?;
        let axes = axes.into_iter().map(axis).collect::<Result<_, Failure>>()?;
        Ok(Grid { axes, blocks: Blocks::of("blocks", self.blocks)? })
    }
}

impl PosencGridCall {
    pub(crate) fn size(&self) -> GridSize {
        GridSize { frames: self.frames as usize, rows: self.rows as usize, columns: self.columns as usize }
    }
}

impl PosencGridMaskedCall {
    pub(crate) fn size(&self) -> GridSize {
        GridSize::image(self.rows as usize, self.columns as usize)
    }

    pub(crate) fn counted(&self) -> Result<Counted, Failure> {
        let normalize = switch("normalize", self.normalize)?;
        let scale = if normalize { factor("scale", self.scale)? } else { self.scale };
        Ok(Counted { normalize, scale, centre: self.centre })
    }
}

impl PosencLearnedSpec {
    fn learned(&self) -> Result<Learned, Failure> {
        let Self { first, padded, padding, eps, .. } = *self;
        Ok(Learned {
            dim: self.dim as usize,
            scale: factor("scale", self.scale)?,
            rows: match self.rows {
                POSENC_ROWS_OFFSET => Rows::Offset(first),
                POSENC_ROWS_KEPT_BY_ID => Rows::Kept { padding: Some(padding), first, padded },
                POSENC_ROWS_KEPT_BY_MASK => Rows::Kept { padding: None, first, padded },
                other => return Err(unknown("rows", other)),
            },
            norm: match self.norm {
                POSENC_NORM_NONE => None,
                POSENC_NORM_LAYER => Some(Norm::Layer { eps }),
                POSENC_NORM_RMS => Some(Norm::Rms { eps }),
                other => return Err(unknown("norm", other)),
            },
        })
    }
}

impl PosencTables {
    pub(crate) fn get<'a, T: Scalar, M: Space>(&self, scope: &Scope<'a, M>) -> Result<Tables<'a, T, M>, Failure> {
        Ok(Tables {
            token: self.token.read_some(scope, "the token table")?,
            position: self.position.read_some(scope, "the position table")?,
            types: self.types.read_some(scope, "the type table")?,
            gain: self.gain.read_some(scope, "gain")?,
            bias: self.bias.read_some(scope, "bias")?,
        })
    }
}

impl PosencLookup {
    pub(crate) fn get<'a, M: Space>(&self, scope: &Scope<'a, M>) -> Result<Lookup<'a, M>, Failure> {
        Ok(Lookup {
            ids: self.ids.some(scope, "ids")?,
            types: self.types.some(scope, "types")?,
            mask: self.mask.read_some(scope, "mask")?,
            positions: self.positions.get(scope)?,
        })
    }
}

impl PosencTableGradCall {
    pub(crate) fn how(&self) -> Result<TableGrad, Failure> {
        Ok(TableGrad {
            rows: self.rows as usize,
            scale: factor("scale", self.scale)?,
            skipped: switch("has_skipped", self.has_skipped)?.then_some(self.skipped),
            accumulate: switch("accumulate", self.accumulate)?,
        })
    }
}

impl PosencResampleSpec {
    fn resample(&self) -> Result<Resample, Failure> {
        let grid = |[rows, columns]: [u64; 2]| GridSize::image(rows as usize, columns as usize);
        Ok(Resample {
            from: grid(self.from),
            to: grid(self.to),
            filter: Filter::of("filter", self.filter)?,
            antialias: switch("antialias", self.antialias)?,
            factors: (self.factors != [0.0, 0.0]).then_some(self.factors),
            align_corners: switch("align_corners", self.align_corners)?,
            prefix: self.prefix as usize,
            weighting: Weighting::of("weighting", self.weighting)?,
        })
    }
}
