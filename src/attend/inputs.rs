//! What a softmax reads beside its logits, on the CPU and on the device.

use crate::bias::Bias;
#[cfg(feature = "cuda")]
use crate::bias::{BiasPlan, DeviceTermInputs};
#[cfg(feature = "cuda")]
use crate::gpu::View;
#[cfg(feature = "cuda")]
use crate::memory::Device;
use crate::memory::{Host, Memory};
use crate::position::Places;
use crate::shape::Shape;
use crate::{Error, Logits, Result, Scalar};

/// The types of bias and mask in each [`Memory`].
pub trait Attended: Memory {
    /// [`Bias`] on the CPU, [`DeviceBias`] on the device.
    type Bias<'a, T: 'a>: Copy;
    /// A slice with its shape on the CPU, a [`View`](crate::gpu::View) on the device.
    type Mask<'a, T: 'a>: Copy;

    #[doc(hidden)]
    fn default_bias<'a, T: 'a>() -> Self::Bias<'a, T>;
}

impl Attended for Host {
    type Bias<'a, T: 'a> = Bias<'a>;
    type Mask<'a, T: 'a> = (&'a [T], Logits);

    fn default_bias<'a, T: 'a>() -> Bias<'a> {
        Bias::None
    }
}

#[cfg(feature = "cuda")]
impl Attended for Device {
    type Bias<'a, T: 'a> = DeviceBias<'a, T>;
    type Mask<'a, T: 'a> = View<'a, T, Logits>;

    fn default_bias<'a, T: 'a>() -> DeviceBias<'a, T> {
        DeviceBias::default()
    }
}

/// The bias of one softmax call on the device. The default is the softmax plan's own, which reads nothing of the call.
///
/// | field | meaning |
/// |---|---|
/// | `plan` | in place of the softmax plan's own |
/// | `terms` | what each term of a bias of terms reads; empty for other biases |
#[cfg(feature = "cuda")]
pub struct DeviceBias<'a, T> {
    /// in place of the softmax plan's own
    pub plan: Option<&'a BiasPlan<T>>,
    /// what each term reads
    pub terms: &'a [DeviceTermInputs<'a>],
}

#[cfg(feature = "cuda")]
impl<'a, T> DeviceBias<'a, T> {
    /// The softmax plan's own terms, and what they read.
    #[must_use]
    pub const fn terms(terms: &'a [DeviceTermInputs<'a>]) -> Self {
        Self { plan: None, terms }
    }
}

#[cfg(feature = "cuda")]
impl<'a, T> From<&'a BiasPlan<T>> for DeviceBias<'a, T> {
    fn from(plan: &'a BiasPlan<T>) -> Self {
        Self { plan: Some(plan), terms: &[] }
    }
}

#[cfg(feature = "cuda")]
impl<T> Default for DeviceBias<'_, T> {
    fn default() -> Self {
        Self::terms(&[])
    }
}

#[cfg(feature = "cuda")]
impl<T> Clone for DeviceBias<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

#[cfg(feature = "cuda")]
impl<T> Copy for DeviceBias<'_, T> {}

#[cfg(feature = "cuda")]
impl<T> std::fmt::Debug for DeviceBias<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceBias").field("plan", &self.plan.is_some()).field("terms", &self.terms).finish()
    }
}

/// Bias, positions, mask, sinks, gates and scales of one softmax call, on the CPU ([`Host`]) or on the device
/// ([`Device`](crate::Device)); [`HostInputs`] and [`DeviceInputs`] name both. The default is bottom-right aligned and has
/// nothing else.
///
/// | field | shape | meaning |
/// |---|---|---|
/// | `bias` | | any [`Bias`]; on the device [`DeviceBias`]: a plan in place of the softmax plan's own, and what terms read |
/// | `places` | | positions of queries and keys, and how many of them there are |
/// | `mask` | `[batch or 1, heads or 1, queries or 1, keys]` | added last; -inf masks |
/// | `sinks` | `[heads]` | a logit without a key, neither scaled nor biased: it takes its share of the sum |
/// | `gates` | `[batch, heads, queries]` | multiply the bias: WavLM's, `gate_a * (gate_b * const - 1) + 2`. Refused where there is no bias |
/// | `scales` | `[heads]` | multiply the spec's `scale`, head by head: cosine attention, see [`swin2_logit_scale`](crate::bias::swin2_logit_scale). On the device with a bias of terms, or none |
///
/// ```
/// use posenc::attend::Inputs;
/// use posenc::{Alibi, Bias, Places, Softmax};
/// let slopes = Alibi::new(2).slopes()?;
/// let inputs = Inputs { bias: Bias::Slopes(&slopes), ..Inputs::at(Places::counted(7, 0)) };
/// let mut p = [0.5f32; 2];
/// Softmax::causal(1.0).apply(&mut p, &posenc::Logits::bhqk(1, 2, 1, 1), &inputs)?;
/// assert_eq!(p, [1.0; 2]);
/// # Ok::<(), posenc::Error>(())
/// ```
pub struct Inputs<'a, T: 'a, M: Attended = Host> {
    /// any bias
    pub bias: M::Bias<'a, T>,
    /// positions of queries and keys
    pub places: Places<M::Slice<'a, i32>>,
    /// added last
    pub mask: Option<M::Mask<'a, T>>,
    /// logits without keys
    pub sinks: Option<M::Slice<'a, f32>>,
    /// multiply the bias
    pub gates: Option<M::Slice<'a, f32>>,
    /// multiply the spec's scale
    pub scales: Option<M::Slice<'a, f32>>,
}

/// [`Inputs`] on the CPU.
pub type HostInputs<'a, T> = Inputs<'a, T, Host>;
/// [`Inputs`] on the device.
#[cfg(feature = "cuda")]
pub type DeviceInputs<'a, T> = Inputs<'a, T, Device>;

impl<'a, T, M: Attended> Inputs<'a, T, M> {
    /// Positions, and nothing else.
    #[must_use]
    pub fn at(places: Places<M::Slice<'a, i32>>) -> Self {
        Self { bias: M::default_bias(), places, mask: None, sinks: None, gates: None, scales: None }
    }
}

impl<T, M: Attended> Default for Inputs<'_, T, M> {
    fn default() -> Self {
        Self::at(Places::bottom_right())
    }
}

impl<T, M: Attended> Clone for Inputs<'_, T, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T, M: Attended> Copy for Inputs<'_, T, M> {}

impl<T, M: Attended> std::fmt::Debug for Inputs<'_, T, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Inputs");
        debug.field("mask", &self.mask.is_some()).field("sinks", &self.sinks.map(M::len));
        debug.field("gates", &self.gates.map(M::len)).field("scales", &self.scales.map(M::len));
        debug.finish_non_exhaustive()
    }
}

impl<T: Scalar> Inputs<'_, T, Host> {
    /// Refuses what does not fit the logits.
    pub(super) fn check(&self, shape: &Logits, window: (i64, i64)) -> Result<()> {
        self.places.check(shape)?;
        self.bias.check(shape, &self.places, window)?;
        if let Some(gates) = self.gates {
            if matches!(self.bias, Bias::None) {
                return Err(Error::Value("gates multiply a bias, and there is none".into()));
            }
            let need = shape.rows()?;
            if gates.len() < need {
                return Err(Error::Length { name: "gates", got: gates.len(), need });
            }
        }
        if let Some((mask, mask_shape)) = &self.mask {
            check_mask(mask_shape, shape)?;
            mask_shape.check("mask", mask.len())?;
        }
        if let Some(sinks) = self.sinks {
            if sinks.len() != shape.heads {
                return Err(Error::Value(format!("there are {} sinks for {} heads", sinks.len(), shape.heads)));
            }
            if let Some(head) = sinks.iter().position(|sink| sink.is_nan() || *sink == f32::INFINITY) {
                return Err(Error::Value(format!("the sink of head {head} is {}, it must be below inf", sinks[head])));
            }
        }
        Ok(())
    }

    /// Refuses scales that do not fit the logits, or whose product with `scale` is not finite.
    pub(super) fn check_scales(&self, shape: &Logits, scale: f32) -> Result<()> {
        let Some(scales) = self.scales else { return Ok(()) };
        if scales.len() != shape.heads {
            return Err(Error::Value(format!("there are {} scales for {} heads", scales.len(), shape.heads)));
        }
        if let Some(head) = scales.iter().position(|own| !(own * scale).is_finite()) {
            return Err(Error::Value(format!(
                "the scale of head {head} is {} times {scale}, the product must be finite",
                scales[head]
            )));
        }
        Ok(())
    }

    /// The gate of a row.
    pub(super) fn gate(&self, shape: &Logits, [batch, head, query]: [usize; 3]) -> f64 {
        self.gates.map_or(1.0, |gates| f64::from(gates[(batch * shape.heads + head) * shape.queries + query]))
    }

    /// The sink of a head; -inf: it has none.
    pub(super) fn sink(&self, head: usize) -> f64 {
        self.sinks.map_or(f64::NEG_INFINITY, |sinks| f64::from(sinks[head]))
    }

    /// The mask of a row and the index of its first key.
    pub(super) fn mask_of(&self, [batch, head, query]: [usize; 3]) -> Option<(&[T], usize)> {
        let at = |size: usize, index: usize| if size == 1 { 0 } else { index };
        self.mask.map(|(mask, shape)| {
            (mask, shape.index(at(shape.batch, batch), at(shape.heads, head), at(shape.queries, query), 0))
        })
    }
}

/// Refuses a mask that does not broadcast to the logits.
pub(super) fn check_mask(mask: &Logits, shape: &Logits) -> Result<()> {
    let fits = |mask: usize, size: usize| mask == size || mask == 1;
    if !fits(mask.batch, shape.batch)
        || !fits(mask.heads, shape.heads)
        || !fits(mask.queries, shape.queries)
        || mask.keys != shape.keys
    {
        return Err(Error::Value(format!(
            "the mask is [{}, {}, {}, {}] and the logits [{}, {}, {}, {}]: each of the first three must be equal or 1, \
             and the keys equal",
            mask.batch, mask.heads, mask.queries, mask.keys, shape.batch, shape.heads, shape.queries, shape.keys
        )));
    }
    Ok(())
}
