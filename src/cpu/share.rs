//! A tensor shared out among threads.

use std::sync::{Mutex, PoisonError};

/// A box of a tensor's rows, in a slice that begins at its first element. Rows are contiguous and three dimensions count
/// them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// the box's first row in the whole tensor
    pub first: [usize; 3],
    /// rows along each dimension
    pub sizes: [usize; 3],
    /// elements from one row to the next along each dimension
    pub strides: [usize; 3],
}

impl Part {
    pub(crate) const fn whole(sizes: [usize; 3], strides: [usize; 3]) -> Self {
        Self { first: [0; 3], sizes, strides }
    }

    /// Calls `work` on boxes that make up this one, several at once where they are worth it. What it does may not depend on
    /// how they are cut.
    ///
    /// Elements of different rows do not overlap; `row` is their length, and a thread is worth its start from `grain`
    /// elements on. The calling thread works, too: one that waited for others would have to be woken.
    pub(crate) fn share_out<T: Send>(
        self,
        x: &mut [T],
        row: usize,
        grain: usize,
        work: &(impl Fn(Self, &mut [T]) + Sync),
    ) {
        if self.sizes.contains(&0) {
            return;
        }
        let threads = rayon::current_num_threads();
        // Two parts a thread level out what else the machine does; more would make what rows have in common more often.
        let even = (self.elements(row) / (2 * threads)).max(grain);
        if threads == 1 || self.elements(row) <= even {
            return work(self, x);
        }
        let mut parts = Vec::new();
        self.cut(x, row, even, &mut |part, x| parts.push((part, x)));
        let others = threads.min(parts.len()) - 1;
        let parts = Mutex::new(parts.into_iter());
        let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
        let take = || {
            while let Some((part, x)) = next() {
                work(part, x);
            }
        };
        rayon::in_place_scope(|scope| {
            (0..others).for_each(|_| scope.spawn(|_| take()));
            take();
        });
    }

    /// Boxes of at most `most` elements that make up this one, or of one row.
    pub(crate) fn cut<'a, T>(self, x: &'a mut [T], row: usize, most: usize, each: &mut impl FnMut(Self, &'a mut [T])) {
        if self.elements(row) > most
            && let Some((low, high, at)) = self.halves()
        {
            let (x_low, x_high) = x.split_at_mut(at);
            low.cut(x_low, row, most, each);
            high.cut(x_high, row, most, each);
            return;
        }
        each(self, x);
    }

    fn elements(&self, row: usize) -> usize {
        self.sizes.iter().product::<usize>() * row
    }

    /// Two boxes, and where the second begins: halves along the dimension with the largest stride, which no other
    /// dimension crosses because elements do not overlap.
    fn halves(self) -> Option<(Self, Self, usize)> {
        let outer = (0..3).filter(|&i| self.sizes[i] > 1).max_by_key(|&i| self.strides[i])?;
        let half = self.sizes[outer] / 2;
        let (mut low, mut high) = (self, self);
        low.sizes[outer] = half;
        high.sizes[outer] -= half;
        high.first[outer] += half;
        Some((low, high, half * self.strides[outer]))
    }

    /// Where a row of the box lies in the box's slice.
    pub(crate) const fn at(&self, i: usize, j: usize, k: usize) -> usize {
        i * self.strides[0] + j * self.strides[1] + k * self.strides[2]
    }

    /// Every row: its place in the whole tensor, and its elements.
    #[inline(always)]
    pub(crate) fn rows<T>(&self, x: &mut [T], row: usize, mut work: impl FnMut([usize; 3], &mut [T])) {
        let [a, b, c] = self.first;
        for i in 0..self.sizes[0] {
            for j in 0..self.sizes[1] {
                for k in 0..self.sizes[2] {
                    let at = self.at(i, j, k);
                    work([a + i, b + j, c + k], &mut x[at..at + row]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_met_once_however_it_is_cut() {
        for strides in [[60, 20, 5], [5, 10, 40], [7, 200, 35]] {
            let part = Part::whole([2, 3, 4], strides);
            let span = part.at(1, 2, 3) + 5;
            let want: Vec<u32> = {
                let mut x = vec![0; span];
                part.rows(&mut x, 5, |place, row| row.iter_mut().for_each(|x| *x += number(place)));
                x
            };
            assert_eq!(want.iter().filter(|&&x| x > 0).count(), 2 * 3 * 4 * 5);
            for most in [0, 1, 12, 50, 100, 1000] {
                let mut x = vec![0; span];
                part.cut(&mut x, 5, most, &mut |part, x| {
                    part.rows(x, 5, |place, row| row.iter_mut().for_each(|x| *x += number(place)));
                });
                assert_eq!(x, want, "{strides:?} {most}");
            }
        }
    }

    fn number([a, b, c]: [usize; 3]) -> u32 {
        (100 * a + 10 * b + c + 1) as u32
    }
}
