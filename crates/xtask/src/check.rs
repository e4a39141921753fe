//! `cargo xtask check-kernels`: the tests that run kernels on the host shim, with its checker (`kernels/host/check.h`).

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

/// What CI checks: a minute's worth of every kernel. Tests of whole models, and of every shape, take seven more; those of the CPU's
/// kernels have nothing to check.
pub(crate) const QUICK: &[&str] = &[
    "ops::",
    "--skip=a_graph_is_good_for_steps_of_its_bucket",
    "--skip=a_launch_that_is_full_is_followed_by_another",
    "--skip=a_prompt_in_chunks_has_the_same_bits",
    "--skip=a_row_has_its_bits_whatever_is_beside_it",
    "--skip=all_kernels_have_the_portable_bits",
    "--skip=every_kernel_has_the_bits_of_expanded_weights",
    "--skip=groups_windows_caps_and_blocks",
    "--skip=inputs_in_e4m3_are_the_nearest",
    "--skip=kernel_equals_reference",
    "--skip=kernels_equal_the_reference_bit_for_bit",
    "--skip=one_launch_has_the_bits_of_two_for_all_contexts",
    "--skip=one_launch_has_the_bits_of_two_for_parts",
    "--skip=weights_in_e4m3_have_the_portable_bits",
];

/// Runs the libraries' tests as the test runner's arguments say; an error if the checker finds a fault.
pub(crate) fn run<S: AsRef<OsStr>>(root: &Path, args: &[S]) -> Result<(), String> {
    run_tests(root, args, &[("SCONCE_HOST_CHECK", "1".as_ref())])
        .map_err(|error| format!("the checker has found faults, or {error}"))
}

/// Runs them with variables of the environment.
pub(crate) fn run_tests<S: AsRef<OsStr>>(root: &Path, args: &[S], variables: &[(&str, &OsStr)]) -> Result<(), String> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // As CI has built them: one package by itself would be built anew.
    command.args(["test", "--workspace", "--locked", "--lib", "--"]).args(args);
    let status = command.envs(variables.iter().copied()).current_dir(root).status();
    match status.map_err(|e| format!("cargo test: {e}"))? {
        status if status.success() => Ok(()),
        _ => Err("tests have failed".into()),
    }
}
