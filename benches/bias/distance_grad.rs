//! Gradients of a distance bias's parameters: T5's table, ALiBi's slopes, KERPLE's numbers, a row.

use anyhow::Result;
use cudarc::driver::CudaSlice;
use half::bf16;
use posenc::bias::{DistanceGrad, DistanceGradPlan, Kerple, KerpleKind, Slopes};
use posenc::{Gpu, Logits, Places, Scalar, T5Bias};

use crate::support::{Case, Operation, compare, values};

/// Whose parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Of {
    T5,
    Slopes,
    Kerple,
    Row,
}

/// Every case.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for keys in [128, 512, 2048, 4096] {
        cases.push(case::<bf16>(Of::T5, "t5-large", 16, keys, keys));
    }
    cases.push(case::<f32>(Of::T5, "t5-large", 16, 2048, 2048));
    for (of, model, heads) in [(Of::Slopes, "bloom-7b1", 32), (Of::Kerple, "kerple-160m", 12), (Of::Row, "row", 16)] {
        for keys in [128, 512, 2048] {
            cases.push(case::<bf16>(of, model, heads, keys, keys));
        }
    }
    // Cost against keys.
    for of in [Of::T5, Of::Row] {
        for keys in (10..=17).map(|n| 1 << n) {
            let name = format!("DistanceGrad/{of:?}/keys/bf16/{keys}");
            cases.push(Case { name, ..case::<bf16>(of, "few", 4, 16, keys) });
        }
    }
    cases
}

fn case<T: Scalar>(of: Of, model: &str, heads: usize, queries: usize, keys: usize) -> Case {
    let elements = (heads * queries * keys) as u64;
    let name = format!("DistanceGrad/{of:?}/{model}/{}/{queries}x{keys}", T::NAME);
    let make = move |gpu: &Gpu, sets: usize| -> Result<Box<dyn Operation>> {
        Ok(Box::new(Sums::<T>::new(gpu, of, Logits::bhqk(1, heads, queries, keys), sets)?))
    };
    // Sums of diagonals pass through memory on the way; the least is the gradient itself.
    Case { name, elements, read: elements * size_of::<T>() as u64, written: 0, make: Box::new(make) }
}

const TABLE: T5Bias = T5Bias::new(32, 128, true);

struct Sums<T> {
    gpu: Gpu,
    of: Of,
    plan: DistanceGradPlan<T>,
    kerple: Kerple,
    shape: Logits,
    sets: Vec<CudaSlice<T>>,
    out: CudaSlice<f32>,
}

impl<T: Scalar> Sums<T> {
    fn new(gpu: &Gpu, of: Of, shape: Logits, sets: usize) -> Result<Self> {
        let (heads, stream) = (shape.heads, gpu.stream());
        let kerple = Kerple { kind: KerpleKind::Log, p: vec![0.75; heads], a: vec![0.5; heads] };
        let plan = match of {
            Of::T5 => DistanceGradPlan::t5(gpu, TABLE, heads, shape)?,
            Of::Slopes => DistanceGradPlan::slopes(gpu, heads, shape)?,
            Of::Kerple => DistanceGradPlan::kerple(gpu, &kerple, distances(&shape), shape)?,
            Of::Row => DistanceGradPlan::row(gpu, heads, distances(&shape), shape)?,
        };
        let len = shape.elements()?;
        let fill = |set: usize| stream.clone_htod(&values::<T>(set as u64, len));
        let sets = (0..sets).map(fill).collect::<Result<Vec<_>, _>>()?;
        let out = stream.alloc_zeros(plan.len())?;
        Ok(Self { gpu: gpu.clone(), of, plan, kerple, shape, sets, out })
    }

    fn reference(&self, grad: &[T]) -> Result<Vec<f64>> {
        let sums = |distances| DistanceGrad::new(grad, &self.shape, &Places::bottom_right(), distances);
        Ok(match self.of {
            Of::T5 => TABLE.grad(&sums(TABLE.distances())?)?,
            Of::Slopes => {
                let grad = Slopes::grad(&sums(distances(&self.shape))?);
                [grad.left, grad.right].concat()
            }
            Of::Kerple => {
                let grad = self.kerple.grad(&sums(distances(&self.shape))?)?;
                [grad.p, grad.a].concat()
            }
            Of::Row => sums(distances(&self.shape))?.values,
        })
    }
}

/// Every distance that a call has.
fn distances(shape: &Logits) -> std::ops::RangeInclusive<i64> {
    -(shape.keys as i64)..=shape.queries as i64
}

impl<T: Scalar> Operation for Sums<T> {
    fn call(&mut self, set: usize) -> posenc::Result<()> {
        self.plan.apply(self.shape.of(&self.sets[set]), Places::bottom_right(), 1.0, &mut self.out)
    }

    /// Every number, against the sums in f64; the bound takes the sums of magnitudes.
    fn verify(&mut self) -> Result<()> {
        let stream = self.gpu.stream().clone();
        self.call(0)?;
        let grad = stream.clone_dtoh(&self.sets[0])?;
        let want = self.reference(&grad)?;
        let sizes: Vec<T> = grad.iter().map(|x| T::from_f64(x.to_f64().abs())).collect();
        let size = self.reference(&sizes)?;
        compare(&stream.clone_dtoh(&self.out)?, &want, |i| DistanceGrad::error_bound(size[i].abs()))
    }
}
