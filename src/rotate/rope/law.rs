//! Rates of a spec, kept from one call or plan to the next.

use std::sync::Arc;

use super::{Angles, Rope};
use crate::Result;
use crate::cpu::Kept;
#[cfg(feature = "cpu")]
use crate::cpu::Lines;

/// What positions are multiplied by.
pub(crate) enum Law {
    Exact {
        /// turns per position in units of 2^-64, `[pairs]`
        rates: Vec<u64>,
        /// sines and cosines of single positions: a decoder rotates queries and keys of every layer at one
        #[cfg(feature = "cpu")]
        last: Kept<i64, [Lines; 2]>,
    },
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
            Ok(match rope.angles {
                Angles::Exact => Self::Exact {
                    rates: rope.all_rates(),
                    #[cfg(feature = "cpu")]
                    last: Kept::new(),
                },
                Angles::Mixed(_) => Self::Mixed(rope.all_rates()),
                Angles::HfCompat | Angles::Given(_) => {
                    Self::Compat((0..rope.pairs()).map(|pair| rope.compat_frequency(pair)).collect())
                }
            })
        })
    }
}
