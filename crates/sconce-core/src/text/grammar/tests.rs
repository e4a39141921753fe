//! Whatever is drawn of what is allowed, the answer matches.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::time::Instant;

use serde_json::Value;

use super::*;
use crate::text::testing::{Subject, TOKENIZERS, shared_tokenizer, small_tokenizer};

const SCHEMA: &str = r##"{"type": "object", "additionalProperties": false, "required": ["name", "kind", "tags"], "properties": {
    "name": {"type": "string", "maxLength": 12}, "kind": {"enum": ["cat", "dög"]},
    "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 3}},
    "$defs": {"tag": {"type": "integer", "minimum": -5, "maximum": 120}}}"##;

fn check_schema(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let members: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(members, ["name", "kind", "tags"], "{text}");
    assert!(value["name"].as_str().unwrap().chars().count() <= 12, "{text}");
    assert!(["cat", "dög"].contains(&value["kind"].as_str().unwrap()), "{text}");
    let tags = value["tags"].as_array().unwrap();
    // JSON's -0 is an integer too.
    let numbers = tags.iter().map(|tag| tag.as_f64().unwrap());
    assert!(tags.len() <= 3 && numbers.into_iter().all(|n| n.fract() == 0.0 && (-5.0..=120.0).contains(&n)), "{text}");
}

fn check_all(subject: &Subject, num_seeds: u64) {
    let choices = ["yes", "no, \"never\"", "yes and\nno"];
    for seed in 0..num_seeds {
        check_schema(&subject.draw(&Grammar::JsonSchema(SCHEMA.into()), seed));
        let text = subject.draw(&Grammar::Choice(choices.map(String::from).into()), seed);
        assert!(choices.contains(&text.as_str()), "{text:?}");
        let text = subject.draw(&Grammar::Regex(r"[ab]{2,5} ?(x|yz)\.".into()), seed);
        let (letters, end) = text.split_at(text.find(|c| !"ab".contains(c)).unwrap_or(text.len()));
        assert!((2..=5).contains(&letters.len()) && ["x.", "yz.", " x.", " yz."].contains(&end), "{text:?}");
        let lark =
            "start: sum\nsum: product (\"+\" product)?\nproduct: NUMBER | \"(\" NUMBER \")\"\nNUMBER: /[0-9]{1,3}/";
        let text = subject.draw(&Grammar::Lark(lark.into()), seed);
        assert!(text.chars().all(|c| "0123456789+()".contains(c)) && !text.is_empty(), "{text:?}");
    }
}

#[test]
fn whatever_is_drawn_matches() {
    check_all(&Subject::small(), 20);
}

#[test]
fn real_vocabularies_spell_what_matches() {
    for name in TOKENIZERS {
        let Some(tokenizer) = shared_tokenizer(name) else { continue };
        let Some(&end_id) = tokenizer.end_token_ids().first() else { continue };
        let subject = Subject::new(tokenizer, end_id);
        let start = Instant::now();
        let mut matcher = subject.compiler.compile(&Grammar::JsonSchema(SCHEMA.into())).unwrap();
        println!("{name}: the first grammar after {:?}", start.elapsed());
        // What has to come is written as the tokenizer would.
        let forced = matcher.forced();
        assert!(subject.tokenizer.decode(&forced, false).trim_start().starts_with('{') || forced.is_empty());
        check_all(&subject, 3);
    }
}

#[test]
fn what_steers_the_model_is_no_text() {
    let subject = Subject::small();
    let mut matcher = subject.compiler.compile(&Grammar::Regex("(?s:.*)".into())).unwrap();
    let allowed = matcher.allowed().unwrap();
    assert!(allowed.allows(subject.end_id) && !allowed.allows(subject.tokenizer.token_to_id("<s>").unwrap()));
    // The end token's spelling can be written all the same, letter by letter.
    let text = subject.draw(&Grammar::Choice(vec!["a</s>".into()]), 0);
    assert_eq!(text, "a</s>");
}

#[test]
fn a_clone_goes_on_by_itself_and_what_is_forbidden_is_an_error() {
    let subject = Subject::small();
    let id = |text: &str| subject.tokenizer.token_to_id(text).unwrap();
    let mut first = subject.compiler.compile(&Grammar::Choice(vec!["ab".into(), "ac".into()])).unwrap();
    let mut other = first.clone();
    assert_eq!(first.push_allowed(&[id("a"), id("b"), id("c")]), 2);
    assert_eq!(other.push_allowed(&[id("b")]), 0);
    other.push(id("a")).unwrap();
    assert_eq!(Vec::from_iter(other.allowed().unwrap().ids()), [id("b"), id("c")]);
    assert_eq!(Vec::from_iter(first.allowed().unwrap().ids()), [subject.end_id]);
    assert!(first.forced().is_empty());
    let error = other.push(id("x")).unwrap_err();
    assert_eq!(error.param(), Some("grammar"));
    assert!(other.allowed().is_err() && other.forced().is_empty() && other.push_allowed(&[id("b")]) == 0);
    // The compiled grammar is as it was.
    let mut again = subject.compiler.compile(&Grammar::Choice(vec!["ab".into(), "ac".into()])).unwrap();
    assert_eq!(again.forced(), [id("a")]);
}

#[test]
fn tokens_that_have_to_come_are_told() {
    let subject = Subject::small();
    let schema = r#"{"type": "object", "properties": {"name": {"const": "x"}}, "required": ["name"], "additionalProperties": false,
        "x-guidance": {"whitespace_flexible": false}}"#;
    let mut matcher = subject.compiler.compile(&Grammar::JsonSchema(schema.into())).unwrap();
    assert_eq!(subject.tokenizer.decode(&matcher.forced(), false), r#"{"name":"x"}"#);
}

#[test]
fn white_space_ends() {
    let subject = Subject::small();
    let mut matcher = subject.compiler.compile(&Grammar::JsonObject).unwrap();
    let space = subject.tokenizer.token_to_id("Ġ").unwrap();
    matcher.push(subject.tokenizer.token_to_id("{\"").unwrap()).unwrap();
    let name = subject.tokenizer.token_to_id("name").unwrap();
    let colon = subject.tokenizer.token_to_id("\":").unwrap();
    matcher.push(name).unwrap();
    matcher.push(colon).unwrap();
    let num_spaces = (0..1000).take_while(|_| matcher.push_allowed(&[space]) == 1).count();
    assert_eq!(num_spaces, 64);
}

fn check_error(grammar: Grammar, words: &str) {
    let error = Subject::small().compiler.compile(&grammar).unwrap_err();
    assert_eq!(error.param(), Some("grammar"), "{error}");
    assert!(error.to_string().starts_with("grammar: ") && error.to_string().contains(words), "{grammar:?}: {error}");
    assert!(error.to_string().len() < 1000, "{error}");
}

#[test]
fn what_is_wrong_with_a_grammar_is_said() {
    check_error(Grammar::JsonSchema("{\"type\": ".into()), "not JSON");
    check_error(Grammar::JsonSchema("true".into()), "must be an object");
    check_error(Grammar::JsonSchema(r#"{"type": "strin"}"#.into()), "strin");
    check_error(Grammar::JsonSchema(r##"{"$ref": "#/$defs/none"}"##.into()), "none");
    check_error(Grammar::JsonSchema(r#"{"$ref": "https://example.com/schema.json"}"#.into()), "ref");
    check_error(Grammar::Regex("a(b".into()), "unclosed group");
    check_error(Grammar::Regex("(?=a)b".into()), "look-around");
    check_error(Grammar::Choice(vec![]), "at least one text");
    check_error(Grammar::Choice(vec!["a".into(), String::new()]), "at least one text");
    check_error(Grammar::Lark(" \n".into()), "must not be empty");
    check_error(Grammar::Lark("start: missing".into()), "missing");
    assert_eq!(super::shortened("parser: NoExtensionBias"), "never ends: it refers to itself, and to nothing else");
    check_error(Grammar::Regex("a".repeat(Grammar::MAX_BYTES + 1)), "bytes");
    check_error(Grammar::Lark("start: T\nT: /a.*/ & /.*b/".into()), "& is not supported");
    check_error(Grammar::Lark("start: T\nT: ~/a/".into()), "~ is not supported");
    check_error(Grammar::Lark("start: a[temperature=0.5]\na: \"a\"".into()), "temperature");
    // Nested as deep as fits.
    for (open, close) in [("(", ")"), ("[", "]"), ("(?:", ")"), ("(a|", ")")] {
        let num = Grammar::MAX_BYTES / 2 / (open.len() + close.len());
        let nested = format!("{}a{}", open.repeat(num), close.repeat(num));
        check_error(Grammar::Regex(nested.clone()), "");
        check_error(Grammar::Lark(format!("start: {nested}")), "");
    }
    let nested = format!("{}{{}}{}", "{\"not\": ".repeat(10_000), "}".repeat(10_000));
    check_error(Grammar::JsonSchema(nested), "not JSON");
}

#[test]
fn a_model_without_end_tokens_has_no_grammars() {
    let compiler = GrammarCompiler::new(Arc::new(small_tokenizer()), vec![]);
    let error = compiler.compile(&Grammar::JsonObject).unwrap_err().to_string();
    assert!(error.contains("end token"), "{error}");
}

#[test]
fn many_grammars_are_not_kept_for_ever() {
    let compiler = Subject::small().compiler;
    for idx in (0..100).chain([99, 70, 0]) {
        compiler.compile(&Grammar::Regex(format!("a{{{}}}", idx + 1))).unwrap();
    }
    let kept: Vec<_> = compiler.kept.lock().unwrap().iter().map(|(grammar, _)| grammar.clone()).collect();
    assert_eq!(kept.len(), NUM_KEPT);
    let regex = |num: usize| Grammar::Regex(format!("a{{{num}}}"));
    assert_eq!(kept[NUM_KEPT - 3..], [regex(100), regex(71), regex(1)]);
}

/// What refers to itself level by level takes a stack to compile, of which a thread has little.
#[test]
fn long_chains_are_compiled_or_refused() {
    let compiler = Subject::small().compiler;
    let schema = |num: usize, link: &dyn Fn(usize) -> String, end: &str| {
        let links: String = (0..num).map(|i| format!(r#""{i}":{},"#, link(i + 1))).collect();
        Grammar::JsonSchema(format!(r##"{{"$ref": "#/$defs/0", "$defs": {{{links}"{end}": {{"type": "integer"}}}}}}"##))
    };
    let lark = |num: usize, link: &dyn Fn(usize) -> String, end: &str| {
        Grammar::Lark((0..num).map(link).collect::<String>() + end)
    };
    let rule = |i: usize| format!("r{i}: \"a\" r{}\n", i + 1);
    let terminal = |i: usize| format!("T{i}: \"a\" T{}?\n", i + 1);
    let reference = |i: usize| format!(r##"{{"$ref":"#/$defs/{i}"}}"##);
    let all_of = |i: usize| format!(r##"{{"allOf":[{{"$ref":"#/$defs/{i}"}}]}}"##);
    let property = |i: usize| format!(r##"{{"properties":{{"a":{{"$ref":"#/$defs/{i}"}}}}}}"##);
    for grammar in [
        lark(590, &rule, "r590: \"b\"\nstart: r0"),
        lark(590, &terminal, "T590: \"b\"\nstart: T0"),
        schema(2500, &property, "2500"),
        schema(3800, &reference, "3800"),
    ] {
        let mut matcher = compiler.compile(&grammar).unwrap();
        assert!(matcher.allowed().unwrap().ids().count() > 0);
    }
    // One of them leads nowhere, or there are too many.
    for (grammar, words) in [
        (lark(590, &rule, "start: r0"), "r590"),
        (lark(590, &terminal, "start: T0"), "T590"),
        (lark(600, &rule, "start: r0"), "601 rules, more than 600"),
        (schema(2500, &property, "none"), "2500"),
        (schema(2800, &all_of, "none"), "2800"),
    ] {
        let error = compiler.compile(&grammar).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn many_texts_are_one_terminal() {
    let subject = Subject::small();
    let texts: Vec<String> = (0..8000).map(|i| format!("x{i}")).collect();
    let text = subject.draw(&Grammar::Choice(texts.clone()), 5);
    assert!(texts.contains(&text));
}

/// A mask needs the first token of what has to come, and drafts a few.
#[test]
fn a_long_text_is_not_tokenized_whole() {
    let subject = Subject::small();
    let text = "the name is true, ".repeat(5000);
    let mut matcher = subject.compiler.compile(&Grammar::Choice(vec![text.clone()])).unwrap();
    let forced = matcher.forced();
    assert!((20..2000).contains(&forced.len()), "{} tokens", forced.len());
    assert!(text.starts_with(&subject.tokenizer.decode(&forced, false)));
    assert_eq!(subject.draw(&Grammar::Choice(vec![text[..1500].into()]), 0), text[..1500]);
}
