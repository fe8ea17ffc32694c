//! A vector is added to the token embedding, on the host.

use posenc::embed::{HostLookup, Tokens, order};
use posenc::{Error, Grid, Host, Learned, Resample, Scalar, Shape, Sinusoid};

use super::{Rows, at_least, put};
use crate::memory::Scope;
use crate::{
    Failure, POSENC_F32, POSENC_F64, PosencGridCall, PosencGridMaskedCall, PosencLearnedCall, PosencLookup,
    PosencNormGradCall, PosencOrderCall, PosencResampleCall, PosencRowsCall, PosencSinusoidCall, PosencTableGradCall,
    PosencTimestepCall, factor, switch, unknown,
};

/// A tensor of zeros like this one, its elements one after another.
fn zeros<T: Scalar>(tokens: &Tokens) -> Result<Vec<T>, Failure> {
    Ok(vec![T::from_f64(0.0); tokens.elements()?])
}

impl PosencSinusoidCall {
    pub(crate) fn write<T: Scalar>(&self, sinusoid: &Sinusoid, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let (x, tokens) = self.tokens.host_mut::<T>(&self.x, scope, "x")?;
        tokens.check_dim("x", sinusoid.dim)?;
        let positions = self.positions.get(scope)?;
        let mut values = zeros(&tokens)?;
        sinusoid.write(&mut values, &positions.resolve(1, tokens.batch, tokens.tokens)?)?;
        tokens.scatter(&values, x);
        Ok(())
    }

    pub(crate) fn add<T: Scalar>(&self, sinusoid: &Sinusoid, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let scale = factor("scale", self.scale)?;
        let (x, tokens) = self.tokens.host_mut::<T>(&self.x, scope, "x")?;
        Ok(sinusoid.add(x, &tokens, self.positions.get(scope)?, scale)?)
    }
}

impl PosencTimestepCall {
    pub(crate) fn write<T: Scalar>(&self, sinusoid: &Sinusoid, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let (out, tokens) = self.tokens.host_mut::<T>(&self.out, scope, "out")?;
        tokens.check_dim("out", sinusoid.dim)?;
        let mut values = zeros(&tokens)?;
        let times = tokens.batch * tokens.tokens;
        match self.t_element {
            POSENC_F32 => {
                let t: &[f32] = self.t.read(scope, "t")?;
                at_least("t", t.len(), times)?;
                sinusoid.write_times(&mut values, &t[..times])?;
            }
            POSENC_F64 => {
                let t: &[f64] = self.t.read(scope, "t")?;
                at_least("t", t.len(), times)?;
                sinusoid.write_times(&mut values, &t[..times])?;
            }
            other => return Err(unknown("t_element", other)),
        }
        tokens.scatter(&values, out);
        Ok(())
    }
}

impl PosencGridCall {
    pub(crate) fn write<T: Scalar>(&self, grid: &Grid, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let (x, tokens) = self.tokens.host_mut::<T>(&self.x, scope, "x")?;
        let one = Tokens::new(1, tokens.tokens, tokens.dim);
        let mut values = zeros(&one)?;
        grid.add(&mut values, &one, self.size(), 1.0)?;
        for batch in 0..tokens.batch {
            let at = tokens.index(batch, 0, 0);
            Tokens { batch: 1, ..tokens }.at(at).scatter(&values, x);
        }
        Ok(())
    }

    pub(crate) fn add<T: Scalar>(&self, grid: &Grid, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let scale = factor("scale", self.scale)?;
        let (x, tokens) = self.tokens.host_mut::<T>(&self.x, scope, "x")?;
        Ok(grid.add(x, &tokens, self.size(), scale)?)
    }
}

impl PosencGridMaskedCall {
    pub(crate) fn write<T: Scalar>(&self, grid: &Grid, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let counted = self.counted()?;
        let (out, tokens) = self.tokens.host_mut::<T>(&self.out, scope, "out")?;
        tokens.check_dim("out", grid.dim())?;
        let size = self.size();
        if tokens.tokens != size.tokens()? {
            let text = format!("out has {} tokens, the images have {} x {}", tokens.tokens, size.rows, size.columns);
            return Err(Error::Value(text).into());
        }
        let mut values = zeros(&tokens)?;
        grid.write_masked(&mut values, self.mask.read(scope, "mask")?, tokens.batch, size, counted)?;
        tokens.scatter(&values, out);
        Ok(())
    }
}

/// The ids of `all` tokens, where there are more.
fn of_tokens<V>(values: &[V], all: usize) -> &[V] {
    values.get(..all).unwrap_or(values)
}

impl PosencLookup {
    fn host<'a>(&self, batch: usize, tokens: usize, scope: &Scope<'a, Host>) -> Result<HostLookup<'a>, Failure> {
        let all = batch.saturating_mul(tokens);
        let mut lookup = self.get(scope)?;
        lookup.ids = lookup.ids.map(|ids| of_tokens(ids, all));
        lookup.types = lookup.types.map(|types| of_tokens(types, all));
        lookup.mask = lookup.mask.map(|mask| of_tokens(mask, all));
        Ok(lookup)
    }
}

impl PosencLearnedCall {
    pub(crate) fn gather<T: Scalar>(&self, learned: &Learned, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let (x, tokens) = self.tokens.host_mut::<T>(&self.x, scope, "x")?;
        let lookup = self.lookup.host(tokens.batch, tokens.tokens, scope)?;
        Ok(learned.gather(x, &tokens, &self.tables.get(scope)?, &lookup)?)
    }
}

impl PosencRowsCall {
    /// The same for every element type.
    pub(crate) fn write<T: Scalar>(&self, learned: &Learned, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let (batch, tokens) = (self.batch as usize, self.tokens as usize);
        let values = learned.position_rows(batch, tokens, &self.lookup.host(batch, tokens, scope)?)?;
        let rows = self.rows.lend_plain::<i64>(scope, "rows")?;
        at_least("rows", rows.len(), values.len())?;
        rows[..values.len()].copy_from_slice(&values);
        Ok(())
    }
}

impl PosencNormGradCall {
    pub(crate) fn grad<T: Scalar>(&self, learned: &Learned, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let accumulate = switch("accumulate", self.accumulate)?;
        let (sum, sum_tokens) = self.sum_tokens.host_mut::<T>(&self.sum, scope, "sum")?;
        let (grad, tokens) = self.grad_tokens.host::<T>(&self.grad, scope, "grad")?;
        tokens.check_same("grad", &sum_tokens, "sum")?;
        tokens.check_dim("grad", learned.dim)?;
        let x = match self.x.data {
            0 => Vec::new(),
            _ => {
                let (x, x_tokens) = self.x_tokens.host::<T>(&self.x, scope, "x")?;
                x_tokens.check_same("x", &sum_tokens, "sum")?;
                x_tokens.gathered(x)
            }
        };
        let (batch, count) = (tokens.batch, tokens.tokens);
        let lookup = self.lookup.host(batch, count, scope)?;
        let gradients = learned.grad((batch, count), &x, &tokens.gathered(grad), &self.tables.get(scope)?, &lookup)?;
        let mut outs = [
            (self.gain.lend_some::<T>(scope, "gain", learned.dim)?, gradients.gain, "gain"),
            (self.bias.lend_some::<T>(scope, "bias", learned.dim)?, gradients.bias, "bias"),
        ];
        for (out, values, name) in &outs {
            if out.is_some() && values.is_empty() {
                return Err(Error::Value(format!("there is a {name} and the spec has no norm that uses it")).into());
            }
        }
        for (out, values, _) in &mut outs {
            let Some(out) = out else { continue };
            out.iter_mut().zip(values).for_each(|(place, value)| put(place, *value, accumulate));
        }
        let sums: Vec<T> = gradients.sum.into_iter().map(T::from_f64).collect();
        sum_tokens.scatter(&sums, sum);
        Ok(())
    }
}

impl PosencTableGradCall {
    pub(crate) fn counted<T: Scalar>(&self, learned: &Learned, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let tokens = self.tokens.shape();
        let (first, count) = (self.first as usize, tokens.tokens);
        if first.checked_add(count).is_none_or(|end| end > self.rows as usize) {
            let last = first.saturating_add(count).saturating_sub(1);
            let text = format!("the last token reads row {last}, the table has {} rows", self.rows);
            return Err(Error::Value(text).into());
        }
        self.sums::<T>(learned, (0..tokens.batch).flat_map(|_| first..first + count).map(Some), scope)
    }

    pub(crate) fn by_ids<T: Scalar>(&self, learned: &Learned, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let all = (self.tokens.batch as usize).saturating_mul(self.tokens.tokens as usize);
        let ids = self.ids.get(scope, "ids")?;
        at_least("ids", ids.len(), all)?;
        // The order is the device's way to the sums; ids outside the table have no gradient.
        let inside = |&id: &i64| usize::try_from(id).ok().filter(|&row| row < self.rows as usize);
        self.sums::<T>(learned, ids[..all].iter().map(inside), scope)
    }

    /// The sum of the gradients of each row's tokens.
    fn sums<T: Scalar>(
        &self,
        learned: &Learned,
        rows: impl Iterator<Item = Option<usize>>,
        scope: &Scope<'_, Host>,
    ) -> Result<(), Failure> {
        let (how, dim) = (self.how()?, learned.dim);
        let table = self.table.lend::<T>(scope, "table")?;
        let (grad, tokens) = self.tokens.host::<T>(&self.grad, scope, "grad")?;
        tokens.check_dim("grad", dim)?;
        at_least("table", table.len(), how.rows.saturating_mul(dim))?;
        let skipped = how.skipped.and_then(|skipped| usize::try_from(skipped).ok());
        let mut of_row = std::collections::BTreeMap::new();
        for (row, at) in rows.zip(tokens.starts()) {
            let Some(row) = row.filter(|&row| Some(row) != skipped) else { continue };
            let sums = of_row.entry(row).or_insert_with(|| vec![0.0; dim]);
            sums.iter_mut().zip(&grad[at..at + dim]).for_each(|(sum, grad)| *sum += grad.to_f64());
        }
        for (row, sums) in of_row {
            let places = table[row * dim..(row + 1) * dim].iter_mut();
            places.zip(sums).for_each(|(place, sum)| put(place, sum * how.scale, how.accumulate));
        }
        Ok(())
    }
}

impl PosencOrderCall {
    /// The same for every element type.
    pub(crate) fn write<T: Scalar>(&self, _: &Learned, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let count = self.count as usize;
        let ids = self.ids.get(scope, "ids")?;
        at_least("ids", ids.len(), count)?;
        let out = self.order.lend_plain::<u32>(scope, "order")?;
        at_least("order", out.len(), count)?;
        out[..count].copy_from_slice(&order(&ids[..count])?);
        Ok(())
    }
}

impl PosencResampleCall {
    /// Refuses tensors that are not one sequence of as many tokens as the spec says, or of different channels.
    fn check(&self, resample: &Resample, table: &Tokens, resampled: &Tokens) -> Result<(), Failure> {
        for (name, tokens, grid) in [("table", table, resample.from), ("resampled", resampled, resample.to)] {
            let (rows, Tokens { batch, tokens, .. }) = (resample.prefix.saturating_add(grid.tokens()?), *tokens);
            if batch != 1 || tokens != rows {
                let text = format!("{name} has {batch} sequences of {tokens} tokens, it must have 1 of {rows}");
                return Err(Error::Value(text).into());
            }
        }
        if table.dim != resampled.dim {
            let (from, to) = (table.dim, resampled.dim);
            return Err(Error::Value(format!("table has {from} channels and out {to}, they must be equal")).into());
        }
        Ok(())
    }

    pub(crate) fn write<T: Scalar>(&self, resample: &Resample, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let (out, out_tokens) = self.resampled_tokens.host_mut::<T>(&self.resampled, scope, "resampled")?;
        let (table, tokens) = self.table_tokens.host::<T>(&self.table, scope, "table")?;
        self.check(resample, &tokens, &out_tokens)?;
        let mut values = zeros(&out_tokens)?;
        resample.write(&mut values, &tokens.gathered(table), tokens.dim)?;
        out_tokens.scatter(&values, out);
        Ok(())
    }

    pub(crate) fn grad<T: Scalar>(&self, resample: &Resample, scope: &Scope<'_, Host>) -> Result<(), Failure> {
        let accumulate = switch("accumulate", self.accumulate)?;
        let (table, tokens) = self.table_tokens.host_mut::<T>(&self.table, scope, "table")?;
        let (grad, grad_tokens) = self.resampled_tokens.host::<T>(&self.resampled, scope, "resampled")?;
        self.check(resample, &tokens, &grad_tokens)?;
        let grad = grad_tokens.gathered(grad);
        if !accumulate {
            let mut values = zeros(&tokens)?;
            resample.write_grad(&mut values, &grad, tokens.dim)?;
            tokens.scatter(&values, table);
            return Ok(());
        }
        // Rounded once, with what is there.
        let grad: Vec<f32> = grad.iter().map(|grad| grad.to_f64() as f32).collect();
        let mut values = vec![0.0f32; tokens.elements()?];
        resample.write_grad(&mut values, &grad, tokens.dim)?;
        for (at, values) in tokens.starts().zip(values.chunks_exact(tokens.dim)) {
            let places = table[at..at + tokens.dim].iter_mut();
            places.zip(values).for_each(|(place, value)| put(place, f64::from(*value), true));
        }
        Ok(())
    }
}
