//! Rates of a spec, kept from one call or plan to the next.

use std::sync::Arc;

use super::{Angles, Rope};
use crate::Result;
use crate::cpu::Kept;
#[cfg(feature = "cpu")]
use crate::rotate::cpu::Turns;

/// What a checked spec gives every call.
pub(crate) struct Law {
    pub(crate) rates: Rates,
    #[cfg(feature = "cpu")]
    pub(crate) turns: Turns,
}

/// What positions are multiplied by.
pub(crate) enum Rates {
    /// turns per position in units of 2^-64, `[pairs]`
    Exact(Vec<u64>),
    /// turns per position in units of 2^-64, `[axes, sets, pairs]`
    Mixed(Vec<u64>),
    /// radians per position, `[pairs]`
    Compat(Vec<f32>),
}

/// A decoder rotates with one or two specs at every layer, and makes plans of them for every stream.
static LAWS: Kept<Rope, Law, 16> = Kept::new();

impl Law {
    /// The law of a spec, which is checked when it is new.
    pub(crate) fn of(rope: &Rope) -> Result<Arc<Self>> {
        LAWS.try_of(rope, || {
            rope.check()?;
            let rates = match rope.angles {
                Angles::Exact => Rates::Exact(rope.all_rates()),
                Angles::Mixed(_) => Rates::Mixed(rope.all_rates()),
                Angles::HfCompat | Angles::Given(_) => {
                    Rates::Compat((0..rope.pairs()).map(|pair| rope.compat_frequency(pair)).collect())
                }
            };
            Ok(Self {
                rates,
                #[cfg(feature = "cpu")]
                turns: Turns::new(),
            })
        })
    }
}
