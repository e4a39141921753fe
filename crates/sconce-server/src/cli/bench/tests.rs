//! The parts of `sconce bench` by themselves: figures, prompts, flags, and what comes over the wire.

use std::ops::Range;
use std::time::Duration;

use clap::Parser;

use super::client::{Client, Lines};
use super::lengths::LengthArgs;
use super::percentiles::{Summary, percentile};
use super::random::Random;
use super::report::{Table, figure, one_or_list};
use super::roof::decoded_keys;
use super::together::{Steady, answer};
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
fn lengths_have_their_means_and_follow_from_the_seed() {
    let lengths =
        |spread, spread_max, seed, limit| LengthArgs { spread, spread_max }.lengths(seed, 20_000, [220, 200], limit);
    let means = |lengths: &[[usize; 2]]| [0, 1].map(|of| lengths.iter().map(|l| l[of] as f64).sum::<f64>() / 20_000.0);
    assert!(lengths(0.0, 7, 1, 5).iter().all(|&lens| lens == [220, 200]));
    let long = lengths(1.0, usize::MAX, 1, usize::MAX);
    let [input, output] = means(&long);
    assert!((input / 220.0 - 1.0).abs() < 0.04 && (output / 200.0 - 1.0).abs() < 0.04, "{input} {output}");
    assert!(long.as_flattened().iter().any(|&len| len > 2048));
    // The same but for what is too long.
    for (spread_max, limit) in [(1024, usize::MAX), (usize::MAX, 1024)] {
        let cut = lengths(1.0, spread_max, 1, limit);
        assert!(cut.as_flattened().iter().zip(long.as_flattened()).all(|(&cut, &long)| cut == long.min(1024)));
    }
    assert_ne!(lengths(1.0, 1024, 1, 1024), lengths(1.0, 1024, 2, 1024));
}

#[test]
fn a_shared_prompt_is_read_once() {
    let windows = [None, Some(3), Some(9)];
    for (prompt_len, tokens, num_sequences) in [(1, 1..2, 1), (7, 1..6, 1), (7, 1..6, 4), (2, 3..12, 8), (5, 4..4, 2)] {
        let mut expected = [0, 0];
        for window in windows.map(|window| window.unwrap_or(usize::MAX)) {
            for own in tokens.clone() {
                // The last of so many tokens sees those before it, and itself.
                let (all, own) = ((prompt_len + own).min(window), own.min(window));
                expected[0] += all - own + num_sequences * own;
                expected[1] += num_sequences * all;
            }
        }
        let found = decoded_keys(&windows, prompt_len, tokens.clone(), num_sequences);
        assert_eq!(found, expected.map(|keys| keys as f64), "{prompt_len} {tokens:?} {num_sequences}");
    }
}

/// Checks that all that is asked for is answered. How many steps all decode in depends on when requests arrive.
fn check_together(flags: &str, num: usize) -> Option<Steady> {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/llama");
    let line = format!("throughput --peaks 1,1 --threads 1 --kv-cache-bytes 4MiB --device cpu {flags} --model");
    let words = ["bench"].into_iter().chain(line.split(' ')).chain([model]);
    let Command::Throughput(args) = Cli::try_parse_from(words).unwrap().bench.command else { panic!("not throughput") };
    let mut subject = args.subject.load(num, false).unwrap();
    let requests: Vec<_> = (0..num).map(|seed| args.with_params(subject.request(9, 40 - seed), seed as u64)).collect();
    let (outputs, steady) = answer(&subject, &requests).unwrap();
    for (idx, output) in outputs.iter().enumerate() {
        let found: Vec<usize> = output.outputs.iter().map(|output| output.token_ids.len()).collect();
        assert_eq!(found, vec![40 - idx; args.num_sequences()], "{flags}");
    }
    steady
}

#[test]
fn requests_are_answered_together() {
    for (flags, num) in [("--n 1", 1), ("--n 1", 5), ("--n 3", 2)] {
        let steady = check_together(flags, num);
        let is_right = |tokens: Range<usize>| tokens.start > 0 && (41 - num..=40).contains(&tokens.end);
        assert!(steady.is_none_or(|steady| is_right(steady.tokens)), "{flags}");
    }
    // One after the other, and told of at the end.
    assert_eq!(check_together("--n 1 --max-num-seqs 1", 2), None);
    assert_eq!(check_together("--beam-width 2", 2), None);
}

#[test]
fn a_list_of_one_is_none() {
    assert_eq!(one_or_list(vec![1.into()]), 1);
    assert_eq!(one_or_list(vec![1.into(), 2.into()]), serde_json::json!([1, 2]));
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
    assert_eq!(args.decode_after, [32]);
    let Ok(Command::Throughput(args)) = parse("bench throughput") else { panic!("not throughput") };
    assert_eq!((args.num_prompts, args.input_len, args.output_len), (vec![32], 256, 128));
    assert_eq!((args.lengths.spread, args.lengths.spread_max, args.temperature), (0.0, 1024, None));
    let line = "bench throughput --num-prompts 2,64 --spread 1 --peaks 4e3,7.5e5 --temperature 0.5";
    let Ok(Command::Throughput(args)) = parse(line) else { panic!("not throughput") };
    assert_eq!((args.num_prompts, args.lengths.spread, args.temperature), (vec![2, 64], 1.0, Some(0.5)));
    assert_eq!(args.subject.peaks, Some([4000.0, 750_000.0]));
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
        ("bench latency --decode-after 32,0", "--decode-after"),
        ("bench latency --peaks 4000", "--peaks"),
        ("bench latency --peaks 4000,0", "--peaks"),
        ("bench throughput --num-prompts 0", "--num-prompts"),
        ("bench throughput --num-prompts 2,0", "--num-prompts"),
        ("bench throughput --temperature -1", "--temperature"),
        ("bench throughput --temperature 1 --beam-width 2", "--temperature"),
        ("bench throughput --spread 4", "--spread"),
        ("bench throughput --n 2 --beam-width 2", "--beam-width"),
        ("bench serve --num-prompts 0", "--num-prompts"),
        ("bench serve --spread nan", "--spread"),
        ("bench serve --spread-max 0", "--spread-max"),
        ("bench serve --input-len -1", "--input-len"),
        ("bench serve --max-concurrency 0", "--max-concurrency"),
        ("bench serve --request-rate 0", "--request-rate"),
        ("bench serve --request-rate nan", "--request-rate"),
    ] {
        let error = parse(line).unwrap_err();
        assert!(error.contains(flag) || error.contains("'-1'"), "{line}: {error}");
    }
}
