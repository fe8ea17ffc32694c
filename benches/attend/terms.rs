//! The softmax fused with windows and with products of states and a table, on the shapes of real models.

use anyhow::Result;
use cudarc::driver::CudaSlice;
use half::bf16;
use posenc::attend::{DeviceBias, Inputs};
use posenc::bias::{DeviceTermInputs, Distances, Numbers, ShiftedWindows, Term, TermInputs, Terms, Window};
use posenc::{Bias, Gpu, Logits, Places, Softmax, SoftmaxPlan};

use crate::support::{Case, Operation, compare, values};

/// A model's bias, with the sizes of its numbers; `None` where a term reads none.
struct Model {
    terms: Vec<(Term, Option<Numbers>)>,
    shape: Logits,
    softmax: Softmax,
}

/// Every case.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: &'static str, size: usize, model: fn(usize) -> Model| {
        let Model { terms, shape, softmax } = model(size);
        let elements = (shape.batch * shape.heads * shape.queries * shape.keys) as u64;
        let seen = if softmax.right == Some(0) {
            let rows = (shape.batch * shape.heads) as u64;
            rows * (1..=shape.queries).map(|query| (shape.keys + query - shape.queries) as u64).sum::<u64>()
        } else {
            elements
        };
        // Of the numbers of each row those that a key reads; tables come from a cache.
        let numbers =
            terms.iter().filter(|(_, numbers)| numbers.is_some_and(|numbers| numbers.rows > 1 || size == 45_000));
        let of_row = |term: &Term| match &term.index {
            posenc::bias::Index::Distance(distances) => distances.entries.min(shape.keys),
            _ => 0,
        };
        let rows = (shape.batch * shape.heads * shape.queries) as u64;
        let read: u64 = numbers.map(|(term, _)| rows * of_row(term) as u64).sum();
        // Rows near the start of a causal mask see fewer distances than there are.
        let read = if softmax.right == Some(0) { read / 2 } else { read };
        cases.push(Case {
            name: format!("Terms/{name}/bf16/{}x{}x{size}", shape.batch, shape.heads),
            elements,
            read: 2 * (seen + read),
            written: 2 * elements,
            make: Box::new(move |gpu, sets| Ok(Box::new(Call::new(gpu, model(size), sets)?) as Box<dyn Operation>)),
        });
    };
    // swin-t, stage 1: 64 windows of an image, half of them with a mask.
    add("swin-tiny", 49, |_| {
        let image = ShiftedWindows { height: 56, width: 56, window: [7, 7], shift: [3, 3] };
        Model {
            terms: vec![
                (Term::table(Window::swin(7, 7)), Some(Numbers::table(169, 3))),
                (Term::shifted(image, -100.0), None),
            ],
            shape: Logits::bhqk(64, 3, 49, 49),
            softmax: Softmax::new(1.0),
        }
    });
    add("beit-base", 197, |_| Model {
        terms: vec![(Term::table(Window::beit(14, 14)), Some(Numbers::table(732, 12)))],
        shape: Logits::bhqk(1, 12, 197, 197),
        softmax: Softmax::new(0.125),
    });
    for size in [128, 512] {
        add("deberta-v3-base", size, |size| {
            let deberta = Distances::deberta(256, 512).expect("deberta-v3's buckets");
            let numbers = Some(Numbers::rows(1, 12, size, 512));
            Model {
                terms: vec![(Term::queries(deberta.clone()), numbers), (Term::keys(deberta), numbers)],
                shape: Logits::bhqk(1, 12, size, size),
                softmax: Softmax { order: posenc::attend::Order::BiasThenScale, ..Softmax::new(1.0 / 192f32.sqrt()) },
            }
        });
    }
    for size in [256, 1024] {
        add("parakeet", size, |size| Model {
            terms: vec![(Term::queries(Distances::conformer(size)), Some(Numbers::rows(1, 8, size, 2 * size - 1)))],
            shape: Logits::bhqk(1, 8, size, size),
            softmax: Softmax::new(0.125),
        });
    }
    // A row of one hour of audio, of which a frame has 80 ms.
    add("parakeet-hour", 45_000, |size| Model {
        terms: vec![(Term::queries(Distances::conformer(size)), Some(Numbers::rows(1, 8, 1, 2 * size - 1)))],
        shape: Logits::bhqk(1, 8, 1, size),
        softmax: Softmax::new(0.125),
    });
    add("inkling", 512, |size| Model {
        terms: vec![(Term::queries(Distances::inkling(1024)), Some(Numbers::rows(1, 4, size, 1024)))],
        shape: Logits::bhqk(1, 4, size, size),
        softmax: Softmax::causal(1.0),
    });
    cases
}

struct Call {
    gpu: Gpu,
    model: Model,
    softmax: SoftmaxPlan<bf16>,
    numbers: Vec<Option<(CudaSlice<bf16>, Numbers)>>,
    sets: Vec<CudaSlice<bf16>>,
}

impl Call {
    fn new(gpu: &Gpu, model: Model, sets: usize) -> Result<Self> {
        let stream = gpu.stream();
        let terms: Vec<Term> = model.terms.iter().map(|(term, _)| term.clone()).collect();
        let softmax = SoftmaxPlan::new(gpu, &model.softmax, &terms[..])?;
        let mut numbers = Vec::new();
        for (seed, (_, shape)) in model.terms.iter().enumerate() {
            numbers.push(match shape {
                None => None,
                Some(shape) => Some((stream.clone_htod(&values::<bf16>(90 + seed as u64, shape.span()?))?, *shape)),
            });
        }
        let len = model.shape.elements()?;
        let fill = |set: usize| stream.clone_htod(&values::<bf16>(set as u64, len));
        let sets = (0..sets).map(fill).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { gpu: gpu.clone(), model, softmax, numbers, sets })
    }
}

impl Operation for Call {
    fn call(&mut self, set: usize) -> posenc::Result<()> {
        let terms: Vec<DeviceTermInputs> = self
            .numbers
            .iter()
            .map(|numbers| match numbers {
                None => DeviceTermInputs::default(),
                Some((buffer, shape)) => DeviceTermInputs::of(shape.of(buffer)),
            })
            .collect();
        let inputs = Inputs { bias: DeviceBias::terms(&terms), ..Inputs::at(Places::bottom_right()) };
        self.softmax.apply(self.model.shape.of_mut(&mut self.sets[set]), &inputs)
    }

    /// Every row where they are few, else the last sequence.
    fn verify(&mut self) -> Result<()> {
        let stream = self.gpu.stream().clone();
        let before = stream.clone_dtoh(&self.sets[0])?;
        self.call(0)?;
        let after = stream.clone_dtoh(&self.sets[0])?;
        let mut wide = Vec::new();
        for numbers in &self.numbers {
            wide.push(match numbers {
                None => Vec::new(),
                Some((buffer, _)) => stream.clone_dtoh(buffer)?.iter().map(|x| x.to_f32()).collect::<Vec<f32>>(),
            });
        }
        let terms: Vec<Term> = self.model.terms.iter().map(|(term, _)| term.clone()).collect();
        let shapes = self.model.terms.iter().map(|(_, shape)| shape);
        let inputs: Vec<TermInputs> = shapes
            .zip(&wide)
            .map(|(shape, values)| shape.map_or_else(TermInputs::default, |shape| TermInputs::of((&values[..], shape))))
            .collect();
        let bias = Bias::Terms(Terms { terms: &terms, inputs: &inputs });
        let expected = self.model.softmax.expect(&before, &self.model.shape, &Inputs { bias, ..Inputs::default() })?;
        compare(&after, &expected.want, |i| expected.bound[i])
    }
}
