//! Bias, norm, rotation and a cache, on the host.

use posenc::rotate::{CacheRows, Code8, HostCache, HostScale, HostStored, Qkv};
use posenc::{Error, Host, Positions, Prologue, Scalar, Shape};

use crate::memory::{HostHeads, Scope};
use crate::{
    Failure, POSENC_SCALE_DYNAMIC, POSENC_SCALE_GIVEN, POSENC_SCALE_INLINE, PosencPrologueCall, PosencStored, To,
    no_codes, unknown,
};

/// One of queries, keys and values, as a host call holds it.
struct Held<'a> {
    which: Qkv,
    to: To,
    x: HostHeads,
    out: Option<HostHeads>,
    cache: Option<Kept<'a>>,
}

/// What is kept of it.
struct Kept<'a> {
    x: HostHeads,
    code: Option<(Code8, Scale<'a>)>,
    rows: CacheRows<&'a [i64]>,
}

enum Scale<'a> {
    Given(&'a [f32]),
    Dynamic(HostHeads),
    Inline,
}

impl PosencStored {
    fn held<'a, T: Scalar>(
        &self,
        scope: &Scope<'a, Host>,
        [name, scales]: [&'static str; 2],
        rows: CacheRows<&'a [i64]>,
    ) -> Result<Kept<'a>, Failure> {
        let heads = self.heads.shape();
        let Some(code) = self.code()? else {
            return Ok(Kept { x: scope.heads::<T>(name, &self.x, heads, true)?, code: None, rows });
        };
        let scale = match self.scale {
            POSENC_SCALE_GIVEN => Scale::Given(self.scales.read(scope, scales)?),
            POSENC_SCALE_DYNAMIC => {
                Scale::Dynamic(scope.heads::<f32>(scales, &self.scales, self.scale_heads.shape(), true)?)
            }
            POSENC_SCALE_INLINE => Scale::Inline,
            other => return Err(unknown("scale", other)),
        };
        Ok(Kept { x: scope.heads::<u8>(name, &self.x, heads, true)?, code: Some((code, scale)), rows })
    }
}

impl Kept<'_> {
    /// The cache, to be written.
    ///
    /// # Safety
    /// No other slice of it is there.
    unsafe fn cache<T: Scalar>(&self) -> HostCache<'_, T> {
        // SAFETY: as the caller promises; elements, codes and scales were held as what they are, to be written.
        let x = unsafe {
            match &self.code {
                None => HostStored::Same(self.x.slice_mut::<T>()),
                Some((code, scale)) => HostStored::Codes {
                    x: self.x.slice_mut::<u8>(),
                    code: *code,
                    scale: match scale {
                        Scale::Given(scales) => HostScale::Given(scales),
                        Scale::Dynamic(scales) => HostScale::Dynamic(scales.slice_mut::<f32>(), scales.heads),
                        Scale::Inline => HostScale::Inline,
                    },
                },
            }
        };
        HostCache { x, shape: self.x.heads, rows: self.rows }
    }
}

impl PosencPrologueCall {
    /// What is kept of one of queries, keys and values.
    fn kept<'a, T: Scalar>(
        &self,
        which: Qkv,
        rows: CacheRows<&'a [i64]>,
        scope: &Scope<'a, Host>,
    ) -> Result<Option<Kept<'a>>, Failure> {
        let (of, names, rows) = match which {
            Qkv::Query => {
                let rows = CacheRows::Rows(Positions::counted());
                (&self.q_codes, ["the codes of queries", "the scales of queries"], rows)
            }
            Qkv::Key => (&self.cache.k, ["the cache of keys", "the scales of keys"], rows),
            Qkv::Value => (&self.cache.v, ["the cache of values", "the scales of values"], rows),
        };
        if of.x.data == 0 || which == Qkv::Value && self.cache.k.x.data == 0 {
            return Ok(None);
        }
        if which == Qkv::Query && of.code()?.is_none() {
            return Err(no_codes());
        }
        of.held::<T>(scope, names, rows).map(Some)
    }

    pub(crate) fn apply<T: Scalar>(&self, spec: &Prologue, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let rows = if self.cache.k.x.data == 0 { CacheRows::Slots(&[][..]) } else { self.cache.rows::<Host>(scope)? };
        let mut held = Vec::new();
        let parts = [
            (Qkv::Query, &self.q, ["q", "q_out"]),
            (Qkv::Key, &self.k, ["k", "k_out"]),
            (Qkv::Value, &self.v, ["v", "v_out"]),
        ];
        let mut sizes = None;
        let mut in_place = false;
        for (which, of, names) in parts {
            let cache = self.kept::<T>(which, rows, scope)?;
            let Some((to, beside)) = of.to(names[0])? else {
                if cache.is_some() {
                    return Err(Error::Value(format!("there is a cache of {0} and no {0}", names[0])).into());
                }
                continue;
            };
            if beside && !in_place {
                let text = format!("{} lies in the buffer of q, which then is changed in place", names[0]);
                return Err(Error::Value(text).into());
            }
            in_place |= which == Qkv::Query && to == To::Place;
            let x = if beside { &self.q.x } else { &of.x };
            let x = scope.heads::<T>(names[0], x, of.heads.shape(), to == To::Place)?;
            let out = match to {
                To::Out => Some(scope.heads::<T>(names[1], &of.out, of.out_heads.shape(), true)?),
                _ => None,
            };
            if to == To::Cache && cache.is_none() {
                return Err(Error::Value(format!("{} is read and goes nowhere", names[0])).into());
            }
            let own = (names[0], x.heads.batch, x.heads.tokens);
            let (first, batch, tokens) = *sizes.get_or_insert(own);
            for (what, first_has, has) in [("sequences", batch, own.1), ("tokens", tokens, own.2)] {
                if first_has != has {
                    let text = format!("{first} has {first_has} {what} and {} {has}, they must be equal", own.0);
                    return Err(Error::Value(text).into());
                }
            }
            held.push(Held { which, to, x, out, cache });
        }
        if held.is_empty() {
            return Err(Error::Value("there are no queries, keys or values".into()).into());
        }
        let vectors = [
            self.q.vectors::<Host, T>(scope, ["q_weight", "q_bias"])?,
            self.k.vectors::<Host, T>(scope, ["k_weight", "k_bias"])?,
            self.v.vectors::<Host, T>(scope, ["v_weight", "v_bias"])?,
        ];
        let positions = self.positions.get(scope)?;
        for Held { which, x, out, cache, .. } in &held {
            // SAFETY: no other slice of the cache is there.
            let cache = cache.as_ref().map(|cache| unsafe { cache.cache::<T>() });
            spec.check_call(*which, &x.heads, vectors[*which as usize], positions, cache.as_ref())?;
            if let Some(out) = out {
                x.heads.check_same("x", &out.heads, "out")?;
            }
        }
        for Held { which, to, x, out, cache } in &held {
            let (which, vectors) = (*which, vectors[*which as usize]);
            // SAFETY: the slices of one tensor are gone before those of the next are made; their elements are apart, as
            // `Scope::heads` has seen.
            unsafe {
                let cache = cache.as_ref().map(|cache| cache.cache::<T>());
                if *to == To::Place {
                    spec.apply(which, x.slice_mut::<T>(), &x.heads, vectors, positions, cache)?;
                } else {
                    let out = out.as_ref().map(|out| (out.slice_mut::<T>(), &out.heads));
                    spec.apply_to(which, (x.slice::<T>(), &x.heads), out, vectors, positions, cache)?;
                }
            }
        }
        Ok(())
    }
}
