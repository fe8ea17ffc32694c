//! The softmax on a device: one launch.

use bytemuck::Zeroable;

use super::{Order, Softmax};
use crate::attend::DeviceInputs;
use crate::attend::inputs::check_mask;
use crate::attend::work::{HELD, PARTS, Room, RowShape, SHAPES, Work, held_grad};
use crate::bias::{AsBias, BiasInputs, BiasPlan, Held, rows};
use crate::gpu::args::{
    Args, BiasArgs, BiasKind, CHUNK, In, LogitOrder, Out, SinkGradArgs, SoftmaxArgs, SoftmaxGradArgs,
    SoftmaxGradTermsArgs, SoftmaxLaw, SoftmaxTermsArgs, TeamArgs, TermsArgs,
};
use crate::gpu::kernel::{
    Entry, SINK_GRAD, SOFTMAX, SOFTMAX_GRAD, SOFTMAX_GRAD_TERMS, SOFTMAX_ROWS, SOFTMAX_TERMS, SOFTMAX_WHOLE,
};
use crate::gpu::{Call, Gpu, Kernel, Scratch, Update, Write, on_stream, widest};
use crate::shape::Shape;
use crate::{Error, Logits, Result, Scalar};

// -------------------------------------------------------------------------------------------------------------- launch

impl Softmax {
    /// The law as kernels take it.
    pub(in crate::attend) fn law(&self) -> SoftmaxLaw {
        let limit = |side: Option<u32>| side.and_then(|n| i32::try_from(n).ok()).unwrap_or(i32::MAX);
        let cap = self.softcap.unwrap_or(0.0);
        SoftmaxLaw {
            scale: self.scale,
            cap,
            inverse_cap: if cap == 0.0 { 0.0 } else { 1.0 / cap },
            order: match self.order {
                Order::SoftcapThenBias => LogitOrder::SOFTCAP_THEN_BIAS,
                Order::BiasThenSoftcap => LogitOrder::BIAS_THEN_SOFTCAP,
                Order::BiasThenScale => LogitOrder::BIAS_THEN_SCALE,
            },
            left: limit(self.left),
            right: limit(self.right),
            ..SoftmaxLaw::zeroed()
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------- plan

/// [`Softmax`] and a bias on a [`Gpu`], for one element type.
///
/// A call allocates nothing, uploads nothing, synchronises nothing, and is one kernel, for a decode step against a long
/// cache too: there several blocks share a row and meet once in scratch memory of the plan, in a cooperative launch. Where
/// calls may run at the same time (in a capture, and on the per-thread default stream) such a call allocates its own in
/// the stream's order.
#[derive(Clone, Debug)]
pub struct SoftmaxPlan<T> {
    pub(in crate::attend) gpu: Gpu,
    pub(in crate::attend) softmax: Softmax,
    bias: BiasPlan<T>,
    /// where blocks that share a row leave the sums of their chunks, and count who is there
    pub(in crate::attend) scratch: Scratch,
    kernel: Roomy<SoftmaxArgs>,
    /// of rows in registers: one for each of `SHAPES`, and those of which every key is seen
    in_registers: [Kernel<SoftmaxArgs>; SOFTMAX_ROWS.len()],
    whole: [Kernel<SoftmaxArgs>; SOFTMAX_WHOLE.len()],
    terms_kernel: Roomy<SoftmaxTermsArgs>,
    pub(in crate::attend) grad: Roomy<SoftmaxGradArgs>,
    pub(in crate::attend) terms_grad: Roomy<SoftmaxGradTermsArgs>,
    pub(in crate::attend) sink_grad: Kernel<SinkGradArgs>,
}

/// A kernel, and what the device has room for when it runs it.
#[derive(Clone, Debug)]
pub(in crate::attend) struct Roomy<A> {
    pub(in crate::attend) kernel: Kernel<A>,
    pub(in crate::attend) room: Room,
}

/// The rows of a call.
#[derive(Clone, Copy)]
pub(in crate::attend) struct Rows {
    pub(in crate::attend) rows: u32,
    pub(in crate::attend) keys: usize,
    /// as kernels take it
    pub(in crate::attend) aligned: u32,
}

impl<A: Args> Roomy<A> {
    /// Loads it; a key that waits in shared memory takes `key` bytes.
    fn load<T: Scalar>(gpu: &Gpu, entry: [Entry<A>; 1], key: u32) -> Result<Self> {
        let [kernel] = gpu.load::<T, _, 1>(entry)?;
        Ok(Self { room: Room::of(gpu, &kernel, key)?, kernel })
    }

    /// Launches it over rows of `keys`, with room for at least `least` chunks; `args` is its argument for a division of work.
    ///
    /// Where the driver refuses the cooperative launch (a green context has fewer multiprocessors than the device says), a block
    /// takes each row alone: no bit depends on it.
    pub(in crate::attend) fn launch<'a>(
        &self,
        call: &mut Call<'a>,
        scratch: &'a Scratch,
        Rows { rows, keys, aligned }: Rows,
        least: u32,
        args: impl Fn(TeamArgs) -> A,
    ) -> Result<()> {
        let launch = |work: &Work, [counters, parts]: [Out; 2]| {
            let team = TeamArgs { counters, parts, ..work.team(rows, aligned) };
            work.launch(work.held.max(least), self.room.key, args(team))
        };
        let mut work = Work::of(rows, keys, &self.room);
        if work.share > 1 {
            let (counters, parts) = call.scratch(scratch)?;
            if call.try_launch(&self.kernel, &launch(&work, [counters, parts]))? {
                return Ok(());
            }
            work = Work::of(rows, keys, &self.room.alone());
        }
        call.launch(&self.kernel, &launch(&work, [Out::NULL; 2]))
    }
}

on_stream! { SoftmaxPlan { gpu, bias; scratch } }

impl<T: Scalar> SoftmaxPlan<T> {
    /// Uploads the bias, loads the kernels, and allocates 512 KiB for the sums of shared rows.
    ///
    /// | argument | meaning |
    /// |---|---|
    /// | `bias` | `&Alibi`, `&Slopes`, `&Toeplitz`, a [`&Term`](crate::bias::Term) or several, a [`Bias`](crate::Bias), [`Bias::None`](crate::Bias::None), or a [`BiasPlan`] |
    ///
    /// # Errors
    /// If the spec or the bias is refused, or the kernels cannot be loaded.
    pub fn new(gpu: &Gpu, softmax: &Softmax, bias: impl AsBias<T>) -> Result<Self> {
        softmax.check()?;
        let [sink_grad] = gpu.load::<T, _, 1>(SINK_GRAD)?;
        Ok(Self {
            gpu: gpu.clone(),
            softmax: *softmax,
            bias: bias.plan(gpu)?,
            scratch: Scratch::new(gpu, gpu.multiprocessors() as usize, 2 * PARTS)?,
            kernel: Roomy::load::<T>(gpu, SOFTMAX, HELD)?,
            in_registers: gpu.load::<T, _, _>(SOFTMAX_ROWS)?,
            whole: gpu.load::<T, _, _>(SOFTMAX_WHOLE)?,
            terms_kernel: Roomy::load::<T>(gpu, SOFTMAX_TERMS, HELD)?,
            grad: Roomy::load::<T>(gpu, SOFTMAX_GRAD, held_grad::<T>())?,
            terms_grad: Roomy::load::<T>(gpu, SOFTMAX_GRAD_TERMS, held_grad::<T>())?,
            sink_grad,
        })
    }

    /// The spec.
    pub const fn softmax(&self) -> &Softmax {
        &self.softmax
    }

    /// The plan's own bias.
    pub const fn bias(&self) -> &BiasPlan<T> {
        &self.bias
    }

    /// The plan's own bias, to be trained in place or to get a new table.
    pub const fn bias_mut(&mut self) -> &mut BiasPlan<T> {
        &mut self.bias
    }

    /// Hands in the bias, the plan's own or the call's, and the scales of heads. Terms and scales have a kernel of their own: without
    /// terms, it adds none.
    pub(in crate::attend) fn hold_bias<'a, 'b: 'a>(
        &'a self,
        call: &mut Call<'a>,
        shape: &Logits,
        inputs: &DeviceInputs<'b, T>,
    ) -> Result<Held> {
        let of = BiasInputs { places: inputs.places, gates: inputs.gates, terms: inputs.bias.terms };
        let held = inputs.bias.plan.unwrap_or(&self.bias).hold(call, shape, of, self.softmax.window())?;
        let Some(scales) = inputs.scales else { return Ok(held) };
        if held.terms.is_none() && held.bias.kind != BiasKind::NONE {
            return Err(Error::Value(
                "scales of heads go with a bias of terms or none on the device: a row of distances is a term too"
                    .into(),
            ));
        }
        let scales = call.read("scales", scales, shape.heads)?;
        Ok(Held { terms: Some(TermsArgs { scales, ..held.terms.unwrap_or(TermsArgs::zeroed()) }), ..held })
    }

    /// The softmax of every row, `p = exp(z - lse)` with `z = softcap(scale * s) + bias + mask` in the spec's order.
    ///
    /// | argument | shape | meaning |
    /// |---|---|---|
    /// | `logits` | `[batch, heads, queries, keys]` | `shape.of_mut(&mut x)` in place, `shape.of(&x).to(shape.of_mut(&mut y))` elsewhere |
    /// | `inputs` | | positions, mask, sinks, gates, scales, and a bias in place of the plan's own |
    ///
    /// Each logit that is not masked is read once and each probability written once where a row fits into a block's
    /// shared memory, 4 bytes a key in steps of 8192 keys: 57344 keys on compute capability 9.0 and 10.0, 40960 on 8.0,
    /// 24576 on 8.6, 8.9 and 12.0, 8192 on 7.5. Where there are fewer rows than multiprocessors, all blocks that the device
    /// has at once share them, and the limit is theirs together: a row of 7 million keys on an H100. Longer rows are read
    /// twice.
    ///
    /// # Accuracy
    /// [`Softmax::error_bound`] and the rounding to `T`. The same bits on every device and for every alignment, number of
    /// rows, and way of reading. Bit for bit equal are: a shard of heads or of sequences, a chunk of queries, and a row
    /// whose tensor has more keys than it sees, be it by a longer cache, a causal mask, a window or a length. Rows of
    /// which each device holds a part of the keys are put together by their `lse`, and are then equal within the bound,
    /// not bit for bit.
    ///
    /// # Errors
    /// If a buffer is too short, belongs to another context or shares memory with an output, if shapes do not go
    /// together or written elements overlap, or gates come without a bias. Nothing is written then.
    ///
    /// # Example
    /// ```no_run
    /// use posenc::{Alibi, Gpu, Logits, Softmax, SoftmaxPlan};
    ///
    /// let gpu = Gpu::open(0)?;
    /// let softmax = Softmax::causal(1.0 / 128f32.sqrt());
    /// let plan = SoftmaxPlan::<half::bf16>::new(&gpu, &softmax, &Alibi::new(32))?;
    /// let mut logits = gpu.stream().alloc_zeros(32 * 7 * 7)?;
    /// plan.apply(Logits::bhqk(1, 32, 7, 7).of_mut(&mut logits), &Default::default())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn apply<'a, 'b: 'a>(
        &'a self,
        logits: impl Into<Update<'a, T, Logits>>,
        inputs: &DeviceInputs<'b, T>,
    ) -> Result<()> {
        self.run(logits.into(), inputs, None)
    }

    /// [`SoftmaxPlan::apply`], and the log-sum-exp of each row, sink included, written to `lse`, `[batch, heads, queries]`.
    ///
    /// # Errors
    /// As [`SoftmaxPlan::apply`].
    pub fn apply_with_lse<'a, 'b: 'a>(
        &'a self,
        logits: impl Into<Update<'a, T, Logits>>,
        inputs: &DeviceInputs<'b, T>,
        lse: Write<'a, f32>,
    ) -> Result<()> {
        self.run(logits.into(), inputs, Some(lse))
    }

    /// The entry and the shape for rows that stay in registers, if the call's may: whole packs of 16 bytes of logits that need
    /// nothing but their scale, and a slope for each side.
    fn in_registers(&self, args: &SoftmaxArgs, rows: &Rows) -> Option<(&Kernel<SoftmaxArgs>, RowShape)> {
        let BiasArgs { kind, gates, key_positions, key_lengths, query_lengths, sequences, .. } = args.bias;
        let SoftmaxLaw { cap, order, left, right, .. } = args.law;
        let lined =
            [BiasKind::NONE, BiasKind::SLOPES].contains(&kind) && [gates, key_positions, args.mask] == [In::NULL; 3];
        let packs = rows.aligned > 0 && rows.keys <= CHUNK && rows.keys.is_multiple_of(16 / size_of::<T>());
        if !(lined && packs && sequences == 0 && cap == 0.0 && order != LogitOrder::BIAS_THEN_SCALE) {
            return None;
        }
        let index = RowShape::of(rows.rows, rows.keys, self.gpu.multiprocessors())?;
        let shape = SHAPES[index];
        let all = [key_lengths, query_lengths] == [In::NULL; 2] && [left, right] == [i32::MAX; 2];
        let whole = shape.whole.filter(|_| all && rows.keys == shape.places());
        Some((whole.map_or(&self.in_registers[index], |index| &self.whole[index]), shape))
    }

    fn run<'a, 'b: 'a>(
        &'a self,
        logits: Update<'a, T, Logits>,
        inputs: &DeviceInputs<'b, T>,
        lse: Option<Write<'a, f32>>,
    ) -> Result<()> {
        let mut call = self.gpu.call();
        let x = call.update(["logits", "probabilities"], logits)?;
        let shape = x.x.shape;
        let Held { bias, terms } = self.hold_bias(&mut call, &shape, inputs)?;
        let mut call_args = SoftmaxArgs {
            bias,
            law: self.softmax.law(),
            x: x.x.at,
            y: x.y.at,
            sinks: call.read_some("sinks", inputs.sinks, shape.heads)?,
            lse: call.write_some("lse", lse, shape.rows()?)?,
            x_strides: shape.strides.map(|stride| stride as i64),
            y_strides: x.y.shape.strides.map(|stride| stride as i64),
            ..SoftmaxArgs::zeroed()
        };
        let mut mask_steps = 0;
        if let Some(mask) = inputs.mask {
            check_mask(mask.shape(), &shape)?;
            let mask = call.view("mask", mask)?;
            // Strides stand still where a size is 1.
            let dims = mask.shape.strided().dims;
            call_args.mask_strides = [0, 1, 2].map(|i| if dims[i].0 == 1 { 0 } else { dims[i].1 as i64 });
            call_args.mask = mask.at;
            mask_steps = mask.steps;
        }
        if shape.batch == 0 || shape.queries == 0 {
            return Ok(());
        }
        let aligned = if widest(x.steps()) < 16 { 0 } else { 1 + u32::from(widest(mask_steps) == 16) };
        let rows = Rows { rows: rows(&shape)?, keys: shape.keys, aligned };
        let args = |team| {
            let mut args = call_args;
            args.team = team;
            args
        };
        if terms.is_none()
            && let Some((kernel, shape)) = self.in_registers(&call_args, &rows)
        {
            call_args.team.rows = rows.rows;
            return call.launch(kernel, &shape.launch(rows.rows, call_args));
        }
        match terms {
            None => self.kernel.launch(&mut call, &self.scratch, rows, 1, args),
            Some(terms) => self.terms_kernel.launch(&mut call, &self.scratch, rows, 1, |team| SoftmaxTermsArgs {
                call: args(team),
                terms,
                ..SoftmaxTermsArgs::zeroed()
            }),
        }
    }
}
