//! Times of peers' kernels that were published: what the model says of the same calls.

use posenc_benches::support::model::{self, H200, Work};

/// Case, peer, microseconds: sgl-project/sglang#18844, from one kernel of a graph to the next, data in the L2 cache. The device is
/// not named; its bandwidth is that of an H200.
const TIMES: [(&str, &str, f64); 18] = [
    ("rope/llama-3-70b-tp8/1", "FlashInfer table", 1.466),
    ("rope/llama-3-70b-tp8/8", "FlashInfer table", 1.495),
    ("rope/llama-3-70b-tp8/64", "FlashInfer table", 1.571),
    ("rope/llama-3-70b-tp8/256", "FlashInfer table", 1.856),
    ("rope/llama-3-70b-tp8/512", "FlashInfer table", 2.150),
    ("rope/llama-3-70b-tp8/1024", "FlashInfer table", 2.682),
    ("rope/llama-3-70b-tp8/2048", "FlashInfer table", 3.903),
    ("rope/llama-3-70b-tp8/4096", "FlashInfer table", 6.068),
    ("rope/llama-3-70b-tp8/8192", "FlashInfer table", 10.199),
    ("rope/llama-3-70b-tp8/1", "SGLang", 1.051),
    ("rope/llama-3-70b-tp8/8", "SGLang", 1.095),
    ("rope/llama-3-70b-tp8/64", "SGLang", 1.163),
    ("rope/llama-3-70b-tp8/256", "SGLang", 1.448),
    ("rope/llama-3-70b-tp8/512", "SGLang", 1.852),
    ("rope/llama-3-70b-tp8/1024", "SGLang", 2.621),
    ("rope/llama-3-70b-tp8/2048", "SGLang", 3.858),
    ("rope/llama-3-70b-tp8/4096", "SGLang", 4.612),
    ("rope/llama-3-70b-tp8/8192", "SGLang", 6.558),
];

/// Launches of SGLang overlap with what follows: while a grid has about a block a multiprocessor, and less and less above.
const OVERLAPS: &str = "SGLang";
const GAIN: f64 = 0.63;

/// The predicted time over the published one of a call, where there is one.
pub fn ratio(case: &str, peer: &str, works: &[Work]) -> Option<f64> {
    let (.., published) = TIMES.iter().find(|(of, by, _)| *of == case && *by == peer)?;
    let work = works.first()?;
    let share = (1.2 * f64::from(H200.multiprocessors) / work.blocks as f64).min(1.0);
    let gain = if peer == OVERLAPS { GAIN * share } else { 0.0 };
    Some((model::predict(works, &H200, true).time - gain) / published)
}

/// How far predictions are from published times, in a sentence.
pub fn summary(mut ratios: Vec<f64>) -> String {
    let n = ratios.len();
    let error = |ratio: &f64| ratio.ln().abs();
    ratios.sort_by(|a, b| error(a).total_cmp(&error(b)));
    let at =
        |share: f64| ratios.get((n as f64 * share) as usize).map_or(0.0, |ratio| 100.0 * (error(ratio).exp() - 1.0));
    format!(
        "{n} published times: the predicted ones are off by {:.0} % in the median, {:.0} % at nine of ten",
        at(0.5),
        at(0.9)
    )
}
