//! Matrix instructions, every shape that is supported, with fragments laid out as the PTX manual draws them.

// launches are unsafe; here every kernel gets the buffers that it was written for
#![allow(clippy::undocumented_unsafe_blocks, clippy::needless_range_loop)]

mod support;

use cudarc::driver::PushKernelArg;
use half::{bf16, f16};
use support::{Machine, shape};

support::gpu_twins!(products_of_every_shape, matrices_through_shared_memory);

/// A warp's kernel: `%l` is the lane, `n` words of each lane are loaded into `%r0..` from `in[32 * i + lane]`, and the
/// words `%o0..` are stored in the same way.
fn kernel(inputs: usize, outputs: usize, body: &str) -> String {
    let mut text = format!(
        ".version 7.8\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 in, .param .u64 out)\n{{\n\
         .reg .b32 %r<{inputs}>, %o<{outputs}>, %t<8>, %l;\n.reg .b64 %in, %out, %x;\n.shared .align 16 .b8 s[2048];\n\
         ld.param.u64 %in, [in];\nld.param.u64 %out, [out];\nmov.u32 %l, %laneid;\nmul.wide.u32 %x, %l, 4;\n\
         add.u64 %in, %in, %x;\nadd.u64 %out, %out, %x;\n"
    );
    for i in 0..inputs {
        text += &format!("ld.global.b32 %r{i}, [%in+{}];\n", 128 * i);
    }
    text += body;
    for i in 0..outputs {
        text += &format!("st.global.b32 [%out+{}], %o{i};\n", 128 * i);
    }
    text + "ret;\n}\n"
}

/// Registers of all lanes after a kernel.
fn run(m: &Machine, text: &str, inputs: &[[u32; 32]], outputs: usize) -> Vec<Vec<u32>> {
    let f = m.kernel(text, "k");
    let x = m.stream.clone_htod(&inputs.concat()).unwrap();
    let mut y = m.stream.alloc_zeros::<u32>(32 * outputs).unwrap();
    unsafe { m.stream.launch_builder(&f).arg(&x).arg(&mut y).launch(shape(1, 32, 0)) }.unwrap();
    m.read(&y).chunks(32).map(<[u32]>::to_vec).collect()
}

fn names(letter: char, from: usize, count: usize) -> String {
    let list: Vec<String> = (from..from + count).map(|i| format!("%{letter}{i}")).collect();
    format!("{{{}}}", list.join(", "))
}

#[test]
fn products_of_every_shape() {
    let m = Machine::new();
    for (inner, ty, half_sum) in [
        (8, "f16", false),
        (16, "f16", false),
        (8, "f16", true),
        (16, "f16", true),
        (8, "bf16", false),
        (16, "bf16", false),
        (4, "tf32", false),
        (8, "tf32", false),
    ] {
        // small whole numbers: exact in every format and every order of summation
        let a = |row: usize, k: usize| ((row * 7 + k * 5) % 13) as f32 - 6.0;
        let b = |k: usize, column: usize| ((k * 3 + column * 11) % 9) as f32 - 4.0;
        let c = |row: usize, column: usize| (row * 8 + column) as f32 - 60.0;
        let bits = |v: f32| match ty {
            "f16" => u32::from(f16::from_f32(v).to_bits()),
            "bf16" => u32::from(bf16::from_f32(v).to_bits()),
            _ => v.to_bits(),
        };
        let per = if ty == "tf32" { 1 } else { 2 };
        // element i of a lane's fragment, as in the manual: group and place in it
        let (na, nb) = (16 * inner / 32, 8 * inner / 32);
        let step = 4 * per;
        let place_a = |lane: usize, i: usize| {
            let (group, own) = (lane / 4, lane % 4);
            (group + i / per % 2 * 8, own * per + i % per + i / (2 * per) * step)
        };
        let place_b = |lane: usize, i: usize| (lane % 4 * per + i % per + i / per * step, lane / 4);
        let place_c = |lane: usize, i: usize| (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
        let word = |n: usize, f: &dyn Fn(usize) -> u32| (0..n).fold(0, |w, i| w | f(i) << (16 * i));
        let mut inputs: Vec<[u32; 32]> = Vec::new();
        for w in 0..na / per {
            inputs.push(std::array::from_fn(|lane| {
                word(per, &|i| {
                    let (row, k) = place_a(lane, w * per + i);
                    bits(a(row, k))
                })
            }));
        }
        for w in 0..nb / per {
            inputs.push(std::array::from_fn(|lane| {
                word(per, &|i| {
                    let (k, column) = place_b(lane, w * per + i);
                    bits(b(k, column))
                })
            }));
        }
        let nc = if half_sum { 2 } else { 4 };
        for w in 0..nc {
            inputs.push(std::array::from_fn(|lane| {
                let at = |i| {
                    let (row, column) = place_c(lane, i);
                    c(row, column)
                };
                if half_sum { word(2, &|i| bits(at(2 * w + i))) } else { at(w).to_bits() }
            }));
        }
        let (ra, rb) = (na / per, nb / per);
        let sum = if half_sum { "f16" } else { "f32" };
        let text = kernel(
            inputs.len(),
            nc,
            &format!(
                "mma.sync.aligned.m16n8k{inner}.row.col.{sum}.{ty}.{ty}.{sum} {}, {}, {}, {};\n",
                names('o', 0, nc),
                names('r', 0, ra),
                names('r', ra, rb),
                names('r', ra + rb, nc)
            ),
        );
        let d = run(&m, &text, &inputs, nc);
        for lane in 0..32 {
            for i in 0..4 {
                let (row, column) = place_c(lane, i);
                let want: f32 = c(row, column) + (0..inner).map(|k| a(row, k) * b(k, column)).sum::<f32>();
                let got = if half_sum {
                    f16::from_bits((d[i / 2][lane] >> (16 * (i % 2))) as u16).to_f32()
                } else {
                    f32::from_bits(d[i][lane])
                };
                assert_eq!(got, want, "m16n8k{inner} of {ty} to {sum}: row {row}, column {column}");
            }
        }
    }
}

#[test]
fn matrices_through_shared_memory() {
    let m = Machine::new();
    for n in [1usize, 2, 4] {
        for (stores, loads) in [(false, false), (true, false), (false, true), (true, true)] {
            // matrix i, row r, column c is 1000 * i + 8 * r + c in 16 bits; a lane holds two neighbours of a row
            let element = |i: usize, r: usize, c: usize| (1000 * i + 8 * r + c) as u32;
            let inputs: Vec<[u32; 32]> = (0..n)
                .map(|i| {
                    std::array::from_fn(|lane| {
                        let (r, c) = (lane / 4, lane % 4 * 2);
                        element(i, r, c) | element(i, r, c + 1) << 16
                    })
                })
                .collect();
            let (ts, tl) = (if stores { ".trans" } else { "" }, if loads { ".trans" } else { "" });
            // rows of 16 bytes, 48 bytes apart, matrices 384 bytes apart
            let body = format!(
                "mov.u32 %t0, s;\nshr.u32 %t1, %l, 3;\nand.b32 %t2, %l, 7;\nmad.lo.u32 %t0, %t1, 384, %t0;\n\
                 mad.lo.u32 %t0, %t2, 48, %t0;\n\
                 stmatrix.sync.aligned.m8n8.x{n}{ts}.shared.b16 [%t0], {};\nbar.warp.sync -1;\n\
                 ldmatrix.sync.aligned.m8n8.x{n}{tl}.shared.b16 {}, [%t0];\n\
                 movmatrix.sync.aligned.m8n8.trans.b16 %o{n}, %r0;\n",
                names('r', 0, n),
                names('o', 0, n)
            );
            let d = run(&m, &kernel(n, n + 1, &body), &inputs, n + 1);
            for lane in 0..32 {
                let (r, c) = (lane / 4, lane % 4 * 2);
                let turned = |i, r, c| if stores != loads { element(i, c, r) } else { element(i, r, c) };
                for (i, d) in d[..n].iter().enumerate() {
                    assert_eq!(d[lane], turned(i, r, c) | turned(i, r, c + 1) << 16, "x{n}{ts}{tl} lane {lane}");
                }
                assert_eq!(d[n][lane], element(0, c, r) | element(0, c + 1, r) << 16, "movmatrix lane {lane}");
            }
        }
    }
}
