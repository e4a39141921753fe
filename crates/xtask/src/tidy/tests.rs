//! Each rule on a file that breaks it and on one that keeps it.

use super::*;

/// The messages about a file `path` with `text`, as `line: message`, those about its shape left out.
fn check_file(path: &str, text: &str) -> Vec<String> {
    let findings = check(&[Source::new(path, text)]);
    findings.iter().map(|finding| format!("{}: {}", finding.line, finding.message)).collect()
}

/// The same for Rust code, given a module comment.
fn check_rust(path: &str, code: &str) -> Vec<String> {
    check_file(path, &format!("//! M.\n{code}\n"))
}

fn assert_one(found: &[String], line: usize, part: &str) {
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with(&format!("{line}: ")) && found[0].contains(part), "{found:?}");
}

fn assert_none(found: &[String]) {
    assert!(found.is_empty(), "{found:?}");
}

const CORE_FILE: &str = "crates/sconce-core/src/engine/step.rs";

#[test]
fn lengths() {
    let lines = |count: usize| "//! M.\n".repeat(count);
    assert_none(&check_file("src/a.rs", &lines(500)));
    assert_one(&check_file("src/a.rs", &lines(501)), 501, "better 500");
    assert_one(&check_file("src/a.rs", &lines(801)), 801, "at most 800");
    assert_one(&check_file("ARCHITECTURE.md", &"x\n".repeat(251)), 251, "at most 250");
    assert_none(&check_file("README.md", &"x\n".repeat(900)));
    let finding = &check(&[Source::new("src/a.rs", lines(501))])[0];
    assert!(!finding.is_error);
    assert_eq!(finding.to_string(), "src/a.rs:501: warning: 501 lines; better 500");
}

#[test]
fn whitespace() {
    assert_one(&check_file("a.md", "x \n"), 1, "end of the line");
    assert_one(&check_file("a.md", "x\ny\tz\n"), 2, "a tab");
    assert_one(&check_file("a.md", "x\r\n"), 1, "carriage return");
    assert_one(&check_file("a.md", "x"), 1, "no newline");
    assert_none(&check_file("LICENSE-MIT", "x \t"));
}

#[test]
fn paths_of_one_machine() {
    for path in ["/ho\u{6d}e/ann/x", "see /tm\u{70}/x", "`/ro\u{6f}t/x`"] {
        assert_one(&check_file("a.md", &format!("{path}\n")), 1, "path of one machine");
    }
    assert_none(&check_file("a.md", "docs/ho\u{6d}e/x and ~/tm\u{70}/x and {dir}/tm\u{70}/x\n"));
}

#[test]
fn unfinished_work() {
    assert_one(&check_rust("src/a.rs", "// TO\u{44}O: more"), 2, "finish it");
    assert_one(&check_rust("src/a.rs", "fn f() { todo!() }"), 2, "todo!");
    assert_one(&check_rust("src/a.rs", "fn f() { dbg!(1); }"), 2, "dbg!");
    assert_one(&check_rust("src/tests.rs", "#[ignore = \"slow\"]"), 2, "#[ignore");
    assert_none(&check_rust("src/a.rs", "const A: &str = \"todo!()\"; // dbg! and #[ignore] are words here"));
}

#[test]
fn module_docs() {
    assert_one(&check_file("src/a.rs", "fn f() {}\n"), 1, "opens with //!");
    assert_none(&check_file("src/a.rs", "#![no_std]\n\n//! M.\n"));
}

#[test]
fn unwraps() {
    assert_one(&check_rust("src/a.rs", "fn f() {\n    g().unwrap();\n}"), 3, "outside tests");
    assert_one(&check_rust("src/a.rs", "fn f() { g().expect(\"works\"); }"), 2, "invariant");
    assert_none(&check_rust("src/a.rs", "fn f() { g().expect(\"invariant: it works\"); p.expect(b','); }"));
    assert_none(&check_rust("src/a.rs", "fn f() { g().unwrap_or(1); } // .unwrap()\n/* .unwrap() /* */ .unwrap() */"));
    assert_none(&check_rust("src/a.rs", "#[cfg(test)]\nmod tests {\n    fn f() { if a { g().unwrap() } }\n}"));
    assert_one(&check_rust("src/a.rs", "#[cfg(test)]\nmod tests;\nfn f() { g().unwrap() }"), 4, "outside tests");
    assert_none(&check_rust("src/hub/tests/a.rs", "fn f() { g().unwrap() }"));
    assert_none(&check_rust("crates/x/tests/a.rs", "fn f() { g().unwrap() }"));
}

#[test]
fn strings_and_characters_are_not_code() {
    let code = r####"const A: &[&str] = &["\".unwrap()", r#"".unwrap()"#, "\\"]; const B: char = '"'; const C: char = '\'';
fn f<'a>(x: &'a str) -> char { '"' }
const D: &[u8] = br"\"; const E: char = 'é';
fn g() { h().unwrap() }"####;
    assert_one(&check_rust("src/a.rs", code), 5, "outside tests");
}

#[test]
fn unsafe_code() {
    let sound = "fn f() {\n    // SAFETY: it is.\n    unsafe { g() }\n}";
    assert_none(&check_rust("crates/sconce-core/src/ops/softmax.rs", sound));
    assert_none(&check_rust("crates/sconce-core/src/backend/cpu/pool.rs", sound));
    assert_one(&check_rust(CORE_FILE, sound), 4, "unsafe belongs");
    assert_one(&check_rust("crates/sconce-core/src/ops.rs", "unsafe impl Send for A {}"), 2, "SAFETY");
    assert_none(&check_rust("crates/sconce-core/src/ops/a.rs", "unsafe fn f() {}"));
    assert_none(&check_rust(CORE_FILE, "#![deny(unsafe_op_in_unsafe_fn)]"));
    let map = "fn f() {\n    // SAFETY: the file is not changed.\n    let m = unsafe { Mmap::map(&file) };\n}";
    assert_none(&check_rust("crates/sconce-core/src/weights/store.rs", map));
    assert_one(&check_rust("crates/sconce-core/src/weights/store.rs", sound), 4, "unsafe belongs");
}

#[test]
fn layers() {
    let core = |file: &str| format!("crates/sconce-core/src/{file}");
    assert_one(&check_rust(&core("engine/load.rs"), "use cudarc::driver;"), 2, "backend/cuda alone");
    assert_none(&check_rust(&core("backend/cuda/device.rs"), "use cudarc::driver;"));
    assert_one(&check_rust(CORE_FILE, "use hyper::Body;"), 2, "no HTTP");
    assert_one(&check_rust(CORE_FILE, "#[derive(Serialize)]\nstruct A;"), 2, "no wire format");
    assert_one(&check_rust(&core("models/llama.rs"), "use crate::backend::cpu;"), 2, "generic in the Backend");
    assert_one(&check_rust(&core("models/llama.rs"), "fn f(block_table: &[u32]) {}"), 2, "never see a block");
    assert_none(&check_rust(&core("models/llama.rs"), "fn f<B: Backend>(b: &B, block_size: usize) {}"));
    assert_none(&check_rust(&core("models/tests.rs"), "use crate::backend::cpu::CpuBackend;"));
    assert_one(&check_rust(&core("sched/mod.rs"), "use crate::weights::TensorView;"), 2, "never see a tensor");
    assert_one(&check_rust(&core("kv/block_pool.rs"), "fn f(t: &TensorView) {}"), 2, "never see a tensor");
    assert_none(&check_rust(&core("kv/cache.rs"), "fn f<B: Backend>(b: &B) {}"));
    let manifest = "[dependencies]\nserde_json.workspace = true\nserde = \"1\"\n";
    assert_one(&check_file("crates/sconce-core/Cargo.toml", manifest), 3, "serde: core knows");
}

#[test]
fn kernels_have_bounds() {
    let found = |bounds: &str| {
        let kernel = format!("// The math.\nextern \"C\" __global__ void {bounds}softmax(float* x) {{}}\n");
        let op = Source::new("crates/sconce-core/src/ops/softmax.rs", "//! M.\n");
        check(&[Source::new("kernels/softmax.cu", &kernel), op])
    };
    let found_without = found("");
    assert!(found_without.len() == 1 && found_without[0].to_string().contains("__launch_bounds__"));
    assert_eq!(found("__launch_bounds__(256) ").len(), 0);
}

#[test]
fn kernels_have_references() {
    let kernel = Source::new("kernels/softmax.cu", "// The math.\n");
    let op = Source::new("crates/sconce-core/src/ops/softmax.rs", "//! M.\n");
    assert_eq!(check(&[kernel, op]).len(), 0);
    let part = Source::new("kernels/softmax_wide.cu", "// The math.\n");
    let folder = Source::new("crates/sconce-core/src/ops/softmax/mod.rs", "//! M.\n");
    assert_eq!(check(&[part, folder]).len(), 0);
    assert_one(
        &check_file("kernels/softmax_wide.cu", "// The math.\n"),
        1,
        "there is no crates/sconce-core/src/ops/softmax_wide.rs",
    );
    assert_one(
        &check_file("kernels/softmax.cu", "// The math.\n"),
        1,
        "there is no crates/sconce-core/src/ops/softmax.rs",
    );
    assert_none(&check_file("kernels/common.cuh", "// Helpers.\n"));
}
