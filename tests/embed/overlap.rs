//! What a call writes shares no memory with anything else that it is given.

use posenc::embed::{
    Counted, DeviceLookup, DeviceTables, ErrorFlag, Grid, GridPlan, GridSize, Learned, LearnedGradPlan, LearnedPlan,
    Norm, NormGrad, Resample, ResamplePlan, Rows, Sinusoid, SinusoidPlan, TableGrad, TimestepPlan, Tokens,
};
use posenc::gpu::{Raw, Read};
use posenc::{Id, Positions};

use crate::support::{alias, gpu};

const MEMORY: [f32; 64] = [7.0; 64];

#[track_caller]
fn refused(result: posenc::Result<()>, message: &str) {
    assert_eq!(result.unwrap_err().to_string(), message);
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn sinusoids_timesteps_and_grids() {
    let gpu = gpu();
    let memory = gpu.stream().clone_htod(&MEMORY).unwrap();
    macro_rules! at {
        ($skip:expr, $len:expr) => {
            alias(&memory, $skip, $len)
        };
    }
    let (mut x, tokens) = (at!(0, 16), Tokens::new(1, 4, 4));

    let plan = SinusoidPlan::<f32>::new(&gpu, &Sinusoid::new(4)).unwrap();
    // The last element that is written, and the first behind it.
    let ids = at!(60, 4);
    let result = plan.add(tokens.of_mut(&mut x), Positions::ids(i32::ids(&ids)), 1.0);
    refused(result, "x is written and shares memory with positions");
    let (starts, indptr) = (at!(0, 1), at!(0, 2));
    let result = plan.write(tokens.of_mut(&mut x), Positions::starts(i64::ids(&starts)));
    refused(result, "out is written and shares memory with positions");
    let result = plan.write(tokens.of_mut(&mut x), Positions::packed(i32::ids(&indptr), 1));
    refused(result, "out is written and shares memory with indptr");

    let plan = TimestepPlan::<f32>::new(&gpu, &Sinusoid::timestep(4)).unwrap();
    let t: Read<'_, f64> = &at!(8, 4);
    refused(plan.write(tokens.of_mut(&mut x), t), "out is written and shares memory with t");

    let plan = GridPlan::<f32>::new(&gpu, &Grid::detr(4, 20.0)).unwrap();
    let result = plan.write_masked(tokens.of_mut(&mut x), &at!(63, 4), GridSize::image(2, 2), Counted::default());
    refused(result, "out is written and shares memory with mask");

    let plan = ResamplePlan::<f32>::new(&gpu, &Resample::new(GridSize::image(2, 2), GridSize::image(2, 2))).unwrap();
    let message =
        "table (offset 0, strides [0, 16, 4]) and out (offset 15, strides [0, 16, 4]) may overlap in one buffer";
    refused(plan.write(tokens.of_mut(&mut at!(60, 16)), tokens.of(&x)), message);
    plan.write(tokens.of_mut(&mut at!(64, 16)), tokens.of(&x)).unwrap();
    // Behind it, all was written that was asked for, and before nothing was.
    let read = gpu.stream().clone_dtoh(&memory).unwrap();
    assert_eq!(read, MEMORY);
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn tables_ids_and_the_error_flag() {
    let gpu = gpu();
    let stream = gpu.stream();
    let memory = stream.clone_htod(&MEMORY).unwrap();
    let own = stream.clone_htod(&[0.0f32; 16]).unwrap();
    let (ids, mask) = (stream.clone_htod(&[0i32; 4]).unwrap(), stream.clone_htod(&[1u8; 4]).unwrap());
    macro_rules! at {
        ($len:expr) => {
            alias(&memory, 12, $len)
        };
    }
    let tokens = Tokens::new(1, 4, 4);
    let (table, vector) = (at!(16), at!(4));
    let (of_own, own_vector) = (alias(&own, 0, 16), alias(&own, 0, 4));
    let all = DeviceTables {
        token: Some(&of_own),
        position: Some(&of_own),
        types: Some(&of_own),
        gain: Some(&own_vector),
        bias: Some(&own_vector),
    };
    let lookup = DeviceLookup {
        ids: Some(i32::ids(&ids)),
        types: Some(i32::ids(&ids)),
        mask: Some(&mask),
        positions: Positions::counted(),
    };
    let rows = Rows::Kept { padding: None, first: 0, padded: 0 };
    let spec = Learned { norm: Some(Norm::Layer { eps: 1e-5 }), rows, ..Learned::new(4) };
    let plan = LearnedPlan::<f32>::new(&gpu, &spec).unwrap();
    let gather = |tables: DeviceTables<'_, f32>, lookup: DeviceLookup<'_>, name: &str| {
        let mut x = alias(&memory, 0, 16);
        let result = plan.gather(tokens.of_mut(&mut x), &tables, &lookup, None);
        refused(result, &format!("x is written and shares memory with {name}"));
    };
    gather(DeviceTables { token: Some(&table), ..all }, lookup, "the token table");
    gather(DeviceTables { position: Some(&table), ..all }, lookup, "the position table");
    gather(DeviceTables { types: Some(&table), ..all }, lookup, "the type table");
    gather(DeviceTables { gain: Some(&vector), ..all }, lookup, "the norm's gain");
    gather(DeviceTables { bias: Some(&vector), ..all }, lookup, "the norm's bias");
    gather(all, DeviceLookup { ids: Some(i64::ids(&at!(4))), ..lookup }, "ids");
    gather(all, DeviceLookup { types: Some(i32::ids(&at!(4))), ..lookup }, "types");
    gather(all, DeviceLookup { mask: Some(&at!(4)), ..lookup }, "mask");
    gather(all, DeviceLookup { positions: Positions::starts(i64::ids(&at!(4))), ..lookup }, "positions");
    // Tables may share memory with one another, as tied embeddings do.
    let mut flag = ErrorFlag::new(&gpu).unwrap();
    let mut on_flag = alias(flag.flag(), 0, 16);
    let one = Tokens::new(1, 1, 4);
    let mut raised = ErrorFlag::new(&gpu).unwrap();
    let result = plan.gather(one.of_mut(&mut on_flag), &all, &lookup, Some(&mut flag));
    refused(result, "the error flag is written and shares memory with x");
    let result = plan.rows(&mut at!(4), 1, 4, &DeviceLookup { mask: Some(&at!(4)), ..lookup });
    refused(result, "rows is written and shares memory with mask");
    let mut x = alias(&memory, 0, 16);
    plan.gather(tokens.of_mut(&mut x), &all, &lookup, Some(&mut raised)).unwrap();
    raised.check(&gpu).unwrap();
    assert_eq!(stream.clone_dtoh(&memory).unwrap()[16..], MEMORY[16..]);
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn gradients() {
    let gpu = gpu();
    let stream = gpu.stream();
    let memory = stream.clone_htod(&MEMORY).unwrap();
    let ids = stream.clone_htod(&[0i32; 4]).unwrap();
    let order = stream.clone_htod(&[0u32, 1, 2, 3]).unwrap();
    let other = stream.clone_htod(&[0.0f32; 32]).unwrap();
    macro_rules! at {
        ($skip:expr, $len:expr) => {
            alias(&memory, $skip, $len)
        };
    }
    let tokens = Tokens::new(1, 4, 4);
    let spec = Learned { norm: Some(Norm::Layer { eps: 1e-5 }), ..Learned::new(4) };
    let plan = LearnedGradPlan::<f32>::new(&gpu, &spec, tokens).unwrap();
    let lookup = DeviceLookup { ids: Some(i32::ids(&ids)), ..DeviceLookup::default() };
    let token = alias(&other, 0, 16);
    let vector = at!(200, 4);
    let tables = DeviceTables { token: Some(&token), ..DeviceTables::default() };
    let (mut sum, grad) = (at!(0, 16), alias(&other, 64, 16));

    let message =
        "sum (offset 0, strides [0, 16, 4]) and grad (offset 3, strides [0, 16, 4]) may overlap in one buffer";
    let result = plan.norm(NormGrad::new(tokens.of_mut(&mut sum)), tokens.of(&at!(12, 16)), None, &tables, &lookup);
    refused(result, message);
    let mut gain = at!(60, 4);
    let out = NormGrad { gain: Some(&mut gain), ..NormGrad::new(tokens.of_mut(&mut sum)) };
    let result = plan.norm(out, tokens.of(&grad), None, &tables, &lookup);
    refused(result, "gain is written and shares memory with sum");
    let (mut gain, mut bias) = (at!(100, 4), at!(112, 4));
    let out = NormGrad { gain: Some(&mut gain), bias: Some(&mut bias), ..NormGrad::new(tokens.of_mut(&mut sum)) };
    let result = plan.norm(out, tokens.of(&grad), None, &tables, &lookup);
    refused(result, "bias is written and shares memory with gain");
    let mut gain = at!(204, 4);
    let out = NormGrad { gain: Some(&mut gain), ..NormGrad::new(tokens.of_mut(&mut sum)) };
    let with_gain = DeviceTables { gain: Some(&vector), ..tables };
    let result = plan.norm(out, tokens.of(&grad), None, &with_gain, &lookup);
    refused(result, "gain is written and shares memory with the norm's gain");
    let vector = at!(200, 4);
    let on_sum = DeviceLookup { ids: Some(i32::ids(&vector)), ..lookup };
    let result = plan.norm(NormGrad::new(tokens.of_mut(&mut at!(152, 16))), tokens.of(&grad), None, &tables, &on_sum);
    refused(result, "sum is written and shares memory with ids");

    let result = plan.counted(&mut at!(60, 16), tokens.of(&sum), 0, TableGrad::new(4));
    refused(result, "table is written and shares memory with grad");
    refused(plan.order(&mut at!(0, 4), i64::ids(&at!(12, 4)), 4), "order is written and shares memory with ids");
    let table = |grad: &Raw<f32>, ids: &Raw<i32>, order: &Raw<u32>, name: &str| {
        let result = plan.table(&mut at!(0, 16), tokens.of(grad), i32::ids(ids), order, TableGrad::new(4));
        refused(result, &format!("table is written and shares memory with {name}"));
    };
    let (ids, order) = (alias(&ids, 0, 4), alias(&order, 0, 4));
    table(&at!(60, 16), &ids, &order, "grad");
    table(&grad, &at!(60, 4), &order, "ids");
    table(&grad, &ids, &at!(60, 4), "order");
    assert_eq!(stream.clone_dtoh(&memory).unwrap(), MEMORY);
}
