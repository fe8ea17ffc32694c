//! What the compiler made of the kernels: arguments, registers, stacks, access widths, machine instructions, loads on their way
//! together. Needs the images, no device.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use object::{Object, ObjectSection, ObjectSymbol};
use posenc::gpu::{FieldLayout, Image, Images, images, kernels};

#[path = "../benches/support/sass.rs"]
#[allow(dead_code, reason = "benches read more out of machine code")]
mod sass;

/// The struct that kernel `entry` of `file` takes: its size and fields, from the list of kernels.
fn struct_of(file: &str, entry: &str) -> (usize, Vec<FieldLayout>) {
    let stem = entry.rsplit_once('_').map_or(entry, |(stem, _)| stem);
    let listed = kernels().into_iter().find(|kernel| kernel.file == file && kernel.entry == stem);
    let listed = listed.unwrap_or_else(|| panic!("{entry} of {file} is not in the list of kernels"));
    (listed.size, listed.fields)
}

/// Names of the kernels in a PTX text.
fn entries(ptx: &str) -> Vec<&str> {
    ptx.split(".visible .entry ").skip(1).filter_map(|rest| rest.split('(').next()).collect()
}

fn all_ptx() -> impl Iterator<Item = (&'static Images, u32, String)> {
    images().iter().flat_map(|images| images.ptx.iter().map(move |image| (images, image.sm, ptx(image))))
}

fn ptx(image: &Image) -> String {
    String::from_utf8(image.bytes()).expect("PTX is text")
}

/// Every kernel of the list is in the image of every architecture, and no other.
#[test]
fn images_hold_the_kernels_of_the_list() {
    for (images, sm, text) in all_ptx() {
        let mut found = entries(&text);
        let mut listed: Vec<String> = kernels()
            .iter()
            .filter(|kernel| kernel.file == images.file)
            .map(|kernel| format!("{}_{}", kernel.entry, images.dtype))
            .collect();
        found.sort_unstable();
        listed.sort_unstable();
        assert_eq!(found, listed, "{} for {} and sm_{sm}", images.file, images.dtype);
    }
}

#[test]
fn parameters_have_the_size_of_their_struct_and_are_read_field_by_field() {
    for (images, sm, text) in all_ptx() {
        for entry in entries(&text) {
            let (size, fields) = struct_of(images.file, entry);
            let parameter = format!("{entry}_param_0");
            let declared = text.split(&format!(".b8 {parameter}[")).nth(1).and_then(|rest| rest.split(']').next());
            assert_eq!(declared, Some(size.to_string().as_str()), "{entry} of {} for sm_{sm}", images.file);
            let body = text.split(&format!(".entry {entry}(")).nth(1).expect("its body");
            for line in body.lines().take_while(|line| *line != "}").filter(|line| line.contains("ld.param")) {
                // ld.param.v2.u32 {%r1, %r2}, [name_param_0+176];
                let Some(rest) = line.split(&format!("[{parameter}")).nth(1) else { continue };
                let offset: usize =
                    rest.trim_start_matches('+').split(']').next().map_or(0, |n| n.parse().unwrap_or(0));
                let opcode = line.split_whitespace().next().expect("an opcode");
                let bits: usize = opcode.rsplit('.').next().expect("a type")[1..].parse().expect("bits");
                let count = if opcode.contains(".v2") {
                    2
                } else if opcode.contains(".v4") {
                    4
                } else {
                    1
                };
                for i in 0..count {
                    let (from, to) = (offset + i * bits / 8, offset + (i + 1) * bits / 8);
                    let inside = fields.iter().any(|f| f.offset <= from && to <= f.offset + f.size);
                    assert!(inside, "{entry} reads bytes {from}..{to}, which are no field: {line}");
                }
            }
        }
    }
}

/// Registers and stack bytes of each kernel, from the attributes that ptxas writes.
fn resources(cubin: &[u8]) -> BTreeMap<String, (u32, u32)> {
    let file = object::File::parse(cubin).expect("a cubin is an ELF file");
    let info = file.section_by_name(".nv.info").expect("attributes").data().expect("bytes").to_vec();
    let names: BTreeMap<usize, String> =
        file.symbols().map(|symbol| (symbol.index().0, symbol.name().unwrap_or_default().to_string())).collect();
    let word = |at: usize| u32::from_le_bytes(info[at..at + 4].try_into().expect("4 bytes"));
    let mut found = BTreeMap::<String, (u32, u32)>::new();
    let mut at = 0;
    while at + 4 <= info.len() {
        let (format, attribute) = (info[at], info[at + 1]);
        let size = u16::from_le_bytes([info[at + 2], info[at + 3]]) as usize;
        // Format 4 carries `size` bytes; here a symbol and a value. 0x2f counts registers, 0x11 bytes of stack frame.
        if format == 4 && (attribute == 0x2f || attribute == 0x11) {
            let name = names.get(&(word(at + 4) as usize)).expect("a symbol").clone();
            let kernel = found.entry(name).or_default();
            *(if attribute == 0x2f { &mut kernel.0 } else { &mut kernel.1 }) = word(at + 8);
        }
        at += 4 + if format == 4 { size } else { 0 };
    }
    found
}

/// Every architecture that has machine code of its own.
const ALL: [u32; 5] = [75, 80, 90, 100, 120];

/// Those that this build is for: POSENC_ARCHS may leave some out.
fn architectures() -> Vec<u32> {
    let cubins = images().iter().flat_map(|images| images.cubins);
    cubins.map(|image| image.sm).collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}

/// What a kernel may not get worse in: registers, stack, machine instructions; wide loads and stores, bytes of a thread's loads that
/// are on their way together.
#[derive(Clone, Copy)]
struct Row {
    most: [u32; 3],
    least: [u32; 3],
}

/// One line for each kernel. Without nvdisasm, machine instructions and bytes on their way are 0.
fn measured(nvdisasm: Option<&Path>) -> BTreeMap<String, Row> {
    let mut rows = BTreeMap::new();
    for images in images() {
        for cubin in images.cubins {
            let sm = cubin.sm;
            let text = images.ptx.iter().find(|image| image.sm == sm).map(ptx);
            let code =
                nvdisasm.map(|nvdisasm| sass::disassemble(nvdisasm, &cubin.bytes()).expect("nvdisasm reads a cubin"));
            // A name in dollar signs is a routine of the compiler's own, a division or a root.
            let kernels = resources(&cubin.bytes()).into_iter().filter(|(entry, _)| !entry.starts_with('$'));
            for (entry, (registers, stack)) in kernels {
                let body = text.as_deref().and_then(|text| text.split(&format!(".entry {entry}(")).nth(1));
                let body = body.and_then(|body| body.split(".entry ").next()).unwrap_or_default();
                let wide = |opcode: &str| {
                    body.lines()
                        .filter(|line| {
                            line.contains(opcode)
                                && (line.contains(".v4.u32")
                                    || line.contains(".v4.b32")
                                    || line.contains(".v4.f32")
                                    || line.contains(".v2.u64")
                                    || line.contains(".v2.b64"))
                        })
                        .count() as u32
                };
                let code = code.as_ref().map(|code| (code[&entry].instructions, code[&entry].in_flight));
                let (instructions, in_flight) = code.unwrap_or_default();
                let (most, least) =
                    ([registers, stack, instructions], [wide("ld.global"), wide("st.global"), in_flight]);
                rows.insert(format!("{},{entry},{sm}", images.file), Row { most, least });
            }
        }
    }
    rows
}

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/artifact.csv");
const HEADER: &str = "file,entry,sm,registers,stack,sass_instructions,wide_loads,wide_stores,bytes_in_flight";
/// Machine code may grow by this part of itself: what it costs is in `benches/tests/counts.csv`.
const GROWTH: u32 = 50;

/// No kernel spills or keeps a stack, needs more registers, has fewer 16-byte accesses, fewer bytes of loads on their way together or
/// more than a fiftieth more machine code than the committed table says.
///
/// With POSENC_BLESS=1 the table is written instead, by a build for all architectures. It holds for the pinned NVRTC.
#[test]
#[ignore = "needs the pinned NVRTC and nvdisasm: cargo xtask test"]
fn no_kernel_is_worse_than_the_table() {
    let nvdisasm = std::env::var_os("POSENC_NVDISASM").expect("POSENC_NVDISASM is set by cargo xtask test");
    let rows = measured(Some(nvdisasm.as_ref()));
    let built = architectures();
    if std::env::var_os("POSENC_BLESS").is_some() {
        assert_eq!(built, ALL, "the table holds every architecture: cargo xtask test --all-capabilities");
        let mut text = format!("{HEADER}\n");
        for (key, Row { most, least }) in &rows {
            let numbers: Vec<String> = most.iter().chain(least).map(u32::to_string).collect();
            writeln!(text, "{key},{}", numbers.join(",")).expect("a string");
        }
        std::fs::write(TABLE, text).expect("the table is written");
    }
    let text = std::fs::read_to_string(TABLE).expect("the table");
    assert_eq!(text.lines().next(), Some(HEADER));
    let mut listed = BTreeMap::new();
    for line in text.lines().skip(1) {
        let mut columns = line.rsplitn(7, ',');
        let mut number = || columns.next().expect("a column").parse::<u32>().expect("a number");
        let [in_flight, stores, loads] = [number(), number(), number()];
        let [instructions, stack, registers] = [number(), number(), number()];
        let row = Row { most: [registers, stack, instructions], least: [loads, stores, in_flight] };
        listed.insert(columns.next().expect("a key").to_string(), row);
    }
    let names: Vec<&str> = HEADER.split(',').skip(3).collect();
    for (key, row) in &rows {
        let want = listed.get(key).unwrap_or_else(|| panic!("{key} is not in tests/artifact.csv"));
        for (i, name) in names.iter().enumerate() {
            let (got, want, is_as_good) = if i < 3 {
                let slack = if *name == "sass_instructions" { want.most[i] / GROWTH } else { 0 };
                (row.most[i], want.most[i], row.most[i] <= want.most[i] + slack)
            } else {
                (row.least[i - 3], want.least[i - 3], row.least[i - 3] >= want.least[i - 3])
            };
            assert!(is_as_good, "{key}: {name} is {got}, the table says {want}");
        }
    }
    let is_built = |key: &str| built.iter().any(|sm| key.ends_with(&format!(",{sm}")));
    let gone: Vec<_> = listed.keys().filter(|key| is_built(key) && !rows.contains_key(*key)).collect();
    assert!(gone.is_empty(), "tests/artifact.csv lists kernels that are gone: {gone:?}");
}

#[test]
#[ignore = "needs the pinned NVRTC: cargo xtask test"]
fn rope_keeps_its_register_budget() {
    let rows = measured(None);
    for dtype in ["bf16", "f16", "f32"] {
        let registers = |entry: &str, sm: u32| rows[&format!("rotate/{entry}_{dtype},{sm}")].most[0];
        assert!(!architectures().contains(&90) || registers("rope,rope_wide", 90) <= 48);
        for sm in architectures() {
            for entry in ["rope,rope_wide", "rope,rope_mid", "rope_sources,rope_one"] {
                assert!(registers(entry, sm) <= 64);
            }
        }
    }
    assert!(
        rows.iter().all(|(key, row)| !key.starts_with("rotate/rope") || row.most[1] == 0),
        "a RoPE kernel has a stack"
    );
}

/// Every PTX assembles at the version that it was lowered to.
#[test]
#[ignore = "needs ptxas: cargo xtask test"]
fn ptx_assembles_at_its_lowered_version() {
    let ptxas = std::env::var_os("POSENC_PTXAS").expect("POSENC_PTXAS is set by cargo xtask test");
    let folder = std::env::temp_dir().join(format!("posenc-ptx-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    for (images, sm, text) in all_ptx() {
        let path = folder.join("module.ptx");
        std::fs::write(&path, text).expect("a file");
        let output = Command::new(&ptxas)
            .args(["--opt-level", "0", "--gpu-name", &format!("sm_{sm}"), "--output-file"])
            .arg(folder.join("module.cubin"))
            .arg(&path)
            .output()
            .expect("ptxas starts");
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} for {} and sm_{sm}: {message}", images.file, images.dtype);
    }
    std::fs::remove_dir_all(&folder).expect("the folder goes");
}

/// Machine code of every kernel for one architecture stays below its share of 7 MiB, as it lies in the crate.
#[test]
fn machine_code_is_small() {
    let mut bytes = BTreeMap::<u32, usize>::new();
    for image in images().iter().flat_map(|images| images.cubins) {
        *bytes.entry(image.sm).or_default() += image.packed.len();
    }
    for (sm, bytes) in bytes {
        println!("sm_{sm}: {bytes} bytes");
        assert!(bytes < (7 << 20) / 5, "the cubins of sm_{sm} are {bytes} bytes, five architectures may have 7 MiB");
    }
}
