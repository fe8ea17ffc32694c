//! Laws that are kept from one call to the next.

use std::sync::{Arc, Mutex, PoisonError};

const KEPT: usize = 8;

/// The laws of the last specs, the latest first. A law in 106 bits takes 2 microseconds a pair, more than a token's
/// rotation, and a decoder asks for the same one or two at every layer.
pub(crate) struct Kept<Spec, Law>(Mutex<Vec<(Spec, Arc<Law>)>>);

impl<Spec: PartialEq + Clone, Law> Kept<Spec, Law> {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// The law of a spec, made if it is not there.
    pub(crate) fn of(&self, spec: &Spec, make: impl FnOnce() -> Law) -> Arc<Law> {
        let mut laws = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = laws.iter().position(|(known, _)| known == spec) {
            laws[..=at].rotate_right(1);
            return laws[0].1.clone();
        }
        let law = Arc::new(make());
        laws.insert(0, (spec.clone(), law.clone()));
        laws.truncate(KEPT);
        law
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_eight_are_kept() {
        let (kept, mut made) = (Kept::new(), Vec::new());
        for spec in [1, 2, 1, 3, 4, 5, 6, 7, 8, 1, 9, 2, 1] {
            assert_eq!(*kept.of(&spec, || made_now(&mut made, spec)), 10 * spec);
        }
        assert_eq!(made, [1, 2, 3, 4, 5, 6, 7, 8, 9, 2]);
    }

    fn made_now(made: &mut Vec<i32>, spec: i32) -> i32 {
        made.push(spec);
        10 * spec
    }
}
