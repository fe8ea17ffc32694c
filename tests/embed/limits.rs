//! Numbers that no call can have end at once, in a sentence that names them.

use posenc::embed::{GridSize, Resample, Sinusoid};
use posenc::{LearnedGradPlan, ResamplePlan, Result, SinusoidPlan, TimestepPlan, Tokens};

use crate::support::gpu;

fn refused<V>(got: Result<V>, want: &str) {
    assert_eq!(got.map(|_| ()).unwrap_err().to_string(), want);
}

#[test]
fn sizes_beyond_any_model_are_refused() {
    for dim in [65537, 1 << 22, u32::MAX as usize] {
        let want = format!("dim is {dim}, a sinusoid has at most 65536 channels");
        refused(Sinusoid::new(dim).check(), &want);
    }
    for rows in [65537, 1 << 40, 1 << 62] {
        let (table, grid) = (GridSize::image(14, 1), GridSize::image(rows, 1));
        let want = format!("the grid has {rows} rows and 1 columns, a resampling takes at most 65536 of both");
        refused(Resample::new(table, grid).check(), &want);
        refused(Resample::new(grid, table).check(), &want);
    }
}

#[test]
fn the_transpose_of_a_large_resampling_is_made_at_once() {
    let spec = Resample::new(GridSize::image(65536, 1), GridSize::image(65535, 1));
    assert_eq!([false, true].map(|transposed| spec.most_taps(transposed)), [5, 5]);
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn plans_of_sizes_beyond_any_model_are_refused() {
    let gpu = gpu();
    let want = "dim is 4194304, a sinusoid has at most 65536 channels";
    refused(SinusoidPlan::<f32>::new(&gpu, &Sinusoid::new(1 << 22)), want);
    refused(TimestepPlan::<f32>::new(&gpu, &Sinusoid::new(1 << 22)), want);
    let resample = |rows| Resample::new(GridSize::image(14, 1), GridSize::image(rows, 1));
    refused(
        ResamplePlan::<f32>::new(&gpu, &resample(1 << 40)),
        "the grid has 1099511627776 rows and 1 columns, a resampling takes at most 65536 of both",
    );
    // Every output reads the first entry.
    let one_place =
        Resample { factors: Some([1e300, 1.0]), ..Resample::new(GridSize::image(65536, 1), GridSize::image(65536, 1)) };
    refused(
        ResamplePlan::<f32>::new(&gpu, &one_place),
        "4294967296 weights of a resampling take 17179869184 bytes on the host, at most 4294967296 are possible",
    );
    let learned = posenc::Learned::new(8);
    refused(
        LearnedGradPlan::<f32>::new(&gpu, &learned, Tokens::new(usize::MAX, usize::MAX, 8)),
        "device memory (18446744073709551615 x 4) does not fit into 63 bits",
    );
    refused(
        LearnedGradPlan::<f32>::new(&gpu, &learned, Tokens::new(1, 1 << 40, 8)),
        "cuMemAllocAsync failed: CUDA_ERROR_OUT_OF_MEMORY: out of memory, for 4672924418048 bytes",
    );
}
