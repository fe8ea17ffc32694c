//! An operation's results with the error that its documentation allows, and tensors of others compared with them.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use posenc::accuracy::Expected;

use crate::op::{Device, Inputs, Op, Out};
use crate::tensors::{Tensor, Tensors};

/// The results of an operation, each with its wanted values and the error allowed.
pub struct Reference(Vec<Out>);

impl Reference {
    /// Reads the operation and its inputs; without a file there are none.
    pub fn open(op: &Path, input: Option<&str>) -> Result<Self> {
        let inputs = inputs(&mut input.map(Tensors::open).transpose()?)?;
        let of = || format!("{} on {}", op.display(), input.unwrap_or("no input"));
        Ok(Self(Op::open(op)?.apply(&inputs, &Device::Cpu, true).with_context(of)?))
    }

    pub const fn of(results: Vec<Out>) -> Self {
        Self(results)
    }

    /// What a tensor of another engine should be: the result of one of its names, or, for a tensor that is `alone` in its file, the
    /// only result of its shape and type.
    pub fn expected(&self, file: &str, names: &[&str], tensor: &Tensor, alone: bool) -> Result<(&str, &Expected)> {
        let is_alike = |result: &&Out| result.tensor.shape == tensor.shape && result.tensor.dtype == tensor.dtype;
        let mut alike = self.0.iter().filter(is_alike);
        let result =
            match (names.iter().find_map(|name| self.0.iter().find(|result| result.name == *name)), &self.0[..]) {
                (Some(named), _) => named,
                (None, [only]) if alone => only,
                _ => match (alike.next(), alike.next()) {
                    (Some(one), None) if alone => one,
                    _ => {
                        let known: Vec<_> = self.0.iter().map(|result| result.name.as_str()).collect();
                        bail!("{file}: the operation gives no {:?}, only {}", names[0], known.join(", "))
                    }
                },
            };
        let (shape, wanted) = (&tensor.shape, &result.tensor.shape);
        ensure!(shape == wanted, "{file}: {} is {shape:?}, the operation gives {wanted:?}", result.name);
        // Rounding is part of the bound, so that the types must be the same.
        let (dtype, wanted) = (tensor.dtype.name(), result.tensor.dtype.name());
        ensure!(dtype == wanted, "{file}: {} is {dtype}, the operation gives {wanted}", result.name);
        let expected = result.expected.as_ref().with_context(|| format!("{} has no bound", result.name))?;
        Ok((&result.name, expected))
    }
}

/// Every tensor of a file, or none where there is no file.
pub fn inputs(file: &mut Option<Tensors>) -> Result<Inputs> {
    file.as_mut().map_or_else(|| Ok(Inputs::default()), Inputs::read)
}
