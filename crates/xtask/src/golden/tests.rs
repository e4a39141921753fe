//! Tests of the table.

use super::{collect, table};

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
