//! Rules about who may know whom: ARCHITECTURE.md's invariants.

use super::Finding;
use super::source::{Source, find_word, line_at};

const CORE: &str = "crates/sconce-core/src";

/// Words that must not stand in the code of a part.
struct Ban {
    /// Where they must not stand.
    applies: fn(&Source) -> bool,
    /// The words.
    words: &'static [&'static str],
    /// Why.
    reason: &'static str,
}

fn core(source: &Source, folder: &str) -> bool {
    source.is_in(&format!("{CORE}/{folder}"))
}

/// The pool and the prefix cache: everything in kv/ but the storage on the device.
fn is_pool(source: &Source) -> bool {
    core(source, "kv") && ["pool", "prefix", "block"].iter().any(|part| source.path.contains(part))
}

const BANS: &[Ban] = &[
    Ban {
        applies: |source| source.is_rust() && !core(source, "backend/cuda"),
        words: &["cudarc"],
        reason: "cudarc is named in backend/cuda alone",
    },
    Ban {
        applies: |source| source.path.starts_with(CORE),
        words: &["hyper", "axum", "http::", "Serialize", "Deserialize", "serde::"],
        reason: "core knows no HTTP and no wire format",
    },
    Ban {
        applies: |source| core(source, "models"),
        words: &["CpuBackend", "CudaBackend", "CheckedBackend", "backend::cpu", "backend::cuda", "backend::checked"],
        reason: "models are generic in the Backend",
    },
    Ban {
        applies: |source| core(source, "models"),
        words: &["block_table", "block_tables", "block_id", "block_ids", "BlockTable", "BlockPool", "BlockId"],
        reason: "models never see a block",
    },
    Ban {
        applies: |source| core(source, "sched") || is_pool(source),
        words: &["Backend", "backend::", "TensorView", "WeightStore", "Workspace", "KvCache"],
        reason: "the scheduler and the pool never see a tensor",
    },
];

/// Parts name only what they may know. Tests may name more: they put parts together.
pub(super) fn forbidden_words(source: &Source, findings: &mut Vec<Finding>) {
    for ban in BANS.iter().filter(|ban| (ban.applies)(source)) {
        for word in ban.words {
            for at in find_word(&source.product_code, word) {
                let line = line_at(&source.product_code, at);
                findings.push(Finding::error(source, line, format!("{word}: {}", ban.reason)));
            }
        }
    }
}

/// Core depends on no HTTP crate and on serde for nothing but JSON values.
pub(super) fn core_dependencies(source: &Source, findings: &mut Vec<Finding>) {
    if source.path != "crates/sconce-core/Cargo.toml" {
        return;
    }
    for (line, text) in (1..).zip(source.text.lines()) {
        let name = text.split(['.', '=', ' ']).next().unwrap_or_default();
        if ["hyper", "http", "axum", "reqwest", "ureq", "serde"].contains(&name) {
            findings.push(Finding::error(source, line, format!("{name}: core knows no HTTP and no wire format")));
        }
    }
}

/// A kernel says how many threads a block of it has at most: what the compiler gives them fits a multiprocessor then.
pub(super) fn kernels_have_bounds(source: &Source, findings: &mut Vec<Finding>) {
    if !source.path.starts_with("kernels/") || source.path.starts_with("kernels/host/") {
        return;
    }
    for (line, text) in (1..).zip(source.text.lines()) {
        if text.contains("__global__ void") && !text.contains("__launch_bounds__") {
            findings.push(Finding::error(source, line, "a kernel without __launch_bounds__"));
        }
    }
}

/// Every `kernels/<op>.cu` has an `ops/<op>.rs` with its reference, and every `kernels/<op>_<part>.cu` an `ops/<op>/`, whether
/// `_hopper` follows or not.
pub(super) fn kernels_have_ops(sources: &[Source], findings: &mut Vec<Finding>) {
    let has = |path: &str| sources.iter().any(|source| source.path == path);
    for kernel in sources {
        let name = kernel.path.strip_prefix("kernels/").and_then(|name| name.strip_suffix(".cu"));
        let Some(op) = name.filter(|name| !name.contains('/')) else { continue };
        let file = format!("{CORE}/ops/{op}.rs");
        let is_folder = |op: &str| has(&format!("{CORE}/ops/{op}/mod.rs"));
        let op = op.strip_suffix("_hopper").unwrap_or(op);
        let is_part = op.rsplit_once('_').is_some_and(|(op, _)| is_folder(op));
        if !has(&file) && !is_folder(op) && !is_part {
            findings.push(Finding::error(kernel, 1, format!("there is no {file} with the kernel's reference")));
        }
    }
}
