//! [`Table`]: figures in columns; and what a model reached of what the machine does at most.

use std::fmt;

use sconce::{ModelInfo, Peaks};
use serde_json::{Map, Value, json};

use super::percentiles::Summary;
use super::roof::Work;

/// Rows of cells, printed in columns: all to the right but the first, and but a last one of words.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Adds a row.
    pub(super) fn row<const N: usize>(&mut self, cells: [&str; N]) {
        self.rows.push(cells.map(str::to_owned).to_vec());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let num_cols = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |col: usize| self.rows.iter().filter_map(|row| row.get(col)).map(|c| c.chars().count()).max();
        let widths: Vec<usize> = (0..num_cols).map(|col| width(col).unwrap_or(0)).collect();
        let last = self.rows.last().and_then(|row| row.last());
        let ends_in_words = last.is_some_and(|cell| cell.contains(char::is_alphabetic));
        for row in &self.rows {
            let mut line = String::new();
            for (col, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                let gap = if col == 0 { "" } else { "  " };
                line += &match col {
                    0 => format!("{cell:<width$}"),
                    _ if col + 1 == num_cols && ends_in_words => format!("{gap}{cell}"),
                    _ => format!("{gap}{cell:>width$}"),
                };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A figure with three or four digits that count.
pub(super) fn figure(value: f64) -> String {
    match value {
        _ if value >= 100.0 => format!("{value:.0}"),
        _ if value >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// What was measured, in one line.
pub(super) fn model_line(info: &ModelInfo, finds_prompts: bool) -> String {
    let cache = if finds_prompts { "with" } else { "without" };
    let draft = info.draft_model.as_ref().map_or(String::new(), |draft| format!(", drafts by {draft}"));
    format!("{} on {}{draft}, {cache} a prefix cache\n", info.id, info.device)
}

/// The model and the machine, for programs.
pub(super) fn model_json(command: &str, info: &ModelInfo, peaks: &Peaks) -> Map<String, Value> {
    let cost = info.token_cost;
    let report = json!({
        "command": command,
        "model": info.id,
        "draft_model": info.draft_model,
        "device": info.device,
        "weight_bytes": info.weight_bytes,
        "weight_bytes_read_per_token": cost.bytes_read,
        "layer_weights": cost.layer_weights,
        "head_weights": cost.head_weights,
        "peaks": {
            "num_threads": peaks.num_threads,
            "dram_read_gb_per_s": peaks.dram_read_gb_per_s,
            "f32_gflop_per_s": peaks.f32_gflop_per_s,
            "int8_gop_per_s": peaks.int8_gop_per_s,
            "bf16_gflop_per_s": peaks.bf16_gflop_per_s,
        },
    });
    let Value::Object(report) = report else { unreachable!("an object is written above") };
    report
}

/// What was asked for as a list is one, and what was not is not.
pub(super) fn one_or_list(mut reports: Vec<Value>) -> Value {
    if reports.len() == 1 { reports.remove(0) } else { reports.into() }
}

/// What the machine does at most, and what the model's figures are compared by.
pub(super) fn peaks_text(info: &ModelInfo, peaks: &Peaks, source: &str) -> String {
    let mut table = Table::default();
    table.row(["DRAM read", &figure(peaks.dram_read_gb_per_s), "GB/s"]);
    if let Some(peak) = peaks.f32_gflop_per_s {
        table.row(["f32 FMA", &figure(peak), "GFLOP/s"]);
    }
    if let Some(peak) = peaks.int8_gop_per_s {
        table.row(["int8 dot", &figure(peak), "Gop/s"]);
    }
    if let Some(peak) = peaks.bf16_gflop_per_s {
        table.row(["bf16 dot", &figure(peak), "GFLOP/s"]);
    }
    let cost = info.token_cost;
    let device = match peaks.num_threads {
        _ if info.gpu.is_some() => "This GPU at most".to_owned(),
        0 => "This machine at most".to_owned(),
        1 => "This machine at most, 1 thread".to_owned(),
        threads => format!("This machine at most, {threads} threads"),
    };
    format!(
        "{device}, {source}:\n{table}\
         GB/s counts the {} MB of weights that decoding a token reads, and nothing else;\n\
         GFLOP/s two for each of the {} M weights that a token is multiplied with, and the head's {} M where a token \
         is sampled.\n",
        figure(cost.bytes_read as f64 / 1e6),
        figure(cost.layer_weights as f64 / 1e6),
        figure(cost.head_weights as f64 / 1e6),
    )
}

/// Reading weights, beside the memory's peak.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    pub(super) gb_per_s: f64,
}

impl Reading {
    pub(super) fn text(self, peaks: &Peaks) -> String {
        format!("{} GB/s, {} of DRAM read", figure(self.gb_per_s), percent(self.gb_per_s, peaks.dram_read_gb_per_s))
    }

    pub(super) fn add_to(self, report: &mut Value, peaks: &Peaks) {
        report["weights_gb_per_s"] = json!(self.gb_per_s);
        report["share_of_dram_read"] = json!(self.gb_per_s / peaks.dram_read_gb_per_s);
    }
}

/// Multiplying with weights, beside the peaks of arithmetic.
#[derive(Debug, Clone, Copy)]
pub(super) struct Multiplying {
    gflop_per_s: f64,
}

impl Multiplying {
    /// `num_tokens` through the layers, of which so many through the head.
    pub(super) fn new(info: &ModelInfo, num_tokens: usize, num_sampled: usize, seconds: f64) -> Self {
        Self { gflop_per_s: Work::weights(info, 1, num_tokens, num_sampled).flop / seconds / 1e9 }
    }

    pub(super) fn text(self, peaks: &Peaks) -> String {
        let rate = self.gflop_per_s;
        let mut text = format!("{} GFLOP/s", figure(rate));
        for (peak, name) in [
            (peaks.f32_gflop_per_s, "f32 FMA"),
            (peaks.int8_gop_per_s, "int8 dot"),
            (peaks.bf16_gflop_per_s, "bf16 dot"),
        ] {
            text += &peak.map_or(String::new(), |peak| format!(", {} of {name}", percent(rate, peak)));
        }
        text
    }

    pub(super) fn add_to(self, report: &mut Value, peaks: &Peaks) {
        let share = |peak: f64| self.gflop_per_s / peak;
        report["gflop_per_s"] = json!(self.gflop_per_s);
        report["share_of_f32"] = json!(peaks.f32_gflop_per_s.map(share));
        report["share_of_int8"] = json!(peaks.int8_gop_per_s.map(share));
        report["share_of_bf16"] = json!(peaks.bf16_gflop_per_s.map(share));
    }
}

pub(super) fn percent(value: f64, peak: f64) -> String {
    format!("{:.0} %", 100.0 * value / peak)
}

/// Seconds as milliseconds, for programs; null where nothing was measured.
pub(super) fn summary_ms_json(seconds: Option<Summary>) -> Value {
    let ms = |seconds: f64| 1e3 * seconds;
    seconds.map_or(Value::Null, |s| json!({"mean": ms(s.mean), "p50": ms(s.p50), "p90": ms(s.p90), "p99": ms(s.p99)}))
}

/// The same for people, in the columns mean, p50, p90, p99.
pub(super) fn summary_ms_row(table: &mut Table, name: &str, seconds: Option<Summary>) {
    let cells = seconds.map(|s| [s.mean, s.p50, s.p90, s.p99].map(|seconds| figure(1e3 * seconds)));
    let [mean, p50, p90, p99] = cells.unwrap_or_else(|| ["-", "-", "-", "-"].map(str::to_owned));
    table.row([name, &mean, &p50, &p90, &p99]);
}
