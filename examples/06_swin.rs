//! A shifted window of Swin: the table's bias and the mask, fused with the softmax; on the CPU, and on a GPU if there is one.
//!
//! `cargo run --example 06_swin`

use anyhow::Result;
use posenc::accuracy::assert_close;
use posenc::attend::{DeviceBias, DeviceInputs, HostInputs};
use posenc::bias::{DeviceTermInputs, Numbers, ShiftedWindows, Term, TermInputs, Terms, Window};
use posenc::{Bias, Error, Gpu, Logits, Places, Softmax, SoftmaxPlan};

pub(crate) fn main() -> Result<()> {
    // swin-tiny's first stage: an image of 56 x 56 tokens in windows of 7 x 7, shifted by 3; 3 heads.
    let (heads, window) = (3, Window::swin(7, 7));
    let image = ShiftedWindows { height: 56, width: 56, window: [7, 7], shift: [3, 3] };
    assert_eq!((window.entries(), image.windows(), image.tokens()), (169, 64, 49));
    // Only the windows of the last row and column bring tokens of two regions together.
    assert!(image.apart(63, 0, 48) && image.apart(7, 0, 6) && !image.apart(0, 0, 48));

    // The table as the model stores it, [169, heads].
    let table: Vec<f32> = (0..169 * heads).map(|i| (i % 13) as f32 / 8.0 - 0.75).collect();
    let terms = [Term::table(window), Term::shifted(image, -100.0)];
    let shape = Logits::bhqk(image.windows(), heads, 49, 49);
    let logits: Vec<f32> = (0..shape.elements()?).map(|i| ((i * 37) % 101) as f32 / 25.0 - 2.0).collect();

    let inputs = [TermInputs::of((&table[..], Numbers::table(169, heads))), TermInputs::default()];
    let bias = Bias::Terms(Terms { terms: &terms, inputs: &inputs });
    let softmax = Softmax::new(1.0 / 32f32.sqrt());
    let inputs = HostInputs { bias, ..HostInputs::at(Places::counted(0, 0)) };
    let mut p = logits.clone();
    softmax.apply(&mut p, &shape, &inputs)?;
    assert!(p[shape.index(63, 0, 0, 48)] < 1e-30);
    let expected = softmax.expect(&logits, &shape, &inputs)?;

    let gpu = match Gpu::open(0) {
        Ok(gpu) => gpu,
        Err(error @ (Error::NoDevice(_) | Error::NoKernels)) => {
            println!("computed on the CPU; {error}");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let stream = gpu.stream();
    let plan = SoftmaxPlan::<f32>::new(&gpu, &softmax, &terms)?;
    let (mut x, table) = (stream.clone_htod(&logits)?, stream.clone_htod(&table)?);
    let inputs = [DeviceTermInputs::of(Numbers::table(169, heads).of(&table)), DeviceTermInputs::default()];
    plan.apply(shape.of_mut(&mut x), &DeviceInputs { bias: DeviceBias::terms(&inputs), ..Default::default() })?;
    assert_close(&stream.clone_dtoh(&x)?, &expected.want, |i| expected.bound[i]);
    println!("64 windows of 49 tokens with bias and mask in one kernel, on {gpu:?}");
    Ok(())
}
