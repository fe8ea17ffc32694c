use half::{bf16, f16};
use posenc::accuracy::assert_close;
use posenc::bias::{DistanceGrad, KeyOnly, Sides, Slopes};
use posenc::{Alibi, Bias, BiasPlan, Logits, Places};

use crate::biases::{Context, Numbers, bits, double, golden};
use crate::support::{Guarded, gpu};

const HEADS: [usize; 6] = [1, 6, 12, 40, 71, 112];

// -------------------------------------------------------------------------------------------------------------- values

#[test]
fn slopes_are_those_of_the_paper() {
    // arXiv 2108.12409, section 3: 1/2, 1/4, ... 1/256 for 8 heads, 1/2^0.5, 1/2^1, ... 1/2^8 for 16.
    for head in 0..8 {
        assert_eq!(Alibi::new(8).slope(head), 0.5f64.powi(head as i32 + 1));
    }
    for head in 0..16 {
        assert_eq!(Alibi::new(16).slope(head), (-(head as f64 + 1.0) / 2.0).exp2());
    }
}

#[test]
fn hugging_face_agrees() {
    for case in golden()["alibi"].as_array().unwrap().iter().filter(|case| case["keys"].is_null()) {
        let heads = case["heads"].as_u64().unwrap() as usize;
        let alibi = Alibi::new(heads);
        let positions: Vec<i32> = (0..9).collect();
        let padded = [0, 0, 0, 1, 2, 3, 4, 5, 6];
        let near = |got: Vec<f32>, want: Vec<f32>, ulps: f32| {
            let (want, _context) = (double(&want), Context(|| format!("{heads} heads")));
            assert_close(&got, &want, |i| want[i].abs() * f64::from(ulps * f32::EPSILON));
        };
        // torch's f32 pow may be an ulp from the nearest; its product with the position rounds once more.
        near(KeyOnly::Bloom.row(&alibi, &positions).unwrap(), bits(&case["bloom_f32"]), 2.0);
        near(KeyOnly::Bloom.row(&alibi, &padded).unwrap(), bits(&case["bloom_padded_f32"]), 2.0);
        near(KeyOnly::Mpt.row(&alibi, &positions).unwrap(), bits(&case["mpt"]), 2.0);
        let other = Alibi { max_bias: 4.0, ..alibi };
        near(KeyOnly::Mpt.row(&other, &positions).unwrap(), bits(&case["mpt_bias_max_4"]), 2.0);
        let half: Vec<bf16> = KeyOnly::Bloom.row(&alibi, &positions).unwrap();
        assert_eq!(half.iter().map(|x| x.to_f32()).collect::<Vec<_>>(), bits(&case["bloom_bf16"]));
        assert_eq!(KeyOnly::Falcon.row::<f32>(&alibi, &positions).unwrap(), bits(&case["falcon"]));
    }
}

#[test]
fn falcon_and_bloom_agree_where_bf16_has_lost_the_integers() {
    let golden = golden();
    let case = golden["alibi"].as_array().unwrap().iter().find(|case| !case["keys"].is_null()).unwrap();
    let positions: Vec<i32> = (0..2049).collect();
    let alibi = Alibi::new(64).shard(0, 1);
    let falcon: Vec<f32> = KeyOnly::Falcon.row(&alibi, &positions).unwrap();
    assert_eq!(falcon, bits(&case["falcon_head_0"]));
    let bloom: Vec<bf16> = KeyOnly::Bloom.row(&alibi, &positions).unwrap();
    let bloom: Vec<f32> = bloom.iter().map(|x| x.to_f32()).collect();
    assert_eq!(bloom, bits(&case["bloom_bf16_head_0"]));
    // Of 2049 keys these tell apart that many, and the f32 form tells apart all.
    let distinct = |row: &[f32]| row.windows(2).filter(|pair| pair[0] != pair[1]).count() + 1;
    assert!(distinct(&falcon) < 700 && distinct(&bloom) < 700, "{} {}", distinct(&falcon), distinct(&bloom));
    assert_eq!(distinct(&KeyOnly::FlashAttention.row::<f32>(&alibi, &positions).unwrap()), 2049);
}

// ---------------------------------------------------------------------------------------------------------------- laws

#[test]
fn slopes_of_every_head_count_are_distinct_and_interleave() {
    for heads in 1..=256usize {
        let alibi = Alibi::new(heads);
        let mut slopes: Vec<f64> = (0..heads).map(|head| alibi.slope(head)).collect();
        assert!(slopes.iter().all(|&slope| slope > 0.0 && slope < 1.0));
        // The paper's series of the next power of two holds every slope.
        let next = heads.next_power_of_two();
        for &slope in &slopes {
            let step = -slope.log2() * next as f64 / 8.0;
            assert!((step - step.round()).abs() < 1e-9, "{heads} heads: {slope}");
        }
        slopes.sort_by(f64::total_cmp);
        assert!(slopes.windows(2).all(|pair| pair[0] < pair[1]), "{heads} heads");
    }
}

#[test]
fn the_papers_text_alone_is_off_by_45_at_12_heads() {
    let off = (0..12).map(|head| (Alibi::new(12).slope(head) * (8.0 * (head as f64 + 1.0) / 12.0).exp2()).log2().abs());
    // Head 8: 2^-0.5, and 2^-6 by the text.
    assert_eq!(off.fold(0.0, f64::max), 5.5);
}

#[test]
fn padded_shards_hold_the_models_slopes_and_zeros() {
    for sides in [Sides::Symmetric, Sides::Signed, Sides::Halves] {
        for (heads, ranks) in [(66, 8), (8, 8), (12, 5), (6, 8), (2, 1)] {
            let whole = Alibi { sides, ..Alibi::new(heads) };
            let slopes = whole.slopes().unwrap();
            let each = heads.div_ceil(ranks);
            for rank in 0..ranks {
                let part = whole.padded_shard(ranks, rank).unwrap();
                for head in 0..each {
                    for distance in [-3, 3] {
                        let own = rank * each + head;
                        let want = if own < heads { slopes.bias(0, own, distance) } else { 0.0 };
                        assert_eq!(part.bias(0, head, distance), want, "{heads} heads, rank {rank} of {ranks}");
                    }
                }
            }
        }
    }
    let text = |slopes: posenc::Result<_>| slopes.map(|_: posenc::bias::Slopes| ()).unwrap_err().to_string();
    assert_eq!(text(Alibi::new(66).padded_shard(8, 8)), "rank is 8 of 8, it must be below the number of ranks");
    assert_eq!(text(Alibi::new(66).shard(0, 33).padded_shard(2, 0)), "33 heads from head 0 are a shard of 66 already");
}

#[test]
fn shards_together_are_the_whole() {
    for heads in HEADS {
        for sides in [Sides::Symmetric, Sides::Signed, Sides::Halves] {
            let whole = Alibi { sides, max_bias: 6.0, scale: 0.75, ..Alibi::new(heads) };
            if sides == Sides::Halves && heads % 2 == 1 {
                assert!(whole.slopes().is_err());
                continue;
            }
            let all = whole.slopes().unwrap();
            for ranks in (1..=4).filter(|ranks| heads % ranks == 0) {
                let each = heads / ranks;
                let parts: Vec<_> = (0..ranks).map(|rank| whole.shard(rank * each, each).slopes().unwrap()).collect();
                let join =
                    |side: fn(&Slopes) -> &Vec<f32>| parts.iter().flat_map(|p| side(p).clone()).collect::<Vec<_>>();
                assert_eq!(join(|s| &s.left), all.left);
                assert_eq!(join(|s| &s.right), all.right);
            }
        }
    }
}

#[test]
fn sides_do_what_they_say() {
    let at = |sides, head, distance| Alibi { sides, ..Alibi::new(4) }.slopes().unwrap().bias(0, head, distance);
    // Slopes 1/4, 1/16, 1/64, 1/256; of two heads 1/16, 1/256.
    assert_eq!((at(Sides::Symmetric, 0, -8), at(Sides::Symmetric, 0, 8)), (-2.0, -2.0));
    assert_eq!((at(Sides::Signed, 0, -8), at(Sides::Signed, 0, 8)), (-2.0, 2.0));
    assert_eq!((at(Sides::Halves, 0, -8), at(Sides::Halves, 0, 8)), (-0.5, f64::NEG_INFINITY));
    assert_eq!((at(Sides::Halves, 2, -8), at(Sides::Halves, 2, 8)), (f64::NEG_INFINITY, -0.5));
    assert_eq!((at(Sides::Halves, 0, 0), at(Sides::Halves, 3, 0)), (0.0, 0.0));
}

#[test]
fn the_bound_holds_at_a_million_keys_and_peers_lose_distances() {
    let mut worst = 0.0f64;
    for heads in HEADS {
        let alibi = Alibi::new(heads);
        let slopes = alibi.slopes().unwrap();
        for head in 0..heads {
            for distance in [1i64, 257, 2049, 131_071, 1 << 20, (1 << 24) + 1, (1 << 30) + 1] {
                let want = -alibi.slope(head) * distance as f64;
                let got = f64::from(slopes.left[head] * -(distance as f32));
                // One rounding more than error_bound: that of the slope to f32.
                assert!(
                    (got - want).abs() <= 1.5 * Slopes::error_bound(want) * (1.0 + 1e-7),
                    "{heads} {head} {distance}"
                );
                if want > -104.0 {
                    worst = worst.max((got - want).abs());
                }
            }
        }
    }
    assert!(worst <= 2e-5, "{worst}");
    // A bias that is stored in half precision cannot tell these distances from their neighbours.
    assert_eq!(bf16::from_f32(-257.0).to_f32(), -256.0);
    assert_eq!(f16::from_f32(-2049.0).to_f32(), -2048.0);
    // A key-only form in f32: the step to the neighbour, a million keys out, is off by up to a sixteenth.
    let far = (1 << 20) as f32;
    let step = |slope: f32| ((slope * (far + 1.0) - slope * far) - slope).abs();
    let worst = (0..112).map(|head| step(Alibi::new(112).slope(head) as f32)).fold(0.0, f32::max);
    assert!((0.02..=0.0626).contains(&worst), "{worst}");
}

#[test]
fn the_gradient_of_slopes_is_that_of_finite_differences() {
    let shape = Logits::bhqk(2, 3, 4, 5);
    let mut numbers = Numbers(3);
    let weights: Vec<f32> = numbers.take(shape.elements().unwrap(), 1.0);
    let positions = Places::counted(1, 0);
    let loss = |left: &[f32], right: &[f32]| {
        let mut bias = vec![0.0f32; weights.len()];
        let slopes = Slopes::new(3, left, right).unwrap();
        Bias::Slopes(&slopes).write(&mut bias, &shape, &positions).unwrap();
        bias.iter().zip(&weights).map(|(b, w)| f64::from(*b) * f64::from(*w)).sum::<f64>()
    };
    let grad = DistanceGrad::new(&weights, &shape, &positions, -9..=9).unwrap();
    let grad = Slopes::grad(&grad);
    let zero = [0.0f32; 3];
    for head in 0..3 {
        // The bias is linear: a slope of 1 alone is its derivative.
        let mut one = zero;
        one[head] = 1.0;
        assert!((loss(&one, &zero) - grad.left[head]).abs() < 1e-9);
        assert!((loss(&zero, &one) - grad.right[head]).abs() < 1e-9);
    }
}

// ------------------------------------------------------------------------------------------------------------ refusals

#[test]
fn what_breaks_the_law_is_refused() {
    let text = |alibi: Alibi| alibi.slopes().unwrap_err().to_string();
    assert_eq!(text(Alibi::new(0)), "total_heads is 0, it must be at least 1");
    assert_eq!(text(Alibi { heads: 0, ..Alibi::new(4) }), "heads is 0, it must be at least 1");
    assert_eq!(
        text(Alibi::new(12).shard(8, 8)),
        "ALiBi's shard of 8 heads from head 8 lies outside a model of 12 heads"
    );
    assert_eq!(
        text(Alibi { sides: Sides::Halves, ..Alibi::new(71) }),
        "total_heads is 71, Sides::Halves needs an even number"
    );
    assert_eq!(text(Alibi { max_bias: 0.0, ..Alibi::new(1) }), "max_bias is 0, it must be finite and above 0");
    assert_eq!(text(Alibi { scale: f64::NAN, ..Alibi::new(1) }), "scale is NaN, it must be finite and above 0");
    let text = |heads, left: &[f32], right: &[f32]| Slopes::new(heads, left, right).unwrap_err().to_string();
    assert_eq!(text(2, &[1.0, f32::NAN], &[1.0, 1.0]), "the left slope 1 is NaN");
    assert_eq!(text(0, &[], &[]), "slopes have 0 heads, there must be at least 1");
    assert_eq!(
        text(2, &[1.0; 3], &[1.0; 3]),
        "slopes hold 3 on the left and 3 on the right, both must hold 2 heads for each of 1 sequences"
    );
    let short = Slopes { batch: 2, ..Slopes::symmetric(1, &[1.0]).unwrap() };
    let error =
        Bias::Slopes(&short).write(&mut [0.0f32; 2], &Logits::bhqk(2, 1, 1, 1), &Places::counted(0, 0)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "slopes hold 1 on the left and 1 on the right, both must hold 1 heads for each of 2 sequences"
    );
    // The ends of positions, whose difference has 33 bits.
    let row: Vec<f32> = KeyOnly::Mpt.row(&Alibi::new(1), &[i32::MAX, i32::MIN]).unwrap();
    assert_eq!(row, [(1u64 << 32) as f32 / 256.0, 0.0]);
}

/// Padding has the position of the first token; the query's own plays no part.
#[test]
#[ignore = "needs a device: cargo xtask test"]
fn the_key_only_form_takes_positions_one_by_one() {
    let gpu = gpu();
    let alibi = Alibi { sides: Sides::Signed, ..Alibi::new(6) };
    let positions: Vec<i32> = (0..21).map(|key| (key - 4).max(0)).collect();
    let want: Vec<f32> = KeyOnly::FlashAttention.row(&alibi, &positions).unwrap();
    let keys = gpu.stream().clone_htod(&positions).unwrap();
    let shape = Logits::bhqk(1, 6, 2, 21);
    let (slopes, row) = (alibi.slopes().unwrap(), KeyOnly::FlashAttention.bias(&alibi, 17).unwrap());
    for bias in [Bias::Slopes(&slopes), Bias::Toeplitz(&row)] {
        let mut out = Guarded::<f32>::poisoned(&gpu, shape.elements().unwrap(), 0);
        let plan = BiasPlan::<f32>::key_only(&gpu, bias).unwrap();
        plan.write(shape.of_mut(&mut out.view()), Places::counted(7, 0).key_positions(&keys)).unwrap();
        let got = out.read(&gpu);
        for (row, got) in got.chunks(21).enumerate() {
            assert_eq!(got, &want[row / 2 * 21..][..21], "{bias:?}, row {row}");
        }
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn what_breaks_the_key_only_form_is_refused() {
    let gpu = gpu();
    let row = KeyOnly::FlashAttention.bias(&Alibi::new(1), 8).unwrap();
    let plan = BiasPlan::<f32>::key_only(&gpu, Bias::Toeplitz(&row)).unwrap();
    let mut out = gpu.stream().clone_htod(&[0.0f32; 9]).unwrap();
    let error = plan.write(Logits::bhqk(1, 1, 1, 9).of_mut(&mut out), Places::bottom_right()).unwrap_err();
    assert_eq!(error.to_string(), "the call has 9 keys from 0, the row of the bias holds 0 to 7");
    let error = BiasPlan::<f32>::key_only(&gpu, Bias::None).err().unwrap();
    assert_eq!(error.to_string(), "a key-only bias is made of slopes or of a row");
}
