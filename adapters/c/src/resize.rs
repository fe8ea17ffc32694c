//! Tables of relative positions at another window size, in host memory.

use std::ffi::c_void;

use posenc::Scalar;
use posenc::bias::{TableResize, Window, decomposed_axis};

use crate::header::{Coded, header};
use crate::{
    Failure, POSENC_BF16, POSENC_F16, POSENC_F32, PosencNumbers, PosencStatus, PosencWindow, guarded, place, slice,
    unknown, versioned,
};

header! {{}
    codes TableResize {
        POSENC_RESIZE_BILINEAR = 0 => Bilinear: "Interpolation of a window's table: linear (Hugging Face's BEiT).",
        POSENC_RESIZE_BICUBIC = 1 => Bicubic: "cubic, A = -0.75: timm's simple resize, Swin's own code",
        POSENC_RESIZE_BICUBIC_ANTIALIAS = 2 => BicubicAntialias: "cubic, A = -0.5, antialiased: timm's LeViT",
        POSENC_RESIZE_GEOMETRIC = 3 => Geometric: "linear between geometric distances: timm's resize of BEiT",
    }

    /// One table of a window at another size, in host memory.
    versioned struct PosencWindowResizeCall {
        window: PosencWindow => "the window of `table`: `window` of a term that `posenc_term_swin` and others fill in",
        to: [u64; 2] => "rows and columns of the new window",
        resize: u32 => "`POSENC_RESIZE_...`",
        element: u32 => "type of `table` and `out`",
        table: *const c_void => "the table, in host memory",
        table_len: u64 => "elements there",
        table_shape: PosencNumbers => "its shape, `[1, heads, 1, entries]`",
        out: *mut c_void => "`[entries, heads]` of the new window in host memory, written",
        out_len: u64 => "elements there",
    }
    /// Relative positions of one axis of decomposed positions (SAM, ViTDet, MViTv2), in host memory.
    versioned struct PosencDecomposedAxisCall {
        table: *const c_void => "`[length, dim]` in host memory; resized where `length` is not `2 * max(queries, keys) - 1`",
        table_len: u64 => "elements there",
        dim: u64 => "channels of a head",
        queries: u64 => "queries along the axis",
        keys: u64 => "keys along the axis",
        element: u32 => "type of `table` and `out`",
        reserved: u32 => "0",
        out: *mut c_void => "`[queries, keys, dim]` in host memory, written",
        out_len: u64 => "elements there",
    }

    /// Resizes the table of a window, once for each resolution, on the host. The new window's term differs in `height` and
    /// `width`.
    fn posenc_window_resize(call: *const PosencWindowResizeCall) -> PosencStatus as Window::resize {
        guarded(|| {
            let call = versioned("call", call)?;
            match call.element {
                POSENC_F32 => call.resize::<f32>(),
                POSENC_F16 => call.resize::<half::f16>(),
                POSENC_BF16 => call.resize::<half::bf16>(),
                other => Err(unknown("element", other)),
            }
        })
    }
    /// Gives each query and key of an axis its row of the table, on the host: a query's products with a pair's row are the
    /// numbers of a term that `posenc_term_decomposed` fills in.
    fn posenc_decomposed_axis(call: *const PosencDecomposedAxisCall) -> PosencStatus as bias::decomposed_axis {
        guarded(|| {
            let call = versioned("call", call)?;
            match call.element {
                POSENC_F32 => call.axis::<f32>(),
                POSENC_F16 => call.axis::<half::f16>(),
                POSENC_BF16 => call.axis::<half::bf16>(),
                other => Err(unknown("element", other)),
            }
        })
    }
}

impl PosencWindowResizeCall {
    /// # Safety
    /// `table` and `out` are null or point to as many elements as there are said to be.
    unsafe fn resize<T: Scalar>(&self) -> Result<(), Failure> {
        let (window, resize) = (self.window.window()?, TableResize::of("resize", self.resize)?);
        let to = self.to.map(|size| size as usize);
        let new = Window { height: to[0], width: to[1], ..window };
        check_out(self.out_len, &[new.entries(), self.table_shape.heads as usize])?;
        // SAFETY: as the caller promises.
        let table = unsafe { elements::<T>("table", self.table, self.table_len) }?;
        let values = window.resize(table, &self.table_shape.shape(), to, resize)?;
        // SAFETY: `check_out` found as many elements.
        unsafe { write(self.out, &values) }
    }
}

impl PosencDecomposedAxisCall {
    /// # Safety
    /// As [`PosencWindowResizeCall::resize`].
    unsafe fn axis<T: Scalar>(&self) -> Result<(), Failure> {
        let [dim, queries, keys] = [self.dim, self.queries, self.keys].map(|size| size as usize);
        check_out(self.out_len, &[queries, keys, dim])?;
        // SAFETY: as the caller promises.
        let table = unsafe { elements::<T>("table", self.table, self.table_len) }?;
        let values = decomposed_axis(table, dim, queries, keys)?;
        // SAFETY: `check_out` found as many elements.
        unsafe { write(self.out, &values) }
    }
}

/// Refuses a result that does not fit, before memory for it is allocated.
fn check_out(got: u64, sizes: &[usize]) -> Result<(), Failure> {
    let need = sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size)).unwrap_or(usize::MAX);
    if got < need as u64 {
        return Err(posenc::Error::Length { name: "out", got: got as usize, need }.into());
    }
    Ok(())
}

/// Elements of the caller in host memory.
///
/// # Safety
/// As [`slice`].
unsafe fn elements<'a, T>(name: &str, pointer: *const c_void, len: u64) -> Result<&'a [T], Failure> {
    aligned::<T>(name, pointer)?;
    // SAFETY: as the caller promises.
    unsafe { slice(name, pointer.cast(), len) }
}

/// # Safety
/// `out` is null or points to as many elements as there are values.
unsafe fn write<T: Copy>(out: *mut c_void, values: &[T]) -> Result<(), Failure> {
    aligned::<T>("out", place("out", out)?)?;
    // SAFETY: not null and aligned, and the caller promises as many elements; the values are the library's own.
    unsafe { out.cast::<T>().copy_from_nonoverlapping(values.as_ptr(), values.len()) };
    Ok(())
}

fn aligned<T>(name: &str, pointer: *const c_void) -> Result<(), Failure> {
    if pointer.cast::<T>().is_aligned() {
        return Ok(());
    }
    let align = align_of::<T>();
    Err(Failure::argument(format!("{name} lies at {pointer:p}, its elements need multiples of {align}")))
}
