//! Laws that are kept from one call to the next.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The laws of the last `KEPT` specs, the latest first: a law in 106 bits takes 2 microseconds a pair.
pub(crate) struct Kept<Spec, Law, const KEPT: usize = 8>(Mutex<Vec<(Spec, Arc<Law>)>>);

impl<Spec, Law, const KEPT: usize> Kept<Spec, Law, KEPT> {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// The law of a spec, made if it is not there.
    #[cfg(any(test, feature = "cpu"))]
    pub(crate) fn of(&self, spec: &Spec, make: impl FnOnce() -> Law) -> Arc<Law>
    where
        Spec: PartialEq + Clone,
    {
        self.of_key(|known| known == spec, || spec.clone(), make)
    }

    /// The same of the spec that is `same`, for specs that are borrowed until they are kept.
    #[cfg(any(test, feature = "cpu"))]
    pub(crate) fn of_key(
        &self,
        same: impl Fn(&Spec) -> bool,
        spec: impl FnOnce() -> Spec,
        make: impl FnOnce() -> Law,
    ) -> Arc<Law> {
        let made: Result<_, std::convert::Infallible> = self.find(same, spec, || Ok(make()));
        made.unwrap_or_else(|never| match never {})
    }

    /// The law of a spec, unless it cannot be made.
    pub(crate) fn try_of<E>(&self, spec: &Spec, make: impl FnOnce() -> Result<Law, E>) -> Result<Arc<Law>, E>
    where
        Spec: PartialEq + Clone,
    {
        self.find(|known| known == spec, || spec.clone(), make)
    }

    /// Laws are made outside the lock, so that threads make different ones side by side.
    fn find<E>(
        &self,
        same: impl Fn(&Spec) -> bool,
        spec: impl FnOnce() -> Spec,
        make: impl FnOnce() -> Result<Law, E>,
    ) -> Result<Arc<Law>, E> {
        let known = |laws: &mut Vec<(Spec, Arc<Law>)>| {
            let at = laws.iter().position(|(known, _)| same(known))?;
            laws[..=at].rotate_right(1);
            Some(laws[0].1.clone())
        };
        if let Some(law) = known(&mut self.lock()) {
            return Ok(law);
        }
        let law = Arc::new(make()?);
        let mut laws = self.lock();
        // Another thread may have made it meanwhile.
        Ok(known(&mut laws).unwrap_or_else(|| {
            laws.insert(0, (spec(), law.clone()));
            laws.truncate(KEPT);
            law
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Spec, Arc<Law>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_eight_are_kept() {
        let (kept, mut made) = (Kept::<_, _, 8>::new(), Vec::new());
        for spec in [1, 2, 1, 3, 4, 5, 6, 7, 8, 1, 9, 2, 1] {
            assert_eq!(*kept.of(&spec, || made_now(&mut made, spec)), 10 * spec);
        }
        assert_eq!(made, [1, 2, 3, 4, 5, 6, 7, 8, 9, 2]);
    }

    #[test]
    fn two_laws_are_made_side_by_side() {
        let kept = Kept::<_, _, 2>::new();
        // Each is made while the other is: under one lock they would wait for ever.
        let barrier = std::sync::Barrier::new(2);
        let make = |spec: i32| {
            *kept.of(&spec, || {
                barrier.wait();
                10 * spec
            })
        };
        let made = std::thread::scope(|scope| [1, 2].map(|spec| scope.spawn(move || make(spec))).map(|t| t.join()));
        assert_eq!(made.map(Result::unwrap), [10, 20]);
        assert_eq!(*kept.of(&1, || 0), 10);
    }

    fn made_now(made: &mut Vec<i32>, spec: i32) -> i32 {
        made.push(spec);
        10 * spec
    }
}
