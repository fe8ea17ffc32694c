//! Plans of one operation by element type, each made when its type is first met.

use std::any::Any;
use std::sync::OnceLock;

use candle_core::Result;
use posenc::Scalar;

use crate::tensor::{InCandle, refused};

/// Of f32, f16 and bf16.
#[derive(Debug, Default)]
pub(crate) struct Plans([OnceLock<Box<dyn Any + Send + Sync>>; 3]);

impl Plans {
    /// The plan for `T`, which `make` makes if there is none.
    pub(crate) fn of<T: Scalar, P: Any + Send + Sync>(&self, make: impl FnOnce() -> posenc::Result<P>) -> Result<&P> {
        let place = &self.0[["f32", "f16", "bf16"].iter().position(|name| *name == T::NAME).unwrap_or(0)];
        if place.get().is_none() {
            let made = make().in_candle()?;
            // Of two threads that make it at once, one keeps its own.
            let _ = place.set(Box::new(made));
        }
        match place.get().and_then(|plan| plan.downcast_ref()) {
            Some(plan) => Ok(plan),
            None => refused(format!("there is no plan for {}", T::NAME)),
        }
    }
}
