use half::{bf16, f16};
use posenc::accuracy::{assert_close, rounded};
use posenc::bias::{
    BiasInputs, By, DeviceTermInputs, Distances, Index, Indices, Numbers, ShiftedWindows, Term, TermInputs, Terms,
    Window,
};
use posenc::gpu::Read;
use posenc::{Alibi, Bias, BiasPlan, Gpu, Logits, Packed, Place, Places};

use crate::biases::{Buffers, Context, Host};
use crate::support::{Data, Guarded, alias, gpu};
use crate::terms_support::{Own, TermBuffers, TermCase, TermValues, buffers as term_buffers, each_terms};

// -------------------------------------------------------------------------------------------- kernel against reference

/// Writes or adds the terms on the device.
fn run<T: Own>(
    gpu: &Gpu,
    case: &TermCase,
    x: &[T],
    shape: &Logits,
    (places, gates): (&Host, Option<&[f32]>),
    add: bool,
    own: bool,
) -> Vec<T> {
    let buffers = Buffers::new(gpu, places);
    let host = case.inputs();
    let data: Vec<TermBuffers<T>> = term_buffers(gpu, case.bias(&host), own);
    let terms: Vec<DeviceTermInputs> = data.iter().map(TermBuffers::device).collect();
    let gates = gates.map(|gates| gpu.stream().clone_htod(gates).unwrap());
    let inputs = BiasInputs {
        gates: gates.as_ref().map(|gates| gates as Read<f32>),
        terms: &terms,
        ..buffers.places(places).into()
    };
    let mut x = Guarded::new(gpu, x, 1);
    let plan = BiasPlan::<T>::new(gpu, &case.terms[..]).unwrap();
    let call = if add { BiasPlan::add } else { BiasPlan::write };
    call(&plan, shape.of_mut(&mut x.view()), inputs).unwrap();
    x.read(gpu)
}

/// The reference: each pair's terms in f64.
fn check<T: Own>(gpu: &Gpu, case: &TermCase, shape: &Logits, places: &Host, gates: Option<&[f32]>, own: bool) {
    let _context = Context(|| format!("{} {} {shape:?} {places:?}", T::NAME, case.name));
    let len = shape.span().unwrap();
    let before: Vec<T> = Data::new(5).values(len);
    for add in [false, true] {
        let got = run(gpu, case, &before, shape, (places, gates), add, own);
        let inputs = case.inputs();
        let expected = case.bias(&inputs).expect(shape, places).unwrap();
        let (mut want, mut bound) = (before.iter().map(|x| x.to_f64()).collect::<Vec<_>>(), vec![0.0; len]);
        for row in 0..shape.batch * shape.heads * shape.queries {
            let (query, head) = (row % shape.queries, row / shape.queries % shape.heads);
            let first = shape.index(row / shape.queries / shape.heads, head, query, 0);
            let gate = gates.map_or(1.0, |gates| f64::from(gates[row]));
            for index in first..first + shape.keys {
                let value = gate * expected.want[index];
                let old = if add { want[index] } else { 0.0 };
                want[index] = old + value;
                let steps =
                    f64::from(u8::from(gates.is_some())) * value.abs() + f64::from(u8::from(add)) * want[index].abs();
                let error = gate.abs() * expected.bound[index] + f32::EPSILON as f64 / 2.0 * steps;
                bound[index] = if value.is_finite() { rounded::<T>(want[index], error) } else { 0.0 };
            }
        }
        assert_close(&got, &want, |i| bound[i]);
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_kernel_is_the_reference_for_every_term() {
    let gpu = gpu();
    let mut data = Data::new(11);
    for (heads, keys) in [(1, 13), (3, 9)] {
        let shape = Logits::bhqk(2, heads, 12, keys).row(keys + 3);
        let gates: Vec<f32> = data.values(2 * heads * 12);
        let mut ids = |count: usize| (0..count).map(|_| data.below(16) as i32 - 1).collect::<Vec<_>>();
        let (queries, key_ids) = (ids(24), ids(2 * keys));
        let hosts = [
            Host::counted(1, 0),
            Host::counted(2, 1),
            Places { query_lengths: Some(&[12, 7]), key_lengths: Some(&[5, 9]), ..Host::counted(1, 0) },
            Places { queries: Place::Ids(&queries), keys: Place::Ids(&key_ids), ..Host::counted(0, 0) },
        ];
        for case in each_terms(&shape, 3 + heads as u64) {
            // Signed windows with a class token have 14 tokens, the least of all.
            for (i, places) in hosts.iter().enumerate() {
                check::<f32>(&gpu, &case, &shape, places, None, true);
                check::<f16>(&gpu, &case, &shape, places, None, i % 2 == 0);
                check::<bf16>(
                    &gpu,
                    &case,
                    &shape,
                    places,
                    (case.name != "shifted out").then_some(&gates[..]),
                    i % 2 == 1,
                );
            }
        }
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn packed_sequences_are_those_apart() {
    let gpu = gpu();
    let (firsts, key_firsts) = ([0, 5, 5, 12], [0, 6, 8, 16]);
    let shape = Logits::bhqk(1, 2, 12, 16);
    let packed = Places {
        packed: Some(Packed { queries: &firsts[..], keys: &key_firsts[..], sequences: 3 }),
        ..Host::counted(0, 0)
    };
    for case in each_terms(&shape, 8) {
        check::<f32>(&gpu, &case, &shape, &packed, None, true);
        check::<bf16>(&gpu, &case, &shape, &packed, None, false);
    }
}

/// Lengths of their own may leave keys beyond a window, in the middle of eight that are read together.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn keys_beyond_a_window_get_nothing() {
    let gpu = gpu();
    let shape = Logits::bhqk(1, 2, 3, 20);
    let window = Window::swin(2, 4);
    let numbers = TermValues::of(&mut Data::new(7), Numbers::table(window.entries(), 2));
    let case = TermCase { name: "swin", terms: vec![Term::table(window)], data: vec![numbers] };
    for start in -3..6 {
        let places = Places { key_lengths: Some(&[2][..]), ..Places::counted(2, start) };
        check::<f32>(&gpu, &case, &shape, &places, None, false);
        check::<bf16>(&gpu, &case, &shape, &places, None, true);
    }
}

/// The last numbers of an array lie in an access of 16 bytes that would leave it.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_end_of_an_array_is_not_read_over() {
    let gpu = gpu();
    let shape = Logits::bhqk(1, 1, 1, 8);
    for tokens in 9..14 {
        let distances = Distances::conformer(tokens);
        let numbers = TermValues::of(&mut Data::new(7), Numbers::rows(1, 1, 1, distances.entries));
        let case = TermCase { name: "conformer", terms: vec![Term::queries(distances)], data: vec![numbers] };
        for start in tokens as i64 - 12..tokens as i64 - 7 {
            check::<f32>(&gpu, &case, &shape, &Host::counted(0, start), None, false);
            check::<bf16>(&gpu, &case, &shape, &Host::counted(0, start), None, true);
        }
    }
}

/// Shards of context and of tensor parallelism: rows of products go with their queries, tables with their heads.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn shards_of_queries_and_of_heads_are_slices_of_the_whole() {
    let gpu = gpu();
    let shape = Logits::bhqk(2, 3, 12, 13);
    let zeros = vec![0.0f32; shape.elements().unwrap()];
    // Coordinates are one array for all queries of a call.
    for case in each_terms(&shape, 21).into_iter().filter(|case| case.name != "boxes") {
        let whole = run(&gpu, &case, &zeros, &shape, (&Host::counted(0, 0), None), false, false);
        let shard = |part: Logits, first: [usize; 2], start: i64| {
            let mut case = case.clone();
            for (term, data) in case.terms.iter().zip(&mut case.data) {
                let by_query = term.by == By::Queries || matches!(term.index, Index::Whole | Index::Endpoints);
                if let Some((_, numbers)) = &mut data.numbers {
                    cut(numbers, first, part, by_query);
                }
                if let Some((_, numbers)) = &mut data.key_numbers {
                    cut(numbers, first, part, false);
                }
            }
            let got = run(&gpu, &case, &zeros, &part, (&Host::counted(start, 0), None), false, false);
            for (batch, head, query) in
                (0..2).flat_map(|b| (0..part.heads).flat_map(move |h| (0..part.queries).map(move |i| (b, h, i))))
            {
                let index = shape.index(batch, head + first[0], query + first[1], 0);
                assert_eq!(part.index(batch, head, query, 0), index);
                assert_eq!(got[index..index + 13], whole[index..index + 13], "{} {head} {query}", case.name);
            }
        };
        shard(Logits { queries: 5, ..shape }.at(shape.index(0, 0, 4, 0)), [0, 4], 4);
        shard(Logits { heads: 2, ..shape }.at(shape.index(0, 1, 0, 0)), [1, 0], 0);
    }
}

/// The numbers of a shard that begins at a head and a query.
fn cut(numbers: &mut Numbers, [head, query]: [usize; 2], part: Logits, by_query: bool) {
    let heads = if numbers.heads == 1 { (0, 1) } else { (head, part.heads) };
    let rows = if by_query && numbers.rows > 1 { (query, part.queries) } else { (0, numbers.rows) };
    *numbers = Numbers { heads: heads.1, rows: rows.1, ..numbers.at(numbers.index(0, heads.0, rows.0, 0)) };
}

// ------------------------------------------------------------------------------------------------------------ refusals

/// What a call on the device refuses, and the reference with the same words.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn broken_terms_and_inputs_are_refused() {
    let gpu = gpu();
    let shape = Logits::bhqk(2, 2, 9, 9);
    let host = |terms: &[Term], inputs: &[TermInputs], places: &Host| {
        Bias::Terms(Terms { terms, inputs }).expect(&shape, places).unwrap_err().to_string()
    };
    let zeros = [0.0f32; 2 * 2 * 9 * 9 + 200];
    let check = |term: &Term, inputs: &TermInputs, places: &Host, want: &str| {
        assert_eq!(host(std::slice::from_ref(term), &[*inputs], places), want);
        let buffer = TermBuffers::<f32>::new(&gpu, inputs, false);
        let mut x = gpu.stream().alloc_zeros::<f32>(324).unwrap();
        let plan = BiasPlan::<f32>::new(&gpu, term).unwrap();
        let buffers = Buffers::new(&gpu, places);
        let call = BiasInputs { terms: &[buffer.device()], ..buffers.places(places).into() };
        assert_eq!(plan.add(shape.of_mut(&mut x), call).unwrap_err().to_string(), want);
    };
    let counted = Host::counted(0, 0);
    let of = |numbers: Numbers| TermInputs::of((&zeros[..], numbers));
    let swin = Term::table(Window::swin(3, 3));
    let good = of(Numbers::table(25, 2));
    check(
        &swin,
        &of(Numbers::table(24, 2)),
        &counted,
        "the numbers of a term are [1, 2, 1, 24], they must be [2 or 1, 2 or 1, 1, 25]",
    );
    check(
        &swin,
        &of(Numbers::table(25, 3)),
        &counted,
        "the numbers of a term are [1, 3, 1, 25], they must be [2 or 1, 2 or 1, 1, 25]",
    );
    check(&swin, &good, &Host::counted(0, 1), "the call has keys at positions 1 to 9, a term by coordinates has 9");
    check(
        &swin,
        &good,
        &Host::counted(-1, 0),
        "the call has queries at positions -1 to 7, a term by coordinates has 9",
    );
    check(&swin, &TermInputs::default(), &counted, "a term by coordinates needs numbers, there are none");
    check(
        &swin,
        &TermInputs { key_numbers: good.numbers, ..good },
        &counted,
        "a term by coordinates reads no key_numbers",
    );
    let image = ShiftedWindows { height: 9, width: 3, window: [3, 3], shift: [1, 1] };
    let shifted = Term::shifted(image, -100.0);
    check(&shifted, &TermInputs::default(), &counted, "the call has 2 sequences, shifted windows come in images of 3");
    check(&shifted, &good, &counted, "a term by shifted windows reads no numbers");
    let shaw = Term::queries(Distances::shaw(2, 2));
    check(
        &shaw,
        &of(Numbers::rows(1, 1, 8, 5)),
        &counted,
        "the numbers of a term are [1, 1, 8, 5], they must be [2 or 1, 2 or 1, 9, 5]",
    );
    let short = TermInputs::of((&zeros[..44], Numbers::rows(1, 1, 9, 5)));
    check(&shaw, &short, &counted, "the numbers of a term holds 44 elements, the shape needs 45");
    let coordinates = TermInputs { query_at: Some(&[0; 17]), ..of(Numbers::rows(1, 1, 9, 5)) };
    check(&shaw, &coordinates, &counted, "query_at holds 17 elements, the shape needs 18");
    let given = Term::table(Index::Given { rows: 9, columns: 9, entries: 4 });
    let table = of(Numbers::table(4, 2));
    check(&given, &table, &counted, "a term by given indices needs indices, there are none");
    check(
        &given,
        &TermInputs { indices: Some(Indices::U8(&[0; 80])), ..table },
        &counted,
        "there are 80 given indices, 9 x 9 are 81, for 2 sequences 162",
    );
    check(
        &Term::whole(),
        &of(Numbers::rows(1, 2, 3, 9)),
        &counted,
        "the numbers of a term are [1, 2, 3, 9], they must be [2 or 1, 2 or 1, 9 or 1, 9 or 1]",
    );
    let ends = of(Numbers::rows(2, 2, 9, 1));
    check(&Term::endpoints(), &ends, &counted, "a term by endpoints needs key_numbers, there are none");
    check(
        &Term::endpoints(),
        &TermInputs { key_numbers: Some((&zeros[..], Numbers::rows(2, 2, 9, 3))), ..ends },
        &counted,
        "the keys' ends are [2, 2, 9, 3], they must be [2 or 1, 2 or 1, 9, 1 or 2]",
    );

    let made = |terms: &[Term]| BiasPlan::<f32>::new(&gpu, terms).unwrap_err().to_string();
    assert_eq!(made(&[]), "a bias has 0 terms, there must be 1 to 4");
    assert_eq!(made(&[const { Term::whole() }; 5]), "a bias has 5 terms, there must be 1 to 4");
    assert_eq!(made(&[Term { factor: f32::NAN, ..swin.clone() }]), "the factor of a term is NaN, it must be finite");
    assert_eq!(made(&[Term { by: By::Keys, ..Term::whole() }]), "a term by query and key has no rows of Keys");
    assert_eq!(host(&[swin.clone(), shaw], &[good], &counted), "the call brings inputs of 1 terms, the bias has 2");

    // Numbers of a type that is neither f32 nor the logits' own.
    let half = gpu.stream().alloc_zeros::<f16>(50).unwrap();
    let inputs = [DeviceTermInputs::of(Numbers::table(25, 2).of(&half))];
    let mut x = gpu.stream().alloc_zeros::<bf16>(324).unwrap();
    let plan = BiasPlan::<bf16>::new(&gpu, &swin).unwrap();
    let call = BiasInputs { terms: &inputs, ..Places::counted(0, 0).into() };
    let error = plan.write(shape.of_mut(&mut x), call).unwrap_err();
    assert_eq!(error.to_string(), "the numbers of a term are f16, they must be f32 or bf16");
    // Inputs of terms for a bias that has none.
    let alibi = BiasPlan::<bf16>::new(&gpu, &Alibi::new(2)).unwrap();
    let error = alibi.write(shape.of_mut(&mut x), call).unwrap_err();
    assert_eq!(error.to_string(), "the call brings inputs of terms, the bias has none");
    // Numbers that are written over.
    let mut x = gpu.stream().alloc_zeros::<f32>(324).unwrap();
    let table = alias::<f32, _>(&x, 0, 50);
    let inputs = [DeviceTermInputs::of(Numbers::table(25, 2).of(&table))];
    let plan = BiasPlan::<f32>::new(&gpu, &swin).unwrap();
    let call = BiasInputs { terms: &inputs, ..Places::counted(0, 0).into() };
    let error = plan.write(shape.of_mut(&mut x), call).unwrap_err().to_string();
    assert!(error.contains("may overlap") || error.contains("shares memory"), "{error}");
}
