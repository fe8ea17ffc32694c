//! The device header in somebody else's kernel.

use cudarc::driver::{LaunchConfig, PushKernelArg};
use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use posenc::accuracy::assert_close;
use posenc::bias::{DEVICE_HEADER, Distances, Window};
use posenc::{Alibi, Bias, T5Bias};

use crate::biases::fire;
use crate::support::{Data, gpu, nvrtc};

// One block a query, one thread a key: three biases of one head and two entries of tables.
const KERNEL: &str = r#"
extern "C" __global__ void foreign(float slope, const float* row, int first, int count, const float* logs, int logs_count,
                                   float least_norm, float eps, const float* breaks, unsigned break_count,
                                   const float* slopes, const float* intercepts, int query_start, float* out) {
    int query = query_start + blockIdx.x;
    int distance = static_cast<int>(threadIdx.x) - query;
    float factor = posenc_fire_factor(logs, logs_count, least_norm, eps, query);
    float input = posenc_fire_input(logs, logs_count, factor, distance);
    float* at = out + 5 * (blockIdx.x * blockDim.x + threadIdx.x);
    at[3] = static_cast<float>(posenc_distance_entry(-distance, 0, 99, true));
    int own = query % 12, other = threadIdx.x % 12;
    at[4] = static_cast<float>(posenc_window_entry(own / 4 - other / 4, own % 4 - other % 4, 3, 4));
    at[0] = posenc_alibi(slope, slope, distance);
    at[1] = posenc_toeplitz(row, first, count, distance);
    at[2] = posenc_fire(breaks, break_count, slopes, intercepts, input);
}
"#;

#[test]
fn the_header_includes_nothing_and_names_its_functions() {
    assert!(!DEVICE_HEADER.contains("#include"));
    for name in ["posenc_alibi", "posenc_toeplitz", "posenc_fire_factor", "posenc_fire_input", "posenc_fire"] {
        assert!(DEVICE_HEADER.contains(&format!("float {name}(")), "{name}");
    }
    for name in ["posenc_distance_entry", "posenc_window_entry"] {
        assert!(DEVICE_HEADER.contains(&format!("int {name}(")), "{name}");
    }
}

#[test]
#[ignore = "needs a device: cargo xtask test"]
fn a_foreign_kernel_computes_the_reference() {
    let gpu = gpu();
    if !nvrtc() {
        println!("not run: libnvrtc.so.12 is neither in the folder POSENC_NVRTC nor in the loader's path");
        return;
    }
    let (heads, head, queries, keys, start) = (12, 7, 5, 300, 250);
    let slopes = Alibi::new(heads).slopes().unwrap();
    let row = T5Bias::new(32, 128, true).row(&Data::new(1).values::<f32>(32 * heads), heads).unwrap();
    let fire = fire(heads, 8, 5);
    let lines = fire.lines().unwrap();
    let logs = fire.logs(1000).unwrap();

    let options = CompileOptions {
        arch: Some(if gpu.capability().0 >= 8 { "sm_80" } else { "sm_75" }),
        options: vec!["--std=c++17".into(), "--fmad=false".into()],
        ..CompileOptions::default()
    };
    let ptx = compile_ptx_with_opts(format!("{DEVICE_HEADER}{KERNEL}"), options).expect("NVRTC takes the kernel");
    let stream = gpu.stream();
    let function = stream.context().load_module(ptx).expect("loads").load_function("foreign").expect("its entry");
    let upload = |values: &[f32]| stream.clone_htod(values).expect("uploads");
    let count = lines.breaks.len() + 1;
    let own = head * count..(head + 1) * count;
    let distances = row.distances();
    let (row_gpu, logs_gpu, breaks) =
        (upload(&row.values[head * distances..(head + 1) * distances]), upload(&logs), upload(&lines.breaks));
    let (line_slopes, intercepts) = (upload(&lines.slopes[own.clone()]), upload(&lines.intercepts[own]));
    let mut out = upload(&vec![f32::NAN; 5 * queries * keys]);
    let (slope, first, distances) = (slopes.left[head], row.first as i32, distances as i32);
    let (logs_count, least_norm, eps, break_count) =
        (logs.len() as i32, fire.least_norm(), fire.eps as f32, lines.breaks.len() as u32);
    let config = LaunchConfig { grid_dim: (queries as u32, 1, 1), block_dim: (keys as u32, 1, 1), shared_mem_bytes: 0 };
    let mut launch = stream.launch_builder(&function);
    launch.arg(&slope).arg(&row_gpu).arg(&first).arg(&distances).arg(&logs_gpu).arg(&logs_count);
    launch.arg(&least_norm).arg(&eps).arg(&breaks).arg(&break_count).arg(&line_slopes).arg(&intercepts);
    launch.arg(&start).arg(&mut out);
    // SAFETY: the arguments are those of the kernel above, and every buffer holds what it reaches.
    unsafe { launch.launch(config) }.expect("launches");
    let got = stream.clone_dtoh(&out).expect("downloads");

    let biases = [Bias::Slopes(&slopes), Bias::Toeplitz(&row), Bias::Fire(&fire)];
    let (mut want, mut bound) = (Vec::new(), Vec::new());
    for (query, key) in (0..queries).flat_map(|query| (0..keys).map(move |key| (query, key))) {
        let (query, key) = (i64::from(start) + query as i64, key as i64);
        for bias in biases {
            want.push(bias.at(0, head, query, key));
            bound.push(bias.error_bound(0, head, query, key));
        }
        want.push(Distances::inkling(99).entry(query, key).map_or(-1.0, |entry| entry as f64));
        want.push(Window::swin(3, 4).entry(query % 12, key % 12).unwrap() as f64);
        bound.extend([0.0, 0.0]);
    }
    assert_close(&got, &want, |i| bound[i]);
}
