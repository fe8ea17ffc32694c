//! Bias, norm, rotation and a cache, on the host.

use posenc::rotate::{CacheRows, HostCache, Qkv};
use posenc::{Error, Host, Prologue, Scalar};

use crate::memory::{HostHeads, Scope};
use crate::{Failure, PosencPrologueCall, To};

/// One of queries, keys and values, as a host call holds it.
struct Held {
    which: Qkv,
    to: To,
    x: HostHeads,
    out: Option<HostHeads>,
    cache: Option<HostHeads>,
}

impl PosencPrologueCall {
    pub(crate) fn apply<T: Scalar>(&self, spec: &Prologue, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let mut held = Vec::new();
        let parts = [
            (Qkv::Query, &self.q, ["q", "q_out"], None),
            (Qkv::Key, &self.k, ["k", "k_out"], Some((&self.cache.k, &self.cache.k_heads, "the cache of keys"))),
            (Qkv::Value, &self.v, ["v", "v_out"], Some((&self.cache.v, &self.cache.v_heads, "the cache of values"))),
        ];
        let mut sizes = None;
        let mut in_place = false;
        for (which, of, names, cache) in parts {
            let Some((to, beside)) = of.to(names[0])? else {
                if cache.is_some_and(|(x, ..)| x.data != 0) {
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
            let cache = match cache {
                Some((x, heads, name)) if x.data != 0 => Some(scope.heads::<T>(name, x, heads.shape(), true)?),
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
        let rows = if self.cache.k.data == 0 { CacheRows::Slots(&[][..]) } else { self.cache.rows(scope)? };
        for held in &held {
            let cache = held.cache.map(|cache| (cache.heads, rows));
            spec.check_call(held.which, &held.x.heads, vectors[held.which as usize], positions, cache)?;
            if let Some(out) = held.out {
                posenc::Shape::check_same(&held.x.heads, "x", &out.heads, "out")?;
            }
        }
        for Held { which, to, x, out, cache } in held {
            let vectors = vectors[which as usize];
            // SAFETY: the slices of one tensor are gone before those of the next are made; their elements are apart, as
            // `Scope::heads` has seen.
            unsafe {
                let cache = cache.map(|cache| HostCache { x: cache.slice_mut::<T>(), shape: cache.heads, rows });
                if to == To::Place {
                    spec.apply(which, x.slice_mut::<T>(), &x.heads, vectors, positions, cache)?;
                } else {
                    let out_heads = out.map(|out| out.heads);
                    let out = out.map(|out| out.slice_mut::<T>()).zip(out_heads.as_ref());
                    spec.apply_to(which, (x.slice::<T>(), &x.heads), out, vectors, positions, cache)?;
                }
            }
        }
        Ok(())
    }
}
