//! The parts of `sconce bench` by themselves: figures, prompts, flags, and what comes over the wire.

use std::time::Duration;

use clap::Parser;

use super::client::{Client, Lines};
use super::percentiles::{Summary, percentile};
use super::random::Random;
use super::report::{Table, figure};
use super::{Args, Command};

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    bench: Args,
}

fn parse(line: &str) -> Result<Command, String> {
    let cli = Cli::try_parse_from(line.split_whitespace()).map_err(|e| e.to_string())?;
    Ok(cli.bench.command)
}

#[test]
fn percentiles_lie_between_measurements() {
    assert_eq!(percentile(&[3.0], 99.0), 3.0);
    assert_eq!(percentile(&[1.0, 2.0], 50.0), 1.5);
    let values: Vec<f64> = (0..=100).map(f64::from).collect();
    for percent in [0.0, 1.0, 50.0, 90.0, 99.0, 100.0] {
        assert_eq!(percentile(&values, percent), percent);
    }
    // As numpy has it: numpy.percentile([1, 2, 4, 8], 90).
    assert!((percentile(&[1.0, 2.0, 4.0, 8.0], 90.0) - 6.8).abs() < 1e-9);
}

#[test]
fn a_summary_needs_no_order() {
    assert_eq!(Summary::new(Vec::new()), None);
    let summary = Summary::new(vec![3.0, 1.0, 2.0]).unwrap();
    assert_eq!((summary.mean, summary.min, summary.p50, summary.max), (2.0, 1.0, 2.0, 3.0));
    assert!(summary.p90 <= summary.p99 && summary.p99 <= summary.max);
}

#[test]
fn random_numbers_follow_from_the_seed() {
    let numbers = |seed| (Random::new(seed).token_ids(100, 50), Random::new(seed).words(20));
    assert_eq!(numbers(7), numbers(7));
    assert_ne!(numbers(7), numbers(8));
    let (ids, words) = numbers(7);
    assert!(ids.len() == 100 && ids.iter().all(|&id| id < 50));
    assert_eq!(words.split(' ').count(), 20);
}

#[test]
fn pauses_have_the_rate_that_is_asked_for() {
    let mut random = Random::new(1);
    let sum: Duration = (0..20_000).map(|_| random.pause(100.0)).sum();
    assert!((sum.as_secs_f64() / 200.0 - 1.0).abs() < 0.03, "{sum:?}");
    assert_eq!(random.pause(f64::INFINITY), Duration::ZERO);
    assert!(random.pause(f64::MIN_POSITIVE) < Duration::from_secs(1 << 30));
}

#[test]
fn lines_come_in_any_pieces() {
    let text = "data: {\"a\": \"é\"}\r\n\r\n: ping\ndata: [DONE]\n\n";
    for piece_len in 1..text.len() {
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        for piece in text.as_bytes().chunks(piece_len) {
            lines.push(piece);
            while let Some(line) = lines.next() {
                found.push(line);
            }
        }
        assert_eq!(found, ["data: {\"a\": \"é\"}", "", ": ping", "data: [DONE]", ""], "{piece_len}");
    }
}

#[test]
fn addresses_that_cannot_be_measured() {
    for (url, words) in [
        ("https://a:1", "https is not supported"),
        ("ftp://a", "expected http://HOST:PORT"),
        ("127.0.0.1:8000", "expected http://HOST:PORT"),
        ("http://a b", "--base-url http://a b"),
    ] {
        let error = Client::new(url, None).unwrap_err();
        assert!(error.contains(words) && error.contains("--base-url"), "{url}: {error}");
    }
    for url in ["http://127.0.0.1:8000", "http://[::1]:8000/v1/", "http://a/path"] {
        assert!(Client::new(url, Some("k")).is_ok(), "{url}");
    }
}

#[test]
fn columns_are_aligned() {
    let mut table = Table::default();
    table.row(["a", "median", "in words"]);
    table.row(["longer", "12", "µs a step"]);
    assert_eq!(table.to_string(), "a       median  in words\nlonger      12  µs a step\n");
    let mut table = Table::default();
    table.row(["ms", "p99"]);
    table.row(["whole", "1234"]);
    assert_eq!(table.to_string(), "ms      p99\nwhole  1234\n");
    assert_eq!([0.123, 12.34, 1234.5].map(figure), ["0.12", "12.3", "1234"]);
}

#[test]
fn flags_and_their_defaults() {
    let Ok(Command::Latency(args)) = parse("bench latency --input-len 16,512 --num-iters 3") else {
        panic!("not latency");
    };
    assert_eq!((args.input_len, args.output_len, args.num_iters), (vec![16, 512], 128, 3));
    let Ok(Command::Throughput(args)) = parse("bench throughput") else { panic!("not throughput") };
    assert_eq!((args.num_prompts, args.input_len, args.output_len), (32, 256, 128));
    let Ok(Command::Serve(args)) = parse("bench serve --max-concurrency 4") else { panic!("not serve") };
    assert_eq!((args.base_url.as_str(), args.num_prompts), ("http://127.0.0.1:8000", 100));
    assert_eq!((args.max_concurrency, args.request_rate, args.ignore_eos), (Some(4), f64::INFINITY, false));
}

#[test]
fn flags_that_ask_for_nothing_are_named() {
    for (line, flag) in [
        ("bench latency --input-len 16,0", "--input-len"),
        ("bench latency --output-len 0", "--output-len"),
        ("bench latency --num-iters x", "--num-iters"),
        ("bench throughput --num-prompts 0", "--num-prompts"),
        ("bench throughput --spread 4", "--spread"),
        ("bench throughput --n 2 --beam-width 2", "--beam-width"),
        ("bench serve --num-prompts 0", "--num-prompts"),
        ("bench serve --input-len -1", "--input-len"),
        ("bench serve --max-concurrency 0", "--max-concurrency"),
        ("bench serve --request-rate 0", "--request-rate"),
        ("bench serve --request-rate nan", "--request-rate"),
    ] {
        let error = parse(line).unwrap_err();
        assert!(error.contains(flag) || error.contains("'-1'"), "{line}: {error}");
    }
}
