//! What can go wrong, one sentence each.

use std::fmt;

/// Every failure of the crate. A message names the argument, the rule and the numbers.
///
/// `Debug` prints the message too: it is what a `main` that returns the error shows.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A buffer is shorter than its shape.
    #[error("{name} holds {got} elements, the shape needs {need}")]
    Length {
        /// the argument
        name: &'static str,
        /// elements it holds
        got: usize,
        /// elements the shape reaches
        need: usize,
    },
    /// An argument, or a spec's field, breaks a rule; the text is the whole sentence.
    #[error("{0}")]
    Value(String),
    /// A model's config cannot be understood, or says something this crate does not do; the text is the whole sentence.
    #[error("{0}")]
    Config(String),
    /// A product of sizes or strides does not fit.
    #[error("{0} does not fit into 63 bits")]
    Overflow(String),
    /// A buffer belongs to another CUDA context.
    #[error("{0} lies in another CUDA context than the one this plan was made for")]
    Context(&'static str),
    /// There is no CUDA driver, or no device.
    #[error("no CUDA device: {0}")]
    NoDevice(String),
    /// The crate was built without its kernels, or without those that are asked for.
    #[error(
        "this build of posenc lacks these kernels, because POSENC_KERNELS left them out when it was compiled; unset it and build again \
         (a clone needs NVRTC: `pip install nvidia-cuda-nvrtc-cu12==12.9.86`)"
    )]
    NoKernels,
    /// No image of a kernel file could be loaded.
    #[error(
        "no image of {file} for {dtype} loads on this device of compute capability {major}.{minor} with a driver for CUDA {driver}: {tried}"
    )]
    Load {
        /// the kernel file, such as `rotate/rope`
        file: &'static str,
        /// its element type
        dtype: &'static str,
        /// compute capability
        major: i32,
        /// compute capability
        minor: i32,
        /// the driver's CUDA version, such as `12.9`
        driver: String,
        /// every image that was tried and the driver's answer
        tried: String,
    },
    /// The driver refused a call.
    #[error("{call} failed: {reason}")]
    Driver {
        /// the driver's function
        call: &'static str,
        /// its error, by name and text
        reason: String,
    },
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `Result` with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;
