//! Device buffers with their shapes, as calls take them.

use super::buffer::{Buffer, BufferMut};
use crate::bias::Numbers;
use crate::shape::Shape;
use crate::{Heads, Logits, Tokens};

/// A device buffer of `V` that a call reads: a `CudaSlice`, a view of one, unified memory, [`Raw`](super::Raw).
pub type Read<'a, V> = &'a dyn Buffer<V>;
/// A device buffer of `V` that a call writes.
pub type Write<'a, V> = &'a mut dyn BufferMut<V>;

/// A tensor on the device that a call reads: [`Heads::of`], [`Logits::of`], [`Tokens::of`].
pub struct View<'a, T, S> {
    pub(crate) buffer: Read<'a, T>,
    pub(crate) shape: S,
}

/// A tensor on the device that a call writes, or changes in place: [`Heads::of_mut`] and its like.
pub struct ViewMut<'a, T, S> {
    pub(crate) buffer: Write<'a, T>,
    pub(crate) shape: S,
}

/// A tensor that a call changes in place, or reads and writes elsewhere.
///
/// A [`ViewMut`] is changed in place; [`View::to`] names another tensor for the result.
pub enum Update<'a, T, S> {
    /// the result takes the place of the input
    InPlace(ViewMut<'a, T, S>),
    /// the first is read, the second is written
    Copy(View<'a, T, S>, ViewMut<'a, T, S>),
}

impl<T, S: Copy> Clone for View<'_, T, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T, S: Copy> Copy for View<'_, T, S> {}

impl<'a, T, S: Shape> View<'a, T, S> {
    /// The result goes to `out`, which has the same sizes and strides of its own. At the same address with the same strides
    /// ([`Raw`](super::Raw)) it is in place.
    #[must_use]
    pub fn to(self, out: ViewMut<'a, T, S>) -> Update<'a, T, S> {
        Update::Copy(self, out)
    }

    /// Its shape.
    pub const fn shape(&self) -> &S {
        &self.shape
    }
}

impl<T, S: Shape> ViewMut<'_, T, S> {
    /// Its shape.
    pub const fn shape(&self) -> &S {
        &self.shape
    }
}

impl<T, S: Shape> Update<'_, T, S> {
    /// The shape of what is read.
    pub const fn shape(&self) -> &S {
        match self {
            Self::InPlace(x) => x.shape(),
            Self::Copy(x, _) => x.shape(),
        }
    }

    /// The shape of what is written.
    pub const fn out_shape(&self) -> &S {
        match self {
            Self::InPlace(x) | Self::Copy(_, x) => x.shape(),
        }
    }
}

impl<'a, T, S> From<ViewMut<'a, T, S>> for Update<'a, T, S> {
    fn from(x: ViewMut<'a, T, S>) -> Self {
        Self::InPlace(x)
    }
}

/// `of` and `of_mut` of a shape.
macro_rules! tensor {
    ($($Shape:ty),*) => {$(
        impl $Shape {
            /// A buffer of this shape, to be read.
            #[must_use]
            pub fn of<T>(self, buffer: Read<'_, T>) -> View<'_, T, Self> {
                View { buffer, shape: self }
            }

            /// A buffer of this shape, to be written, or changed in place.
            #[must_use]
            pub fn of_mut<T>(self, buffer: Write<'_, T>) -> ViewMut<'_, T, Self> {
                ViewMut { buffer, shape: self }
            }
        }
    )*};
}

tensor!(Heads, Logits, Numbers, Tokens);

impl<T, S: std::fmt::Debug> std::fmt::Debug for View<'_, T, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("elements", &self.buffer.len()).field("shape", &self.shape).finish()
    }
}

impl<T, S: std::fmt::Debug> std::fmt::Debug for ViewMut<'_, T, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ViewMut").field("elements", &self.buffer.len()).field("shape", &self.shape).finish()
    }
}

impl<T, S: std::fmt::Debug> std::fmt::Debug for Update<'_, T, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::InPlace(x) => f.debug_tuple("InPlace").field(x).finish(),
            Self::Copy(x, y) => f.debug_tuple("Copy").field(x).field(y).finish(),
        }
    }
}
