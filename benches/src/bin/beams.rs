//! Beam search of width 4 beside 4 greedy requests and n = 4 sampling: time of a step, tokens a second, KV blocks.
//!
//! `cargo run --release -p sconce-benches --bin beams [-- MODEL]`; without a model, the starter model.

#![allow(clippy::print_stdout)] // a table is what it makes

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sconce::{BeamParams, Engine, EngineConfig, EngineStatus, GenerationRequest, Result, SamplingParams, TokenStream};

const WIDTH: usize = 4;
const PROMPT_LEN: usize = 500;
const NUM_TOKENS: usize = 64;
const NUM_ROUNDS: usize = 5;

/// What is compared: a name, and requests that generate `WIDTH` sequences together.
struct Contender {
    name: &'static str,
    requests: Vec<GenerationRequest>,
}

/// One round of one contender.
#[derive(Clone, Copy)]
struct Round {
    decode: Duration,
    num_steps: usize,
    peak_blocks: usize,
}

fn main() -> Result<()> {
    let engine = |prefix_cache: bool| {
        let builder = std::env::args().nth(1).map_or_else(Engine::starter, Engine::builder);
        builder.config(EngineConfig { prefix_cache, kv_cache_bytes: Some(1 << 30), ..EngineConfig::default() }).build()
    };
    // A prompt that is found would hide what each contender stores.
    let engine = engine(false)?;
    let contenders = contenders(engine.handle().info().config.vocab_size);
    let mut rounds = vec![Vec::new(); contenders.len()];
    for _ in 0..NUM_ROUNDS {
        for (contender, rounds) in contenders.iter().zip(&mut rounds) {
            rounds.push(measure(&engine, contender)?);
        }
    }
    println!("{}, {}", engine.handle().info().id, engine.handle().info().device);
    println!("prompt {PROMPT_LEN}, {NUM_TOKENS} tokens, medians of {NUM_ROUNDS} rounds in turn\n");
    println!("| | ms a step | tokens/s | peak KV blocks | step against sampling |");
    println!("|---|---|---|---|---|");
    let sampling = median(&rounds[1], step_ms);
    for (contender, rounds) in contenders.iter().zip(&rounds) {
        let (step, blocks) = (median(rounds, step_ms), median(rounds, |r| r.peak_blocks as f64));
        let rate = WIDTH as f64 * 1e3 / step;
        println!("| {} | {step:.2} | {rate:.0} | {blocks:.0} | {:.2} |", contender.name, step / sampling);
    }
    Ok(())
}

fn contenders(vocab_size: usize) -> Vec<Contender> {
    let prompt: Vec<u32> = (0..PROMPT_LEN).map(|i| ((i * 7919 + 13) % vocab_size.min(40_000)) as u32).collect();
    let request = |params: SamplingParams| {
        let params = SamplingParams { max_tokens: Some(NUM_TOKENS), ignore_eos: true, seed: Some(1), ..params };
        GenerationRequest::tokens(prompt.clone()).with_params(params)
    };
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let sampling = SamplingParams { n: WIDTH, ..SamplingParams::default() };
    let beams = SamplingParams { beam: Some(BeamParams::new(WIDTH)), ..sampling.clone() };
    vec![
        Contender { name: "4 greedy requests", requests: vec![request(greedy); WIDTH] },
        Contender { name: "n = 4 sampling", requests: vec![request(sampling)] },
        Contender { name: "beams of width 4", requests: vec![request(beams)] },
    ]
}

/// Runs the requests together. What counts is the time from when all have begun to generate until all are done.
fn measure(engine: &Engine, contender: &Contender) -> Result<Round> {
    let peak_blocks = &engine.handle().status().peak_used_blocks;
    peak_blocks.store(0, Ordering::Relaxed);
    let (decode, num_steps) = decode_time(engine, contender)?;
    Ok(Round { decode, num_steps, peak_blocks: EngineStatus::get(peak_blocks) })
}

fn decode_time(engine: &Engine, contender: &Contender) -> Result<(Duration, usize)> {
    let num_steps = || EngineStatus::get(&engine.handle().status().num_steps);
    let streams = contender.requests.iter().map(|request| engine.stream(request.clone()));
    let mut streams = streams.collect::<Result<Vec<TokenStream>>>()?;
    for stream in &mut streams {
        stream.blocking_next().transpose()?;
        stream.skip_snapshots();
    }
    let (start, first_step) = (Instant::now(), num_steps());
    for stream in &mut streams {
        while let Some(event) = stream.blocking_next() {
            event?;
        }
    }
    Ok((start.elapsed(), num_steps() - first_step))
}

fn step_ms(round: &Round) -> f64 {
    round.decode.as_secs_f64() * 1e3 / round.num_steps as f64
}

fn median(rounds: &[Round], figure: impl Fn(&Round) -> f64) -> f64 {
    let mut figures: Vec<f64> = rounds.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
