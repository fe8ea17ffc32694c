//! Position maps: published values, laws, refusals.

use half::bf16;
use posenc::position::{
    DualChunk, Part, Pass, ReRope, SelfExtend, head_shard, packed, packed_from, striped, zigzag, zigzag_packed,
};
use posenc::{Direction, Heads, Ids, Positions, Rope, RopePlan, Scaling};

use crate::support::{Data, Guarded, gpu};

// -------------------------------------------------------------------------------------------------------------- values

/// vLLM 0.32.0, DualChunkRotaryEmbedding: key t % c; queries t % c, min(t % c + c, chunk), min(2c - 1, chunk); and for critical
/// tokens t % c + c, t % c + chunk. Chunk 8, local 2.
#[test]
fn dual_chunk_has_vllms_positions() {
    let dual = DualChunk { chunk: 8, local: 2 };
    let of = |f: &dyn Fn(i64) -> i64| (0..14).map(f).collect::<Vec<_>>();
    assert_eq!(of(&|p| dual.key(p)), [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0, 1]);
    assert_eq!(of(&|p| dual.query(p, Part::Intra)), of(&|p| dual.key(p)));
    assert_eq!(of(&|p| dual.query(p, Part::Successive)), [6, 7, 8, 8, 8, 8, 6, 7, 8, 8, 8, 8, 6, 7]);
    assert_eq!(of(&|p| dual.query(p, Part::Inter)), [8; 14]);
    assert_eq!(of(&|p| dual.query_critical(p, Part::Successive)), [6, 7, 8, 9, 10, 11, 6, 7, 8, 9, 10, 11, 6, 7]);
    assert_eq!(of(&|p| dual.query_critical(p, Part::Inter)), [8, 9, 10, 11, 12, 13, 8, 9, 10, 11, 12, 13, 8, 9]);
    // A long local part: the constant is 2c - 1.
    assert_eq!(DualChunk { chunk: 8, local: 5 }.query(0, Part::Inter), 5);
    let parts: Vec<_> = [(5, 5), (5, 0), (6, 5), (11, 0), (12, 5), (13, 0)].map(|(q, k)| dual.part(q, k)).into();
    assert_eq!(parts, [Part::Intra, Part::Intra, Part::Successive, Part::Successive, Part::Inter, Part::Inter]);
}

/// The figure of Self-Extend (arXiv 2401.01325): 10 tokens, group 2, neighbour window 4.
#[test]
fn self_extend_has_the_papers_table() {
    let extend = SelfExtend { group: 2, window: 4 };
    let row: Vec<_> = (0..10).map(|key| extend.distance(9, key)).collect();
    assert_eq!(row, [6, 6, 5, 5, 4, 4, 3, 2, 1, 0]);
}

/// kexue.fm/archives/9708: w beyond the window, or w + (distance - w) / k.
#[test]
fn rerope_has_sus_table() {
    let row = |leak| (0..10).map(|key| ReRope { window: 4, leak }.distance(9, key)).collect::<Vec<_>>();
    assert_eq!(row(None), [4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 3.0, 2.0, 1.0, 0.0]);
    assert_eq!(row(Some(2)), [6.5, 6.0, 5.5, 5.0, 4.5, 4.0, 3.0, 2.0, 1.0, 0.0]);
}

#[test]
fn shards_are_those_of_megatron() {
    // Megatron-LM, get_batch_on_this_cp_rank: chunks [r, 2 * ranks - 1 - r].
    assert_eq!(zigzag(16, 2, 1).unwrap(), [4, 5, 6, 7, 8, 9, 10, 11]);
    assert_eq!(zigzag(16, 4, 0).unwrap(), [0, 1, 14, 15]);
    assert_eq!(zigzag_packed(&[0, 4, 12], 2, 0).unwrap(), [0, 3, 0, 1, 6, 7]);
    assert_eq!(striped(8, 2, 1).unwrap(), [1, 3, 5, 7]);
    assert_eq!(
        (head_shard(71, 1, 0).unwrap(), head_shard(8, 2, 1).unwrap(), head_shard(1, 8, 7).unwrap()),
        (0..71, 4..8, 0..1)
    );
    assert_eq!(packed_from(&[0, 2, 5], &[10, -1]).unwrap(), [10, 11, -1, 0, 1]);
}

// ---------------------------------------------------------------------------------------------------------------- laws

#[test]
fn ranks_share_the_sequence() {
    for ranks in [1, 2, 3, 8] {
        for chunk in [1, 2, 5] {
            let tokens = 2 * ranks * chunk;
            let shards = |shard: &dyn Fn(usize) -> Vec<i64>| {
                let mut all: Vec<i64> = (0..ranks).flat_map(shard).collect();
                all.sort_unstable();
                all
            };
            let whole: Vec<i64> = (0..tokens as i64).collect();
            assert_eq!(shards(&|rank| zigzag(tokens, ranks, rank).unwrap()), whole);
            assert_eq!(shards(&|rank| striped(tokens, ranks, rank).unwrap()), whole);
            // A causal mask gives every rank of a zig-zag the same work.
            let work = |rank| zigzag(tokens, ranks, rank).unwrap().iter().map(|position| position + 1).sum::<i64>();
            assert!((0..ranks).all(|rank| work(rank) == work(0)));
        }
    }
    for (heads, ranks) in [(32, 8), (8, 8), (2, 8), (112, 16)] {
        let mut count = vec![0; heads];
        (0..ranks).for_each(|rank| head_shard(heads, ranks, rank).unwrap().for_each(|head| count[head] += 1));
        assert_eq!(count, vec![(ranks / heads).max(1); heads]);
    }
}

fn data(n: usize) -> Vec<f32> {
    (0..n).map(|i| (if i % 3 == 0 { -1.0 } else { 1.0 }) * (0.5 + (i * 37 % 64) as f32 / 64.0)).collect()
}

#[test]
fn a_shards_result_is_the_slice_of_the_whole() {
    let rope = Rope::new(16, 1e4);
    let (tokens, heads, dim) = (24, 4, 16);
    let whole: Vec<i64> = (0..tokens as i64).collect();
    let mut want = data(tokens * heads * dim);
    rope.rotate(&mut want, &Heads::thd(tokens, heads, dim), &whole, Direction::Forward).unwrap();
    for rank in 0..3 {
        let positions = zigzag(tokens, 3, rank).unwrap();
        let rows = |x: &[f32]| -> Vec<f32> {
            positions.iter().flat_map(|&p| x[p as usize * heads * dim..][..heads * dim].to_vec()).collect()
        };
        let mut got = rows(&data(tokens * heads * dim));
        rope.rotate(&mut got, &Heads::thd(positions.len(), heads, dim), &positions, Direction::Forward).unwrap();
        assert_eq!(got, rows(&want));
    }
    for rank in 0..2 {
        let mine = head_shard(heads, 2, rank).unwrap();
        let shape = Heads::thd(tokens, mine.len(), dim).row(heads * dim).at(mine.start * dim);
        let mut got = data(tokens * heads * dim);
        rope.rotate(&mut got, &shape, &whole, Direction::Forward).unwrap();
        for token in 0..tokens {
            let at = token * heads * dim + mine.start * dim..token * heads * dim + mine.end * dim;
            assert_eq!(got[at.clone()], want[at]);
        }
    }
    // Packed sequences rotate as each of them alone.
    let positions = packed(&[0, 7, 7, 20]).unwrap();
    assert_eq!(positions[7..], whole[..13]);
}

#[test]
fn near_distances_stay_and_far_ones_are_bounded() {
    let extend = SelfExtend { group: 4, window: 64 };
    let (rerope, leaky) = (ReRope { window: 64, leak: None }, ReRope { window: 64, leak: Some(4) });
    let dual = DualChunk { chunk: 96, local: 32 };
    for query in [0i64, 1, 63, 64, 127, 128, 500, 4095] {
        for key in 0..=query {
            let true_distance = query - key;
            let near = true_distance < 64;
            assert_eq!(
                extend.distance(query, key) == true_distance,
                near || extend.distance(query, key) == true_distance
            );
            if near {
                assert_eq!(extend.distance(query, key), true_distance);
                assert_eq!(
                    (rerope.distance(query, key), leaky.distance(query, key)),
                    (true_distance as f64, true_distance as f64)
                );
            } else {
                // One group more or less than the distance counted in groups.
                let counted = 64 + (true_distance - 64) / 4;
                assert!((extend.distance(query, key) - counted).abs() <= 1, "{query} {key}");
                assert_eq!(rerope.distance(query, key), 64.0);
                assert_eq!(leaky.distance(query, key), 64.0 + (true_distance - 64) as f64 / 4.0);
            }
            let seen = dual.distance(query, key);
            assert!((0..=96).contains(&seen), "{query} {key} {seen}");
            // Exact in the query's chunk, and over `local` tokens into the one before.
            if dual.part(query, key) == Part::Intra || true_distance <= 32 {
                assert_eq!(seen, true_distance, "{query} {key}");
            }
        }
    }
    assert_eq!(extend.pass(64, 0), Pass::Far);
}

/// Leaky ReRoPE as two rotations: the far one with frequencies divided by the leak.
#[test]
fn a_leak_is_whole_positions_with_divided_frequencies() {
    let leaky = ReRope { window: 32, leak: Some(8) };
    let far = Rope { scaling: Scaling::Linear { factor: leaky.divisor(Pass::Far) as f64 }, ..Rope::new(16, 1e4) };
    let (query, key) = (1000, 3);
    for pair in 0..8 {
        let angle = far.angle(leaky.query(query, Pass::Far), pair) - far.angle(leaky.key(key, Pass::Far), pair);
        let want = leaky.distance(query, key) * Rope::new(16, 1e4).frequency(pair);
        assert!((angle - want).cos() > 1.0 - 1e-13, "pair {pair}");
    }
}

// ------------------------------------------------------------------------------------------- kernel against reference

/// Shards by tokens and by heads, and packed sequences, are the slices of one rotation, bit for bit.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn shards_on_the_device_are_slices_of_the_whole() {
    let (gpu, mut data) = (gpu(), Data::new(41));
    let (tokens, heads, dim) = (24, 6, 72);
    let row = heads * dim;
    let rope = Rope::new(64, 500_000.0);
    let plan = RopePlan::<bf16>::new(&gpu, &rope).expect("a plan");
    let x = data.values::<bf16>(tokens * row);
    let stream = gpu.stream();
    let rotate = |x: &[bf16], shape: Heads, positions: Positions<Ids>| {
        let mut buffer = Guarded::new(&gpu, x, 0);
        plan.rotate(shape.of_mut(&mut buffer.view()), None, positions).expect("a call");
        buffer.read(&gpu)
    };
    let whole: Vec<i64> = (0..tokens as i64).collect();
    let ids = stream.clone_htod(&whole).expect("a copy");
    let want = rotate(&x, Heads::thd(tokens, heads, dim), Positions::ids(&ids));

    for positions in (0..3).flat_map(|rank| [zigzag(tokens, 3, rank), striped(tokens, 3, rank)]) {
        let positions = positions.expect("a shard");
        let rows =
            |x: &[bf16]| positions.iter().flat_map(|&p| x[p as usize * row..][..row].to_vec()).collect::<Vec<_>>();
        let ids = stream.clone_htod(&positions).expect("a copy");
        assert_eq!(rotate(&rows(&x), Heads::thd(positions.len(), heads, dim), Positions::ids(&ids)), rows(&want));
    }
    for rank in 0..3 {
        let mine = head_shard(heads, 3, rank).expect("a shard");
        let shape = Heads::thd(tokens, mine.len(), dim).row(row).at(mine.start * dim);
        let got = rotate(&x, shape, Positions::ids(&ids));
        for (i, (&got, &x)) in got.iter().zip(&x).enumerate() {
            let inside = mine.contains(&(i % row / dim));
            assert_eq!(got, if inside { want[i] } else { x }, "rank {rank}, element {i}");
        }
    }
    // Packed: each sequence as alone, an empty one among them, whatever the others are.
    let ends = [0usize, 7, 7, 20, 24];
    let indptr = stream.clone_htod(&ends.map(|end| end as i32)).expect("a copy");
    let got = rotate(&x, Heads::thd(tokens, heads, dim), Positions::packed(&indptr, 4));
    for ends in ends.windows(2).filter(|ends| ends[0] < ends[1]) {
        let alone = &x[ends[0] * row..ends[1] * row];
        let ids = stream.clone_htod(&whole[..ends[1] - ends[0]]).expect("a copy");
        let alone = rotate(alone, Heads::thd(ends[1] - ends[0], heads, dim), Positions::ids(&ids));
        assert_eq!(got[ends[0] * row..ends[1] * row], alone);
    }
    let by_ids = stream.clone_htod(&packed(&ends).expect("packed")).expect("a copy");
    assert_eq!(got, rotate(&x, Heads::thd(tokens, heads, dim), Positions::ids(&by_ids)));
}

// ------------------------------------------------------------------------------------------------------------ refusals

#[test]
fn maps_that_make_no_sense_are_refused() {
    for (result, message) in [
        (zigzag(10, 2, 0).map(|_| ()), "sequence 0 has 10 tokens, it must be a multiple of twice the 2 ranks"),
        (zigzag(8, 2, 2).map(|_| ()), "rank is 2 of 2, it must be below the number of ranks"),
        (zigzag(8, 0, 0).map(|_| ()), "rank is 0 of 0, it must be below the number of ranks"),
        (
            zigzag(8, usize::MAX, 0).map(|_| ()),
            "sequence 0 has 8 tokens, it must be a multiple of twice the 18446744073709551615 ranks",
        ),
        (zigzag_packed(&[0, 8, 4], 1, 0).map(|_| ()), "indptr falls from 8 to 4 at 2"),
        (packed(&[1, 8]).map(|_| ()), "indptr must start at 0"),
        (packed(&[]).map(|_| ()), "indptr must start at 0"),
        (packed_from(&[0, 8], &[]).map(|_| ()), "starts holds 0 elements, indptr counts 1 sequences"),
        (striped(9, 2, 0).map(|_| ()), "there are 9 tokens, it must be a multiple of the 2 ranks"),
        (
            head_shard(6, 4, 0).map(|_| ()),
            "6 heads and 4 ranks do not go together, one must be a multiple of the other",
        ),
        (
            head_shard(0, 4, 0).map(|_| ()),
            "0 heads and 4 ranks do not go together, one must be a multiple of the other",
        ),
        (
            SelfExtend { group: 8, window: 4 }.check(),
            "Self-Extend's group is 8 and its window 4, the group must be at least 1 and at most the window",
        ),
        (ReRope { window: 0, leak: None }.check(), "ReRoPE's window is 0, it must be at least 1"),
        (ReRope { window: 4, leak: Some(0) }.check(), "ReRoPE's leak is 0, it must be at least 1"),
        (
            DualChunk { chunk: 8, local: 8 }.check(),
            "Dual Chunk's local is 8 and its chunk 8, local must be at least 0 and below the chunk",
        ),
    ] {
        assert_eq!(result.unwrap_err().to_string(), message);
    }
    // Positions are counted modulo 2^64, as kernels count them.
    assert_eq!(packed_from(&[0, 2], &[i64::MAX]).unwrap(), [i64::MAX, i64::MIN]);
}

#[test]
fn sequences_beyond_the_host_are_refused() {
    let want = "1099511627776 positions take 8796093022208 bytes on the host, at most 4294967296 are possible";
    let most = 1 << 40;
    for made in [zigzag(2 * most, 2, 0), striped(2 * most, 2, 1), packed(&[0, most]), packed_from(&[0, most], &[7])] {
        assert_eq!(made.unwrap_err().to_string(), want);
    }
}
