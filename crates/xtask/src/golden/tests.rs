//! Tests of the table.

use super::{collect, kernel_table, table};

#[test]
fn lines_of_the_tests_become_a_table() {
    let text = "running 2 tests\ntest a ... golden|x/llama|logits|1.5e-6\nok\n\
                golden|x/phi|logits|FAILED\ngolden|x/llama|greedy|13/13\n";
    let table = table(&collect(text));
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0][..4], ["model", "max", "logit", "error"]);
    assert_eq!(rows[1][..5], ["x/llama", "1.5e-6", "-", "13/13", "-"]);
    assert_eq!(rows[2][..4], ["x/phi", "FAILED", "-", "-"]);
}

#[test]
fn the_last_line_of_a_kernel_counts() {
    let text = "test x ... kernel|add|4e-3|1|1.0e-3\nkernel|add|4e-3|2|2.0e-3\nkernel|add|5e-4|1|0.0e0\n";
    let rows = kernel_table(text);
    let rows: Vec<Vec<&str>> = rows.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[1..], [["add", "2", "2.0e-3", "4e-3"], ["add", "1", "0.0e0", "5e-4"]]);
}
