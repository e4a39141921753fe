//! What ptxas says, read; and spills, explained or not.

use super::{Usage, parse, parse_allowed, problems};

const SAID: &str = "ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'add_bf16' for 'sm_80'
ptxas info    : Function properties for add_bf16
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 128 bytes smem, 392 bytes cmem[0]
ptxas info    : Compiling entry function 'mul' for 'sm_80'
ptxas info    : Function properties for mul
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, 360 bytes cmem[0]
";

#[test]
fn the_compilers_words_are_read() {
    let usages = parse(SAID, "sm_80");
    let add = Usage {
        kernel: "add_bf16".into(),
        target: "sm_80".into(),
        registers: 40,
        shared_bytes: 128,
        stack_bytes: 8,
        spill_bytes: 12,
    };
    let mul = Usage { kernel: "mul".into(), target: "sm_80".into(), registers: 12, ..Usage::default() };
    assert_eq!(usages, [add, mul]);
    assert!(parse("nvcc warning: nothing", "sm_80").is_empty());
}

#[test]
fn a_spill_needs_a_reason_and_a_reason_a_spill() {
    let usages = parse(SAID, "sm_80");
    let check = |text: &str| problems(&usages, &parse_allowed(text).unwrap());
    assert_eq!(check("# nothing\n").len(), 1);
    assert!(check("")[0].contains("add_bf16 spills 12 bytes on sm_80"));
    assert!(check("add_bf16 sm_80 it is run once").is_empty());
    assert_eq!(check("add_bf16 sm_90a it is run once").len(), 2);
    assert!(check("add_bf16 sm_80 once\nmul sm_80 never")[0].contains("mul does not spill on sm_80"));
    assert!(parse_allowed("add_bf16 sm_80").unwrap_err().starts_with("kernels/spills.txt:1:"));
}
