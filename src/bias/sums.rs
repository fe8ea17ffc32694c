//! What the gradients of a bias's parameters share: the checks of a call, and the sums that blocks leave to the last one.

use std::sync::{Mutex, PoisonError};

use cudarc::driver::CudaSlice;

use crate::bias::toeplitz::{ALL, HeldBias, aligned, alignment, strides};
use crate::bias::{BiasPlan, Places};
use crate::gpu::args::{Args, BiasGradArgs, In};
use crate::gpu::{Function, Held, Launch, Read, Write};
use crate::{Error, Gpu, Logits, Result, Scalar};

/// How a call is cut: from the shape alone, so that every device sums alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// rows of a split, counted over sequences
    pub(super) rows: usize,
    /// splits
    pub(super) splits: usize,
    /// blocks of a head: side by side, and one behind another
    pub(super) blocks: [usize; 2],
    /// threads of a block
    pub(super) threads: usize,
    /// numbers that the blocks leave
    pub(super) sums: usize,
}

/// An entry of a kernel file.
pub(super) struct Kernel {
    function: Function,
    file: &'static str,
    entry: &'static str,
}

impl Kernel {
    pub(super) fn new<T: Scalar>(gpu: &Gpu, file: &'static str, entry: &'static str) -> Result<Self> {
        Ok(Self { function: gpu.function(file, T::NAME, entry)?, file, entry })
    }
}

/// The bias, and the memory between blocks.
pub(super) struct Sums<T> {
    pub(super) gpu: Gpu,
    bias: BiasPlan<T>,
    pub(super) heads: usize,
    scratch: Mutex<Scratch>,
}

/// Sums of the blocks, and how many blocks are done.
struct Scratch {
    sums: CudaSlice<f32>,
    counters: CudaSlice<u32>,
}

/// A call that was checked; keep it until the launch is done.
pub(super) struct Call<'a> {
    grad: Held<'a, In>,
    shape: Logits,
    bias: HeldBias<'a>,
}

impl<T: Scalar> Sums<T> {
    /// For `heads` heads and logits up to the shape of `room`, whose blocks leave `sums` numbers at most.
    pub(super) fn new(gpu: &Gpu, bias: BiasPlan<T>, heads: usize, room: &Logits, sums: usize) -> Result<Self> {
        if heads == 0 || room.heads != heads {
            return Err(Error::Value(format!("the bias has {heads} heads, the logits have {}", room.heads)));
        }
        // One of each head, and one of all.
        let scratch = Scratch { sums: gpu.upload(&vec![0.0f32; sums])?, counters: gpu.upload(&vec![0u32; heads + 1])? };
        Ok(Self { gpu: gpu.clone(), bias, heads, scratch: Mutex::new(scratch) })
    }

    /// Checks what a call reads.
    pub(super) fn check<'a>(
        &'a self,
        (grad, shape): (Read<'a, T>, Logits),
        places: &Places<Read<'a, i32>>,
        gates: Option<Read<'a, f32>>,
    ) -> Result<Call<'a>> {
        shape.check("grad", grad.len())?;
        if shape.heads != self.heads {
            return Err(Error::Value(format!("the bias has {} heads, the logits have {}", self.heads, shape.heads)));
        }
        if shape.heads > 65535 {
            return Err(Error::Value(format!("the logits have {} heads, a gradient takes 65535", shape.heads)));
        }
        let bias = self.bias.hold(&self.gpu, &shape, places, gates, ALL)?;
        Ok(Call { grad: self.gpu.read("grad", grad, shape.span()?)?, shape, bias })
    }

    /// Checks the `numbers` that a call writes and its sums, and launches it; `args` completes the kernel's argument.
    pub(super) fn launch<A: Args>(
        &self,
        call: &Call<'_>,
        (out, numbers): (Write<'_, f32>, usize),
        factor: f32,
        cut: &Cut,
        kernel: &Kernel,
        args: impl FnOnce(BiasGradArgs) -> A,
    ) -> Result<()> {
        let (gpu, shape) = (&self.gpu, &call.shape);
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let Scratch { sums, counters } = &mut *scratch;
        if sums.len() < cut.sums {
            return Err(Error::Value(format!(
                "the call has {} rows of {} keys a head, which makes {} sums; the plan has room for {}",
                shape.batch * shape.queries,
                shape.keys,
                cut.sums,
                sums.len()
            )));
        }
        let out = gpu.write("out", out, numbers)?;
        out.apart_from("out", &call.grad, "grad")?;
        let sums = gpu.write("sums", sums, cut.sums)?;
        let counters = gpu.write("counters", counters, self.heads + 1)?;
        let (grad, element) = (call.grad.address, size_of::<T>());
        let call = BiasGradArgs {
            bias: call.bias.args,
            grad: grad.offset((shape.offset * element) as u64),
            sums: sums.address,
            counters: counters.address,
            out: out.address,
            strides: strides(shape),
            rows: small("rows", cut.rows)?,
            splits: small("splits", cut.splits)?,
            aligned: u32::from(aligned(shape, alignment(grad.address()), element)),
            factor,
        };
        let [x, z] = [small("blocks", cut.blocks[0])?, small("blocks", cut.blocks[1])?];
        let (grid, block) = ([x, small("heads", self.heads)?, z], [small("threads", cut.threads)?, 1, 1]);
        let Kernel { function, file, entry } = kernel;
        gpu.launch(function, &Launch { file, entry, grid, block, args: args(call) })
    }
}

/// A count as a kernel takes it.
pub(super) fn small(what: &str, n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::Overflow(format!("{n} {what}")))
}
