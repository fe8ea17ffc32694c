//! One plan on several streams.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::device::Gpu;
use crate::Result;

/// What belongs to a stream.
pub(crate) trait OnStream: Clone {
    /// The stream it belongs to.
    fn gpu(&self) -> &Gpu;

    /// Moves it to another stream of its context.
    fn move_to(&mut self, gpu: &Gpu) -> Result<()>;

    /// The same on another stream, which waits for what its own has been given so far.
    fn on_stream(&self, stream: &Arc<CudaStream>) -> Result<Self> {
        let mut own = self.clone();
        own.move_to(&self.gpu().on(stream)?)?;
        Ok(own)
    }
}

impl OnStream for Gpu {
    fn gpu(&self) -> &Gpu {
        self
    }

    fn move_to(&mut self, gpu: &Gpu) -> Result<()> {
        *self = gpu.clone();
        Ok(())
    }
}

/// `on` of plans, by the fields that belong to a stream: the first has the plan's [`Gpu`]; then other plans; behind a semicolon the
/// scratch memory.
macro_rules! on_stream {
    ($($(#[$cfg:meta])* $Plan:ident { $first:ident $(, $part:ident)* $(; $scratch:ident)? })*) => {$(
        impl<T: $crate::Scalar> $crate::gpu::OnStream for $Plan<T> {
            fn gpu(&self) -> &$crate::Gpu {
                $crate::gpu::OnStream::gpu(&self.$first)
            }

            fn move_to(&mut self, gpu: &$crate::Gpu) -> $crate::Result<()> {
                $(self.$scratch = self.$scratch.on(gpu)?;)?
                $($crate::gpu::OnStream::move_to(&mut self.$part, gpu)?;)*
                $crate::gpu::OnStream::move_to(&mut self.$first, gpu)
            }
        }

        impl<T: $crate::Scalar> $Plan<T> {
            /// The same plan on another stream of its context: kernels and tables are shared, scratch memory is its own. The stream
            /// waits for what the plan's own has been given so far.
            ///
            /// # Errors
            /// If the stream is of another context, or the driver gives no memory.
            pub fn on(&self, stream: &std::sync::Arc<cudarc::driver::CudaStream>) -> $crate::Result<Self> {
                $crate::gpu::OnStream::on_stream(self, stream)
            }
        }
    )*};
}

pub(crate) use on_stream;
