//! Queries and keys are rotated, on the host.

use posenc::position::fixed;
use posenc::rotate::{Angles, Axes, Mixed, RopeGrad, Side, XPos};
use posenc::{Direction, Error, Gpu, Heads, Host, Rope, RopePlan, Scalar, Shape};

use super::{at_least, put};
use crate::header::Coded;
use crate::memory::{HostHeads, Scope};
use crate::{
    Failure, KeysOf, POSENC_F32, POSENC_F64, POSENC_OUT_OF_RANGE_CLAMP, POSENC_OUT_OF_RANGE_NAN, PosencFixedCall,
    PosencFrequencyGradCall, PosencOperand, PosencPositionGradCall, PosencRopeCall, PosencSetFrequenciesCall,
    PosencTable, PosencTensorGrad, Spec, switch, unknown,
};

/// RoPE or xPos.
#[derive(Clone)]
pub(crate) enum HostRope {
    Rope(Rope),
    XPos(XPos),
}

impl Spec for HostRope {
    fn checked(&self) -> Result<(), Failure> {
        Ok(match self {
            Self::Rope(rope) => rope.check(),
            Self::XPos(xpos) => xpos.check(),
        }?)
    }
}

/// A tensor that a host call changes in place, or reads and writes elsewhere.
#[derive(Clone, Copy)]
struct HostUpdate {
    x: HostHeads,
    /// none: in place
    out: Option<HostHeads>,
}

impl HostRope {
    pub(crate) fn plan<T: Scalar>(&self, gpu: &Gpu) -> posenc::Result<RopePlan<T>> {
        match self {
            Self::Rope(rope) => RopePlan::new(gpu, rope),
            Self::XPos(xpos) => RopePlan::xpos(gpu, xpos),
        }
    }

    fn rope(&self) -> &Rope {
        match self {
            Self::Rope(rope) => rope,
            Self::XPos(xpos) => &xpos.rope,
        }
    }
}

impl HostRope {
    pub(crate) fn set_frequencies(
        &mut self,
        call: &PosencSetFrequenciesCall,
        scope: &Scope<'_, Host>,
    ) -> Result<(), Failure> {
        let Self::Rope(Rope { angles: Angles::Mixed(mixed), .. }) = self else {
            return Err(Error::Value("the plan's angles are not mixed, it has no learned frequencies".into()).into());
        };
        let frequencies: &[f32] = call.frequencies.read(scope, "frequencies")?;
        let need = mixed.frequencies.len();
        at_least("frequencies", frequencies.len(), need)?;
        let own = |frequency: &f32| f64::from(*frequency);
        let are_small = |frequency: &f64| frequency.abs() < (1u64 << 40) as f64;
        let new: Vec<f64> = frequencies[..need].iter().map(own).collect();
        if call.flag.data != 0 && !new.iter().all(are_small) {
            let flag = call.flag.lend_plain::<u32>(scope, "flag")?;
            at_least("flag", flag.len(), 1)?;
            flag[0] = 1;
        }
        mixed.frequencies = new.into_iter().map(|own| if are_small(&own) { own } else { 0.0 }).collect();
        Ok(())
    }
}

/// The rope of gradients.
#[derive(Clone)]
pub(crate) struct HostRopeGrad(pub(crate) Rope);

impl Spec for HostRopeGrad {
    fn checked(&self) -> Result<(), Failure> {
        Ok(self.0.check()?)
    }
}

/// Tensors of a call, with their gradients.
type Tensors<'a, T> = Vec<RopeGrad<(&'a [T], Heads)>>;

impl PosencTensorGrad {
    /// Queries, and keys if there are any.
    fn host<'a, T: Scalar>(q: &Self, k: &Self, scope: &Scope<'a, Host>) -> Result<Tensors<'a, T>, Failure> {
        let mut tensors = Vec::new();
        for (of, [name, grad_name], there) in [(q, ["q", "q_grad"], true), (k, ["k", "k_grad"], k.x.data != 0)] {
            if there {
                let x = of.heads.host::<T>(&of.x, scope, name)?;
                tensors.push(RopeGrad { x, grad: of.grad_heads.host::<T>(&of.grad, scope, grad_name)? });
            }
        }
        if let [q, k] = &tensors[..] {
            q.x.1.check_pair(&k.x.1)?;
        }
        Ok(tensors)
    }
}

/// Rounds gradients into their place.
fn put_all(out: &mut [f32], values: Vec<f64>) -> Result<(), Failure> {
    at_least("out", out.len(), values.len())?;
    out.iter_mut().zip(values).for_each(|(place, value)| put(place, value, false));
    Ok(())
}

impl PosencFrequencyGradCall {
    pub(crate) fn frequencies<T: Scalar>(&self, rope: &HostRopeGrad, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let tensors = PosencTensorGrad::host::<T>(&self.q, &self.k, scope)?;
        let expected = rope.0.frequency_grad(&tensors, self.positions.get(scope)?)?;
        put_all(self.out.lend::<f32>(scope, "out")?, expected.want)
    }
}

impl PosencPositionGradCall {
    pub(crate) fn positions<T: Scalar>(&self, rope: &HostRopeGrad, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let tensors = PosencTensorGrad::host::<T>(&self.q, &self.k, scope)?;
        let learned: Option<&[f32]> = self.frequencies.read_some(scope, "frequencies")?;
        let rope = match learned {
            None => rope.0.clone(),
            Some(learned) => {
                let axes = rope.0.position_axes();
                let heads = if let Angles::Mixed(mixed) = &rope.0.angles { mixed.heads } else { 1 };
                let need = axes * heads * rope.0.pairs();
                at_least("frequencies", learned.len(), need)?;
                let frequencies = learned[..need].iter().map(|&frequency| f64::from(frequency)).collect();
                Rope { angles: Angles::Mixed(Mixed { axes, heads, frequencies }), axes: Axes::One, ..rope.0.clone() }
            }
        };
        put_all(self.out.lend::<f32>(scope, "out")?, rope.position_grad(&tensors)?.want)
    }
}

impl PosencFixedCall {
    pub(crate) fn write(&self, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let units = match self.element {
            POSENC_F32 => fixed::<f32>(self.positions.read(scope, "positions")?, self.bits),
            POSENC_F64 => fixed::<f64>(self.positions.read(scope, "positions")?, self.bits),
            other => return Err(unknown("element", other)),
        }?;
        let out = self.out.lend_plain::<i64>(scope, "out")?;
        at_least("out", out.len(), units.len())?;
        out[..units.len()].copy_from_slice(&units);
        Ok(())
    }
}

impl PosencOperand {
    fn host<T: Scalar>(
        &self,
        scope: &Scope<'_, Host>,
        [name, out_name]: [&'static str; 2],
    ) -> Result<HostUpdate, Failure> {
        let (heads, out_heads) = (self.heads.shape(), self.out_heads.shape());
        if self.out.data == 0 || (self.out.data == self.x.data && out_heads == heads) {
            return Ok(HostUpdate { x: scope.heads::<T>(name, &self.x, heads, true)?, out: None });
        }
        let x = scope.heads::<T>(name, &self.x, heads, false)?;
        heads.check_same(name, &out_heads, out_name)?;
        Ok(HostUpdate { x, out: Some(scope.heads::<T>(out_name, &self.out, out_heads, true)?) })
    }
}

/// Cosines and sines of the caller, in double.
struct HostTable {
    cos: Vec<f64>,
    sin: Vec<f64>,
    rows: usize,
    nan: bool,
}

impl PosencTable {
    fn host<T: Scalar>(&self, pairs: usize, scope: &Scope<'_, Host>) -> Result<HostTable, Failure> {
        fn values<'a, V: Scalar>(
            table: &PosencTable,
            scope: &Scope<'a, Host>,
        ) -> Result<[Option<Vec<f64>>; 2], Failure> {
            let wide = |values: &[V]| values.iter().map(|value| value.to_f64()).collect();
            let (cos, sin) = (table.cos.read(scope, "cos")?, table.sin.read_some(scope, "sin")?);
            Ok([Some(wide(cos)), sin.map(wide)])
        }
        let [cos, sin] = match self.own::<T>()? {
            true => values::<T>(self, scope),
            false => values::<f32>(self, scope),
        }?;
        let (cos, rows, stride) = (cos.unwrap_or_default(), self.rows as usize, self.stride as usize);
        let row = if sin.is_some() { pairs } else { 2 * pairs };
        if rows == 0 || stride < row {
            let text =
                format!("the table has {rows} rows {stride} elements apart, it needs 1 or more rows of at least {row}");
            return Err(Error::Value(text).into());
        }
        let need = (rows - 1).saturating_mul(stride).saturating_add(row);
        at_least("cos", cos.len(), need)?;
        if let Some(sin) = &sin {
            at_least("sin", sin.len(), need)?;
        }
        let of = |values: &[f64], first: usize| {
            (0..rows).flat_map(|r| values[r * stride + first..][..pairs].iter().copied()).collect()
        };
        let nan = match self.out_of_range {
            POSENC_OUT_OF_RANGE_CLAMP => false,
            POSENC_OUT_OF_RANGE_NAN => true,
            other => return Err(unknown("out_of_range", other)),
        };
        Ok(HostTable { sin: sin.map_or_else(|| of(&cos, pairs), |sin| of(&sin, 0)), cos: of(&cos, 0), rows, nan })
    }
}

/// Every head of a tensor.
fn each(heads: &Heads) -> impl Iterator<Item = [usize; 3]> + use<> {
    let Heads { batch, tokens, heads, .. } = *heads;
    (0..if tokens == 0 { 0 } else { batch })
        .flat_map(move |b| (0..tokens).flat_map(move |t| (0..heads).map(move |h| [b, t, h])))
}

/// Copies a tensor to the places of another.
fn copied<T: Scalar>(x: &[T], heads: &Heads, out: &mut [T], out_heads: &Heads) {
    for [b, t, h] in each(heads) {
        let (from, to) = (heads.index(b, t, h, 0), out_heads.index(b, t, h, 0));
        out[to..to + heads.dim].copy_from_slice(&x[from..from + heads.dim]);
    }
}

impl HostUpdate {
    /// Where the result goes.
    fn written(&self) -> HostHeads {
        self.out.unwrap_or(self.x)
    }

    /// The elements that are written, and in a copy first those that are read.
    ///
    /// # Safety
    /// They are `T`, and no other slice of the call is there.
    unsafe fn in_place<'a, T: Scalar>(self) -> (&'a mut [T], Heads) {
        let written = self.written();
        // SAFETY: as the caller promises; both are apart, as `Scope::heads` has seen.
        let out = unsafe { written.slice_mut::<T>() };
        if self.out.is_some() {
            // SAFETY: as above.
            copied(unsafe { self.x.slice() }, &self.x.heads, out, &written.heads);
        }
        (out, written.heads)
    }
}

impl PosencRopeCall {
    pub(crate) fn rotate<T: Scalar>(&self, spec: &HostRope, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let wrong = |text: &str| Err(Error::Value(text.into()).into());
        let (rope, side) = (spec.rope(), Side::of("xpos", self.xpos)?);
        let by_table = self.table.cos.data != 0;
        match spec {
            HostRope::Rope(_) if side == Side::Key => {
                return wrong("the rotation is of xPos's Key, the plan is not made of an XPos");
            }
            HostRope::XPos(_) if by_table => {
                return wrong("the rotation has a table, which xPos's factors do not go with");
            }
            _ => {}
        }
        let direction = if switch("inverse", self.inverse)? { Direction::Inverse } else { Direction::Forward };
        let names = if side == Side::Key { ["k", "k_out"] } else { ["q", "q_out"] };
        let q = self.q.host::<T>(scope, names)?;
        let k = match self.keys_of()? {
            KeysOf::None => None,
            _ if side == Side::Key => return wrong("the first tensor is keys, there are no others beside it"),
            KeysOf::Apart => Some(self.k.host::<T>(scope, ["k", "k_out"])?),
            KeysOf::Beside if q.out.is_some() => {
                return wrong("k lies in the buffer of q, which then is rotated in place");
            }
            KeysOf::Beside => {
                Some(HostUpdate { x: scope.heads::<T>("k", &self.q.x, self.k.heads.shape(), true)?, out: None })
            }
        };
        let shape = q.x.heads;
        if let Some(k) = &k {
            shape.check_pair(&k.x.heads)?;
        }
        let axes = rope.position_axes();
        let positions = self.positions.get(scope)?;
        let positions = positions.resolve(axes, shape.batch, shape.tokens)?;
        let table = if by_table { Some(self.table.host::<T>(rope.pairs(), scope)?) } else { None };
        let tensors = [Some((q, side)), k.map(|k| (k, Side::Key))];
        // SAFETY: each tensor's slices are gone before the next one's are made; their elements are apart, as `Scope::heads` has
        // seen.
        let turn = |(x, side): (HostUpdate, Side)| unsafe {
            match (&table, spec, x.out) {
                (Some(table), ..) => {
                    let expected = {
                        let (from, heads) = (x.x.slice::<T>(), &x.x.heads);
                        let tables = (&table.cos[..], &table.sin[..]);
                        rope.expect_by_table(from, heads, &positions[..], direction, tables)?
                    };
                    let (out, out_heads) = (x.written().slice_mut::<T>(), x.written().heads);
                    for [b, t, h] in each(&x.x.heads) {
                        let (from, to) = (x.x.heads.index(b, t, h, 0), out_heads.index(b, t, h, 0));
                        let values = expected.want[from..from + shape.dim].iter();
                        out[to..to + shape.dim]
                            .iter_mut()
                            .zip(values)
                            .for_each(|(place, want)| put(place, *want, false));
                        if table.nan && outside(&positions, table.rows, &shape, [b, t]) {
                            out[to + rope.first_channel(shape.dim)..][..rope.rotary].fill(T::from_f64(f64::NAN));
                        }
                    }
                    Ok(())
                }
                (None, HostRope::Rope(rope), Some(out)) => {
                    let to = (out.slice_mut::<T>(), &out.heads);
                    rope.rotate_to((x.x.slice(), &x.x.heads), to, &positions[..], direction)
                }
                (None, HostRope::Rope(rope), None) => {
                    rope.rotate(x.x.slice_mut::<T>(), &x.x.heads, &positions[..], direction)
                }
                (None, HostRope::XPos(xpos), _) => {
                    rope.check_head(shape.dim)?;
                    let (out, heads) = x.in_place::<T>();
                    xpos.rotate(out, &heads, &positions, side, direction)
                }
            }
        };
        let flag = match &table {
            Some(table) if table.nan && self.table.flag.data != 0 => {
                let flag = self.table.flag.lend_plain::<u32>(scope, "flag")?;
                at_least("flag", flag.len(), 1)?;
                Some((flag, table.rows))
            }
            _ => None,
        };
        for tensor in tensors.into_iter().flatten() {
            turn(tensor)?;
        }
        if let Some((flag, rows)) = flag
            && (0..shape.batch * shape.tokens).any(|at| outside(&positions, rows, &shape, [0, at]))
        {
            flag[0] = 1;
        }
        Ok(())
    }
}

/// Whether a token's position on some axis has no row.
fn outside(positions: &[i64], rows: usize, shape: &Heads, [batch, token]: [usize; 2]) -> bool {
    let all = (shape.batch * shape.tokens).max(1);
    let at = batch * shape.tokens + token;
    positions.chunks_exact(all).any(|axis| usize::try_from(axis[at]).map_or(true, |row| row >= rows))
}
