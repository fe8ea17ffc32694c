//! What is read out of machine code, and what the model of a device makes of it.

use std::collections::BTreeMap;

use posenc_benches::support::model::{H200, Limit, Work, predict, ratio, resident};
use posenc_benches::support::sass::{Code, ptx_instructions, read};

/// Lines as nvdisasm prints them: an opcode, the barrier that it releases (7: none), those that it waits for.
fn text(lines: &[(&str, u64, u64)]) -> String {
    let mut text = String::from("\t.section\t.text.k,\"ax\",@progbits\n.text.k:\n");
    for (i, (instruction, sets, waits)) in lines.iter().enumerate() {
        if instruction.starts_with(".L") {
            text += &format!("{instruction}\n");
            continue;
        }
        let high = sets << 46 | waits << 52;
        text += &format!("\t//## File \"k.ptx\", line {}\n", i + 1);
        text += &format!("        /*{:04x}*/                   {instruction} ;  /* 0x0000000000000000 */\n", 16 * i);
        text += &format!("                                     /* 0x{high:016x} */\n");
    }
    text
}

fn code(lines: &[(&str, u64, u64)]) -> Code {
    read(&text(lines))["k"].clone()
}

/// Turns of a warp that executes the loads of the text's lines so often.
fn turns(lines: &[(&str, u64, u64)], executed: &[(u32, u64)]) -> (f64, u32) {
    let turns = code(lines).turns(executed, 1);
    (turns.turns, turns.in_flight)
}

#[test]
fn loads_that_are_issued_together_are_one_turn() {
    let lines = [("LDG.E.128 R4, [R2]", 0, 0), ("LDG.E.128 R8, [R2+0x10]", 1, 0), ("FADD R4, R4, R8", 7, 0b11)];
    let code = code(&lines);
    assert_eq!((code.in_flight, code.wide, code.instructions), (32, [2, 0], 3));
    assert_eq!(turns(&lines, &[(1, 1), (2, 1)]), (1.0, 32));
    assert_eq!(turns(&lines, &[(1, 4), (2, 5)]), (5.0, 32), "in a loop that the walk does not see");
}

#[test]
fn a_load_behind_a_wait_is_a_further_turn_if_it_is_executed() {
    let lines = [("LDG.E R4, [R2]", 0, 0), ("IMAD R6, R4, R4", 7, 0b1), ("LDG.E.64 R8, [R6]", 0, 0), ("EXIT", 7, 0b1)];
    assert_eq!(turns(&lines, &[(1, 1), (3, 1)]), (2.0, 8));
    assert_eq!(turns(&lines, &[(1, 1)]), (1.0, 4));
    assert_eq!(turns(&lines, &[]), (0.0, 0));
}

#[test]
fn loads_that_a_loop_requests_for_its_next_step_are_a_turn_of_each_step() {
    let lines = [
        ("LDG.E R4, [R2]", 0, 0),
        (".L_a:", 7, 0),
        ("FADD R5, R5, R4", 7, 0b1),
        ("LDG.E R4, [R2]", 0, 0),
        ("@P0 BRA `(.L_a)", 7, 0),
        ("EXIT", 7, 0),
        (".L_b:", 7, 0),
        ("BRA `(.L_b)", 7, 0),
        ("NOP", 7, 0),
    ];
    assert_eq!(code(&lines).instructions, 5, "what stands behind the exit is no code");
    assert_eq!(turns(&lines, &[(1, 1), (4, 9)]), (10.0, 4));
}

#[test]
fn ways_that_exclude_each_other_begin_at_the_same_turn() {
    let lines = [
        ("LDG.E R4, [R2]", 0, 0),
        ("@P0 BRA `(.L_a)", 7, 0b1),
        ("LDG.E.128 R8, [R4]", 1, 0),
        ("EXIT", 7, 0b10),
        (".L_a:", 7, 0),
        ("LDG.E.64 R8, [R4]", 1, 0),
        ("EXIT", 7, 0b10),
    ];
    assert_eq!(turns(&lines, &[(1, 4), (3, 1), (6, 3)]), (7.0, 16));
}

#[test]
fn asynchronous_copies_are_on_their_way_until_the_wait_for_all() {
    let lines = [
        ("LDGSTS.E.BYPASS.128 [R1], [R2]", 7, 0),
        ("LDGSTS.E.BYPASS.128 [R1+0x10], [R2+0x10]", 7, 0),
        ("LDGDEPBAR", 0, 0),
        ("DEPBAR.LE SB0, 0x0", 7, 0),
    ];
    assert_eq!(turns(&lines, &[(1, 1), (2, 1)]), (1.0, 32));
}

#[test]
fn ptx_instructions_are_those_of_the_body() {
    let text = ".visible .entry a(\n\t.param .u64 p\n)\n{\n\t.reg .b32 %r<2>;\n\n\tmov.u32 %r1, 1;\n$L:\n\tret;\n\n}\n";
    assert_eq!(ptx_instructions(text), BTreeMap::from([("a".to_string(), 2)]));
}

#[test]
fn a_call_is_bound_by_what_takes_longest() {
    let copy = Work::copy(1e9);
    assert_eq!(predict(&[copy], &H200, false).limit, Limit::Memory);
    assert_eq!(predict(&[copy], &H200, true).limit, Limit::Memory, "what is larger than the cache is not in it");
    assert_eq!(predict(&[Work { instructions: 40.0 * copy.instructions, ..copy }], &H200, false).limit, Limit::Issue);
    assert_eq!(predict(&[Work { turns: 80.0, ..copy }], &H200, false).limit, Limit::Latency);
    let small = Work { l2_bytes: 2e8, ..Work::copy(1e7) };
    assert_eq!(predict(&[small], &H200, true).limit, Limit::L2);
}

/// A copy of a gigabyte moves a little less than 4.27 TB a second, and one of nothing takes an empty kernel and its turns.
#[test]
fn copies_take_what_the_data_sheet_says() {
    let large = predict(&[Work::copy(1e9)], &H200, false).time;
    assert!((4.1..4.27).contains(&(1e3 / large)), "{large}");
    let small = predict(&[Work::copy(1e3)], &H200, true).time;
    assert!((1.24 + 1.5 * 0.21..1.7).contains(&small), "{small}");
    assert!((predict(&[Work::copy(1e3); 2], &H200, true).time - 2.0 * small).abs() < 1e-9);
}

#[test]
fn ratios_that_are_near_to_one_are_not_named() {
    assert_eq!([0.8, 0.9, 1.0, 1.14, 1.2].map(ratio), ["0.80", "-", "-", "-", "1.20"]);
}

#[test]
fn blocks_that_a_multiprocessor_holds_follow_from_registers_threads_and_shared_memory() {
    assert_eq!(resident(48, 0, 128), 10);
    assert_eq!(resident(32, 0, 128), 16);
    assert_eq!(resident(80, 33 << 10, 128), 6);
    assert_eq!(resident(16, 0, 32), 32);
    assert_eq!(resident(255, 0, 1024), 1);
}
