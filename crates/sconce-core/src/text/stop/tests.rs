//! Tests of [`StopMatcher`].

#![allow(clippy::unwrap_used)]

use super::StopMatcher;
use crate::sample::uniform;

/// Pushes `pieces`: all that is shown after each, and after the end; and the stop text that ended the stream.
fn run(pieces: &[&str], stops: &[&str], include: bool) -> (Vec<String>, Option<String>) {
    let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
    let mut matcher = StopMatcher::new(&stops, include);
    let (mut out, mut shown, mut stop) = (String::new(), Vec::new(), None);
    for piece in pieces {
        stop = stop.or(matcher.push(piece, &mut out));
        shown.push(out.clone());
    }
    matcher.finish(&mut out);
    shown.push(out);
    (shown, stop)
}

fn check(pieces: &[&str], stops: &[&str], shown: &[&str], stop: Option<&str>) {
    let (found_shown, found_stop) = run(pieces, stops, false);
    assert_eq!(found_shown, shown, "{pieces:?} {stops:?}");
    assert_eq!(found_stop.as_deref(), stop, "{pieces:?} {stops:?}");
}

/// The slow meaning of it all: the stop text that ends first, the longest of those that end there.
fn search<'a>(text: &str, stops: &[&'a str]) -> Option<(usize, &'a str)> {
    (0..=text.len()).find_map(|end| {
        let ends_here = |stop: &&&str| !stop.is_empty() && text.as_bytes()[..end].ends_with(stop.as_bytes());
        let stop = stops.iter().filter(ends_here).max_by_key(|stop| stop.len())?;
        Some((end, *stop))
    })
}

#[test]
fn a_stop_text_ends_the_stream() {
    check(&["a b", " stop c", " d"], &["stop"], &["a b", "a b ", "a b ", "a b "], Some("stop"));
    check(&["stop"], &["stop"], &["", ""], Some("stop"));
    check(&["a"], &[], &["a", "a"], None);
    check(&["a"], &[""], &["a", "a"], None);
}

#[test]
fn only_a_possible_beginning_is_held_back() {
    check(&["xs", "t", "u"], &["stop"], &["x", "x", "xstu", "xstu"], None);
    check(&["s", "s", "s", "top!"], &["stop"], &["", "s", "ss", "ss", "ss"], Some("stop"));
    check(&["é", "è", "s"], &["è!", "st"], &["é", "é", "éè", "éès"], None);
}

#[test]
fn the_earliest_end_wins_then_the_longest() {
    check(&["xabcd"], &["abcd", "bc"], &["xa", "xa"], Some("bc"));
    check(&["xabc"], &["c", "abc", "bc"], &["x", "x"], Some("abc"));
    check(&["xab", "c"], &["abc", "ab"], &["x", "x", "x"], Some("ab"));
}

#[test]
fn an_included_stop_text_is_shown_and_nothing_after_it() {
    let (shown, stop) = run(&["a st", "op b", "c"], &["stop"], true);
    assert_eq!(shown, ["a ", "a stop", "a stop", "a stop"]);
    assert_eq!(stop.as_deref(), Some("stop"));
}

/// Random texts of few characters, so that stop texts are often there, or nearly.
#[test]
fn pieces_are_searched_as_the_whole() {
    for seed in 0..4000 {
        let mut position = 0;
        let mut below = |n: usize| {
            position += 1;
            (uniform(seed, 0, position, 0) * n as f64) as usize
        };
        let mut texts = |most: usize, longest: usize| {
            let mut texts = Vec::new();
            for _ in 0..below(most + 1) {
                let len = below(longest + 1);
                texts.push((0..len).map(|_| ['a', 'b', 'é'][below(3)]).collect::<String>());
            }
            texts
        };
        let (pieces, stops) = (texts(11, 4), texts(3, 5));
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
        check_against_search(&pieces, &stops, seed % 2 == 1);
    }
}

fn check_against_search(pieces: &[&str], stops: &[&str], include: bool) {
    let text = pieces.concat();
    let (shown, stop) = run(pieces, stops, include);
    let expected = search(&text, stops);
    let end = match expected {
        None => text.len(),
        Some((end, _)) if include => end,
        Some((end, stop)) => end - stop.len(),
    };
    assert_eq!(stop.as_deref(), expected.map(|(_, stop)| stop), "{pieces:?} {stops:?}");
    assert_eq!(shown.last().unwrap(), &text[..end], "{pieces:?} {stops:?}");
    // Nothing that belongs to the stop text is ever shown, and nothing is taken back.
    for (piece, next) in shown.iter().zip(&shown[1..]) {
        assert!(next.starts_with(piece.as_str()), "{pieces:?} {stops:?}");
    }
    // What is held back is the longest possible beginning of a stop text, no more.
    let mut seen = String::new();
    for (piece, shown) in pieces.iter().zip(&shown) {
        seen.push_str(piece);
        if search(&seen, stops).is_some() {
            break;
        }
        let begins = |at: &usize| stops.iter().any(|stop| stop.as_bytes().starts_with(&seen.as_bytes()[*at..]));
        let held_from = (0..=seen.len()).find(begins).unwrap_or(seen.len());
        assert_eq!(shown.as_str(), &seen[..held_from], "{pieces:?} {stops:?}");
    }
}
