//! A few things on the stack.

use std::mem::MaybeUninit;

/// Up to `N` things. A call makes such lists each time it runs, so that places without a thing are neither written when the list
/// is made nor looked at when it goes.
pub(super) struct List<T, const N: usize> {
    places: [MaybeUninit<T>; N],
    len: usize,
}

impl<T, const N: usize> List<T, N> {
    #[inline]
    pub(super) const fn new() -> Self {
        Self { places: [const { MaybeUninit::uninit() }; N], len: 0 }
    }

    /// Puts a thing behind the others, and returns its index; `None` if the list is full.
    #[inline]
    pub(super) fn push(&mut self, thing: T) -> Option<usize> {
        let index = self.len;
        self.places.get_mut(index)?.write(thing);
        self.len += 1;
        Some(index)
    }
}

impl<T, const N: usize> std::ops::Deref for List<T, N> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `push` wrote the first `len` places, which are of T's size and alignment.
        unsafe { std::slice::from_raw_parts(self.places.as_ptr().cast(), self.len) }
    }
}

impl<T, const N: usize> Drop for List<T, N> {
    #[inline]
    fn drop(&mut self) {
        let things = std::ptr::slice_from_raw_parts_mut(self.places.as_mut_ptr().cast::<T>(), self.len);
        // SAFETY: `push` wrote the first `len` places, and no one sees the list any more.
        unsafe { std::ptr::drop_in_place(things) }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[test]
    fn a_list_holds_what_was_pushed_and_drops_it_once() {
        let thing = Rc::new(());
        let mut list = List::<_, 2>::new();
        assert!(list.is_empty());
        assert_eq!([(); 3].map(|()| list.push(thing.clone())), [Some(0), Some(1), None]);
        assert_eq!((list.len(), Rc::strong_count(&thing)), (2, 3));
        drop(list);
        assert_eq!(Rc::strong_count(&thing), 1);
    }
}
