//! Terms on a device: the arguments of every kernel that reads them.

use bytemuck::Zeroable;
use half::{bf16, f16};

use super::{
    By, Coordinates, DeviceTermInputs, Index, Indices, Outside, Sign, Term, check_count, check_terms, shared_indices,
};
use crate::bias::Window;
use crate::gpu::args::{Divisor, In, IndexType, TERMS, TermArgs, TermKind, TermsArgs, WindowArgs};
use crate::gpu::{Call, Gpu, Placed, Read, Uploaded, View};
use crate::position::Places;
use crate::shape::{Numbers, Shape, product};
use crate::{Error, Logits, Result, Scalar};

const _: () = assert!(TERMS == super::MOST_TERMS);

/// Numbers of a term on the device: a view of f32, or of the logits' own type.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum AnyNumbers<'a> {
    /// f32
    F32(View<'a, f32, Numbers>),
    /// f16
    F16(View<'a, f16, Numbers>),
    /// bf16
    Bf16(View<'a, bf16, Numbers>),
}

macro_rules! numbers {
    ($($Variant:ident($Type:ty)),*) => {$(
        impl<'a> From<View<'a, $Type, Numbers>> for AnyNumbers<'a> {
            fn from(numbers: View<'a, $Type, Numbers>) -> Self {
                Self::$Variant(numbers)
            }
        }
    )*};
}

numbers!(F32(f32), F16(f16), Bf16(bf16));

impl<'a> AnyNumbers<'a> {
    /// The sizes and strides.
    pub const fn shape(&self) -> &Numbers {
        match self {
            Self::F32(view) => view.shape(),
            Self::F16(view) => view.shape(),
            Self::Bf16(view) => view.shape(),
        }
    }

    /// Hands in the array; true if it holds f32.
    pub(crate) fn hold<T: Scalar>(
        self,
        call: &mut Call<'a>,
        name: &'static str,
    ) -> Result<(Placed<In, Numbers>, bool)> {
        let (placed, is_f32, type_name) = match self {
            Self::F32(view) => (call.view(name, view)?, true, f32::NAME),
            Self::F16(view) => (call.view(name, view)?, false, f16::NAME),
            Self::Bf16(view) => (call.view(name, view)?, false, bf16::NAME),
        };
        if is_f32 || type_name == T::NAME {
            return Ok((placed, is_f32));
        }
        let own = if T::NAME == f32::NAME { String::new() } else { format!(" or {}", T::NAME) };
        Err(Error::Value(format!("{name} are {type_name}, they must be f32{own}")))
    }
}

/// One term on a device.
#[derive(Clone, Debug)]
pub(crate) struct TermPlan {
    pub(crate) term: Term,
    /// entries by distance
    lookup: Option<Uploaded<u16>>,
}

impl TermPlan {
    /// Uploads what the terms of a bias look up.
    pub(crate) fn all(gpu: &Gpu, terms: &[Term]) -> Result<Vec<Self>> {
        check_terms(terms)?;
        terms.iter().map(|term| Self::new(gpu, term)).collect()
    }

    pub(crate) fn new(gpu: &Gpu, term: &Term) -> Result<Self> {
        term.check()?;
        let lookup = match &term.index {
            Index::Distance(distances) if !distances.lookup.is_empty() => Some(gpu.upload(&distances.lookup)?),
            _ => None,
        };
        Ok(Self { term: term.clone(), lookup })
    }

    /// The term of a call: what decides the entry, and the numbers.
    fn hold<'a, T: Scalar>(
        &'a self,
        call: &mut Call<'a>,
        shape: &Logits,
        places: &Places<Read<'a, i32>>,
        inputs: &DeviceTermInputs<'a>,
    ) -> Result<TermArgs> {
        let Self { term, .. } = self;
        term.check_inputs(inputs)?;
        let mut args = self.hold_index(call, shape, places, inputs)?;
        args.factor = term.factor;
        if let Some(numbers) = inputs.numbers {
            let endpoints = matches!(term.index, Index::Endpoints);
            if endpoints {
                Term::check_ends("the queries' ends", numbers.shape(), shape, [shape.queries, 2])?;
            } else {
                term.check_numbers(numbers.shape(), shape)?;
            }
            let (placed, is_f32) = numbers.hold::<T>(call, "the numbers of a term")?;
            args.values = placed.at;
            args.values_f32 = u32::from(is_f32);
            let [batch, head, row, entry] = strides(&placed.shape);
            args.strides = match (&term.index, term.by) {
                (Index::Whole, _) => [batch, head, row, entry, 0],
                (Index::Endpoints, _) | (_, By::Queries) => [batch, head, row, 0, entry],
                (_, By::Keys) => [batch, head, 0, row, entry],
                (_, By::Table) => [batch, head, 0, 0, entry],
            };
            if endpoints {
                args.second[0] = entry;
            }
        }
        if let Some(numbers) = inputs.key_numbers {
            Term::check_ends("the keys' ends", numbers.shape(), shape, [shape.keys, 2])?;
            let (placed, is_f32) = numbers.hold::<T>(call, "the keys' ends")?;
            if is_f32 != (args.values_f32 == 1) {
                return Err(Error::Value("the ends of queries and keys are of two types".into()));
            }
            let [batch, head, row, entry] = strides(&placed.shape);
            args.more = placed.at;
            args.more_strides = [batch, head, row];
            args.second[1] = entry;
        }
        Ok(args)
    }

    /// What decides the entry of a query and a key.
    pub(crate) fn hold_index<'a>(
        &'a self,
        call: &mut Call<'a>,
        shape: &Logits,
        places: &Places<Read<'a, i32>>,
        inputs: &DeviceTermInputs<'a>,
    ) -> Result<TermArgs> {
        let term = &self.term;
        term.check_places(shape, places, [inputs.query_at.is_some(), inputs.key_at.is_some()])?;
        let [queries, keys] = [
            product("batch x queries", &[shape.batch, shape.queries])?,
            product("batch x keys", &[shape.batch, shape.keys])?,
        ];
        let mut args = TermArgs {
            query_at: call.read_some("query_at", inputs.query_at, queries)?,
            key_at: call.read_some("key_at", inputs.key_at, keys)?,
            prefix_entry: -1,
            ..TermArgs::zeroed()
        };
        // Every count lies within 2^30, as the checks of a term say.
        match &term.index {
            Index::Whole => args.kind = TermKind::WHOLE,
            Index::Distance(distances) => {
                args.kind = TermKind::DISTANCE;
                args.first = distances.first as i32;
                args.count = distances.count as i32;
                args.entries = distances.entries as i32;
                args.smooth =
                    u32::from(distances.lookup.windows(2).all(|pair| pair[1] == pair[0] || pair[1] == pair[0] + 1));
                args.reversed = u32::from(distances.sign == Sign::QueryMinusKey);
                args.zero_outside = u32::from(distances.outside == Outside::Zero);
                if let Some(lookup) = &self.lookup {
                    args.more = call.table("lookup", lookup)?;
                }
            }
            Index::Window(window) => put_window(&mut args, window),
            Index::Shifted(windows) => {
                args.kind = TermKind::SHIFTED;
                (args.query, args.key) =
                    (side(windows.tokens(), windows.window[1], 1), side(windows.tokens(), windows.window[1], 1));
                let [image, row] = [windows.windows() as u32, (windows.width / windows.window[1]) as u32];
                (args.windows, args.by_image, args.by_row) = ([image, row], Divisor::new(image), Divisor::new(row));
                args.window = windows.window.map(|size| size as i32);
                let (last, wrapped) = windows.bounds();
                (args.last, args.wrapped) = (last.map(|at| at as i32), wrapped.map(|at| at as i32));
            }
            Index::Given { rows, columns, entries } => {
                args.kind = TermKind::GIVEN;
                (args.rows, args.count, args.entries) = (*rows as i32, *columns as i32, *entries as i32);
                if let Some(indices) = inputs.indices {
                    let len = match indices {
                        Indices::U8(ids) => ids.len(),
                        Indices::U16(ids) => ids.len(),
                        Indices::I32(ids) => ids.len(),
                    };
                    let one = shared_indices(len, shape, *rows, *columns)?;
                    let matrix = (rows * columns) as i64;
                    args.more_strides = [if one { 0 } else { matrix }, *columns as i64, 1];
                    (args.more, args.index_type) = match indices {
                        Indices::U8(ids) => (call.read("indices", ids, len)?, IndexType::U8),
                        Indices::U16(ids) => (call.read("indices", ids, len)?, IndexType::U16),
                        Indices::I32(ids) => (call.read("indices", ids, len)?, IndexType::I32),
                    };
                }
            }
            Index::Endpoints => args.kind = TermKind::ENDPOINTS,
        }
        Ok(args)
    }
}

/// Strides as a kernel takes them: a size of 1 stands still.
pub(crate) fn strides(numbers: &Numbers) -> [i64; 4] {
    numbers.strided().dims.map(|(size, stride)| if size == 1 { 0 } else { stride as i64 })
}

/// One side of a window.
const fn side(tokens: usize, width: usize, scale: i32) -> WindowArgs {
    WindowArgs { tokens: tokens as u32, width: width as u32, by_width: Divisor::new(width as u32), scale, pad: [] }
}

fn put_window(args: &mut TermArgs, window: &Window) {
    args.kind = TermKind::GRID;
    let [query, key] = window.scales().map(|scale| scale as i32);
    args.query = side(window.queries(), window.query_side(window.width), query);
    args.key = side(window.keys(), window.width, key);
    args.prefix = window.prefix as u32;
    if window.prefix_entries {
        args.prefix_entry = window.entries() as i32 - 3;
    }
    let (steps, origin) = window.steps();
    args.steps = steps.map(|step| step as i32);
    args.origin = origin as i32;
    args.absolute = u32::from(window.coordinates == Coordinates::Absolute);
}

/// Hands in the terms of a call.
pub(crate) fn hold_terms<'a, T: Scalar>(
    terms: &'a [TermPlan],
    call: &mut Call<'a>,
    shape: &Logits,
    places: &Places<Read<'a, i32>>,
    inputs: &[DeviceTermInputs<'a>],
) -> Result<TermsArgs> {
    check_count(terms.len(), inputs.len())?;
    // At most MOST_TERMS.
    let mut args = TermsArgs { count: terms.len() as u32, ..TermsArgs::zeroed() };
    for ((term, inputs), args) in terms.iter().zip(inputs).zip(&mut args.terms) {
        *args = term.hold::<T>(call, shape, places, inputs)?;
    }
    Ok(args)
}
