//! Reasoning and answers: the same however the text comes, and what is drawn by a grammar matches behind the reasoning.

#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::Section::{Call, Content, Reasoning};
use super::*;
use crate::config::Grammar;
use crate::sample::{TokenMask, uniform};
use crate::text::testing::{Subject, small_tokenizer, small_tokenizer_of, small_tokenizer_with};
use crate::text::{Detokenizer, GrammarMatcher};

const THINKING: &str = "{{ '</think>' }}";
const CHANNELS: &str = "{{ '<|channel|>' }}";

fn reasoning(text: &str) -> Section {
    Reasoning(text.into())
}

fn content(text: &str) -> Section {
    Content(text.into())
}

fn call(name: &str, arguments: &str) -> Section {
    Call(ToolCall { name: name.into(), arguments: arguments.into() })
}

/// The sections of an answer that comes in `pieces`, neighbours of a kind joined.
fn read<'a>(mut reader: AnswerReader, pieces: impl IntoIterator<Item = &'a str>) -> Vec<Section> {
    let mut sections: Vec<Section> = pieces.into_iter().flat_map(|piece| reader.push(piece)).collect();
    sections.extend(reader.finish());
    let mut joined: Vec<Section> = Vec::new();
    for section in sections {
        match (joined.last_mut(), section) {
            (Some(Reasoning(before)), Reasoning(text)) | (Some(Content(before)), Content(text)) => {
                before.push_str(&text)
            }
            (_, section) => joined.push(section),
        }
    }
    joined
}

/// A reader for an answer to a prompt that ends so.
fn reader(form: &AnswerForm, prompt: &str) -> AnswerReader {
    form.reader(&ChatInput::default(), prompt)
}

fn thinking() -> AnswerForm {
    AnswerForm::of(THINKING, &small_tokenizer())
}

fn channels() -> AnswerForm {
    AnswerForm::of(CHANNELS, &small_tokenizer_with(&marks::OF_CHANNELS))
}

/// Answers of models that think, and their sections.
fn thoughts() -> Vec<(&'static str, Vec<Section>)> {
    vec![
        ("<think>\na\n b\n</think>\n\nc\n d", vec![reasoning("a\n b"), content("c\n d")]),
        ("\n<think>a</think>b", vec![reasoning("a"), content("b")]),
        ("<think>\n\n</think>\n\nb", vec![content("b")]),
        ("<think></think>", vec![]),
        ("<think>a <b </think", vec![reasoning("a <b </think")]),
        ("<think>a\n\n", vec![reasoning("a")]),
        ("<think>é</think> é </think><think>x", vec![reasoning("é"), content("é </think><think>x")]),
        ("<think>a</thin</think>\u{fdda}b", vec![reasoning("a</thin"), content("\u{fdda}b")]),
        ("<think>\u{fdda}<think>b</think>", vec![reasoning("<think>b")]),
        // Marks where the tags are special tokens.
        ("\u{fdd7}\na</think\u{fdd8}\nb\u{fdd8}", vec![reasoning("a</think"), content("b")]),
        // None.
        (" a <think>b</think>", vec![content(" a <think>b</think>")]),
        ("<thinking>", vec![content("<thinking>")]),
        (" <thin", vec![content(" <thin")]),
        ("", vec![]),
    ]
}

/// Answers in channels, and their sections; marks as they are spelled.
fn messages() -> Vec<(&'static str, Vec<Section>)> {
    vec![
        (
            "<|channel|>analysis<|message|>a\nb<|end|><|start|>assistant<|channel|>final<|message|> c <|end|>",
            vec![reasoning("a\nb"), content(" c ")],
        ),
        ("<|channel|>final<|message|>a < to=b", vec![content("a < to=b")]),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|><|start|>assistant\
             <|channel|>commentary<|message|>c<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>{}<|return|>",
            vec![reasoning("a\nb"), content("c\n{}")],
        ),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json\
             <|message|>{\"x\": 1}<|call|>",
            vec![reasoning("a"), call("f", "{\"x\": 1}")],
        ),
        (" to=functions.get_time<|channel|>commentary json<|message|>{}", vec![call("get_time", "{}")]),
        ("<|start|>assistant to=functions.f<|channel|>commentary<|message|>", vec![call("f", "")]),
        // No function; no channel; no end; no message; no header.
        ("<|channel|>commentary to=browser.open<|message|>a", vec![content("a")]),
        ("<|channel|>analysis to=python code<|message|>a<|call|>", vec![reasoning("a")]),
        ("<|message|>a", vec![content("a")]),
        ("<|channel|>analysis<|message|>a<|channel|>final<|message|>b", vec![reasoning("a"), content("b")]),
        ("<|channel|>analysis<|message|><|message|>a<|constrain|>b<|start|>x", vec![reasoning("ab")]),
        ("<|channel|>anal", vec![]),
        ("Hello <|channel|>final<|message|>b", vec![content("Hello \nb")]),
        ("to", vec![content("to")]),
        ("today", vec![content("today")]),
        (" ", vec![content(" ")]),
        ("", vec![]),
    ]
}

/// The pieces of `answer`, cut before some of its characters.
fn pieces(answer: &str, is_cut: impl Fn(usize) -> bool) -> Vec<&str> {
    let mut cuts: Vec<usize> = answer.char_indices().map(|(at, _)| at).filter(|&at| is_cut(at)).collect();
    cuts.insert(0, 0);
    cuts.push(answer.len());
    cuts.windows(2).map(|ends| &answer[ends[0]..ends[1]]).collect()
}

#[test]
fn sections_are_told_apart_however_the_text_comes() {
    let thoughts = thoughts().into_iter().map(|(answer, expected)| (thinking(), answer.to_owned(), expected));
    let messages = messages()
        .into_iter()
        .map(|(answer, expected)| (channels(), marks::signed(answer, &marks::OF_CHANNELS), expected));
    for (form, answer, expected) in thoughts.chain(messages) {
        let read = |pieces: Vec<&str>| read(reader(&form, "<|start|>assistant"), pieces);
        assert_eq!(read(vec![&answer]), expected, "{answer:?}");
        assert_eq!(read(pieces(&answer, |_| true)), expected, "{answer:?}");
        for seed in 0..8 {
            let pieces = pieces(&answer, |at| uniform(seed, 0, at as u32, 0) < 0.2);
            assert_eq!(read(pieces.clone()), expected, "{pieces:?}");
        }
    }
    // What is plain stays as it is.
    assert_eq!(read(AnswerReader::default(), ["<think>", "a</think>"]), [content("<think>a</think>")]);
}

/// Each would take minutes if white space were looked at again with every piece that comes.
#[test]
fn endless_white_space_is_read_once() {
    let blanks = " \n".repeat(200_000);
    for (form, begin, end, expected) in [
        (thinking(), "", "b", vec![content(&format!("{blanks}b"))]),
        (thinking(), "", "<think>b", vec![reasoning("b")]),
        (thinking(), "<think>", "b</think>", vec![reasoning("b")]),
        (thinking(), "<think>a", "b</think>", vec![reasoning(&format!("a{blanks}b"))]),
        (thinking(), "<think>a", "</think>b", vec![reasoning("a"), content("b")]),
        (thinking(), "<think>a</think>", "b", vec![reasoning("a"), content("b")]),
        (channels(), "", "b", vec![content(&format!("{blanks}b"))]),
        (channels(), "", "to=b", vec![content(&format!("{blanks}to=b"))]),
    ] {
        let answer = format!("{begin}{blanks}{end}");
        for is_cut in [true, false] {
            assert_eq!(read(reader(&form, ""), pieces(&answer, |_| is_cut)), expected, "{begin}, {end}");
        }
    }
}

/// A token can spell a noncharacter that stands for a mark: it is none all the same, and no call can be made with it.
#[test]
fn what_stands_for_a_mark_is_none_where_a_token_says_it() {
    // U+FDD0, byte by byte.
    let tokenizer = Arc::new(small_tokenizer_of(&["ï·Ĳ", "ï", "·", "Ĳ"], &marks::OF_CHANNELS));
    let form = AnswerForm::of(CHANNELS, &tokenizer);
    let ids = |names: &[&str]| -> Vec<u32> { names.iter().map(|name| tokenizer.token_to_id(name).unwrap()).collect() };
    assert_eq!(tokenizer.decode(&ids(&["ï·Ĳ"]), true), marks::CHANNEL.to_string());
    for names in [vec!["name", "ï·Ĳ", "true"], vec!["name", "ï", "·", "Ĳ", "true"]] {
        let mut detokenizer = Detokenizer::new(&[], true, true).with_marks(form.marks().clone());
        let mut texts: Vec<String> = ids(&names).iter().map(|&id| detokenizer.push(&tokenizer, id)).collect();
        texts.push(detokenizer.finish(&tokenizer));
        assert_eq!(texts.concat(), "name\u{fffd}true");
        let sections = read(reader(&form, "<|start|>assistant"), texts.iter().map(String::as_str));
        assert_eq!(sections, [content("name\u{fffd}true")]);
        let mut by_tokens = reader(&form, "<|start|>assistant");
        ids(&names).iter().for_each(|&id| drop(by_tokens.push_token(&tokenizer, id)));
        assert_eq!(by_tokens.place(), Place::Answer);
    }
    // Where nothing is told by marks, text is as it is said.
    let mut detokenizer = Detokenizer::new(&[], true, true);
    let plain: String = ids(&["ï·Ĳ", "true"]).iter().map(|&id| detokenizer.push(&tokenizer, id)).collect();
    assert_eq!(plain, format!("{}true", marks::CHANNEL));
}

#[test]
fn a_prompt_says_where_an_answer_begins() {
    let (thinking, channels) = (thinking(), channels());
    for (prompt, expected) in [
        ("</think><|im_start|>assistant\n", Place::Undecided),
        ("<|im_start|>assistant\n<think>\n", Place::Before),
        ("<think>\n\n</think>\n\n", Place::Answer),
        ("", Place::Undecided),
    ] {
        assert_eq!(reader(&thinking, prompt).place(), expected, "{prompt}");
    }
    for (text, expected) in [("<think>a", Place::Before), ("<think>a</think>", Place::Answer), ("a", Place::Answer)] {
        for content in [json!(text), json!([{"type": "text", "text": text}])] {
            let messages = vec![json!({"role": "assistant", "content": content})];
            let chat = ChatInput { messages, continue_final_message: true, ..ChatInput::default() };
            assert_eq!(thinking.reader(&chat, text).place(), expected, "{text}");
        }
    }
    for (prompt, expected) in [
        ("<|start|>user<|message|>a<|end|><|start|>assistant", Place::Undecided),
        ("<|start|>assistant<|channel|>final<|message|>a", Place::Answer),
        ("<|start|>assistant<|channel|>analysis<|message|>", Place::Before),
        ("<|start|>assistant<|channel|>final", Place::Before),
        ("", Place::Undecided),
    ] {
        assert_eq!(reader(&channels, prompt).place(), expected, "{prompt}");
    }
    let begun = reader(&channels, "<|start|>assistant<|channel|>final<|message|>a");
    assert_eq!(read(begun, ["b"]), [content("b")]);
    let begun = reader(&thinking, "<think>\n");
    assert_eq!(read(begun, ["\na</think>\nb"]), [reasoning("a"), content("b")]);
}

#[test]
fn a_template_says_which_form() {
    let (plain, marked) = (small_tokenizer(), small_tokenizer_with(&["<think>", "</think>", "<|channel|>", "<|end|>"]));
    let num_marks = |template: &str, tokenizer| {
        let form = AnswerForm::of(template, tokenizer);
        form.reasons().then_some(form.marks().len())
    };
    assert_eq!(num_marks("{{ messages }}", &marked), None);
    assert_eq!(num_marks(THINKING, &plain), Some(0));
    assert_eq!(num_marks(THINKING, &marked), Some(2));
    assert_eq!(num_marks("[/THINK]", &marked), Some(0));
    assert_eq!(num_marks(CHANNELS, &marked), Some(2));
    // Its tokens are what channels are told by.
    assert_eq!(num_marks(CHANNELS, &plain), None);
}

#[test]
fn text_is_told_as_soon_as_it_is_certain() {
    let mut reader = reader(&thinking(), "");
    assert_eq!(reader.push(" <thi"), []);
    assert_eq!(reader.push("nk>\n"), []);
    assert_eq!(reader.push("a\n"), [reasoning("a")]);
    assert_eq!(reader.push("b </t"), [reasoning("\nb")]);
    assert_eq!(reader.push("ea"), [reasoning(" </tea")]);
    assert_eq!(reader.push("</think>\n"), []);
    assert_eq!(reader.push("\nc "), [content("c ")]);
    assert_eq!(reader.finish(), []);
}

/// A special token is seen where the text does not show it, and one that is not special where it is spelled.
#[test]
fn tokens_are_read_as_their_text() {
    let special = small_tokenizer_with(&["<think>", "</think>"]);
    let messages = small_tokenizer_with(&marks::OF_CHANNELS);
    let answer = "<think>the 12ö\n</think>\nname";
    let harmony = "<|channel|>analysis<|message|>the 12ö<|end|><|start|>assistant<|channel|>final<|message|>name";
    for (tokenizer, template, answer, num_around) in [
        // A tag that is spelled is seen with its last letter.
        (small_tokenizer(), THINKING, answer, 1 + "</think>".len()),
        (special, THINKING, answer, 2),
        (messages, CHANNELS, harmony, 2),
    ] {
        let tokenizer = &Arc::new(tokenizer);
        let form = AnswerForm::of(template, tokenizer);
        let ids = tokenizer.encode(answer, false).unwrap();
        let reader = reader(&form, "");
        let mut detokenizer = Detokenizer::new(&[], true, true).with_marks(form.marks().clone());
        let mut texts: Vec<String> = ids.iter().map(|&id| detokenizer.push(tokenizer, id)).collect();
        texts.push(detokenizer.finish(tokenizer));
        let texts = texts.iter().map(String::as_str);
        assert_eq!(read(reader.clone(), texts), [reasoning("the 12ö"), content("name")], "{template}");
        let mut count = ReasoningCount::new(reader, tokenizer.clone());
        count.push(&ids);
        let num_inside = tokenizer.encode("the 12ö", false).unwrap().len();
        // The white space before the tag belongs to what is thought.
        let num_space = answer.matches("ö\n").count();
        assert_eq!(count.num_tokens(), num_inside + num_around + num_space, "{template}");
    }
}

/// Draws an answer, each token of those that are allowed, tags more often than others.
fn draw(subject: &Subject, matcher: &mut GrammarMatcher, seed: u64) -> Vec<u32> {
    let mut ids: Vec<u32> = Vec::new();
    for position in 0..400 {
        let allowed = matcher.allowed().unwrap();
        let all: Vec<u32> = allowed.ids().collect();
        let last = ids.last().map_or(String::new(), |&id| subject.tokenizer.decode(&[id], false));
        let next = ["</think>", "<think>"].into_iter().flat_map(|tag| {
            // All letters of a tag differ.
            let at = tag.find(&last).filter(|_| last.len() == 1).map_or(0, |at| at + 1);
            [(tag, 0.3), (tag.get(at..=at).unwrap_or_default(), if at == 0 { 0.3 } else { 0.97 })]
        });
        let mut steered = next.filter_map(|(text, p)| Some((subject.tokenizer.token_to_id(text)?, p)));
        let steered = steered.find(|&(id, _)| allowed.allows(id));
        let draw = |purpose| uniform(seed, purpose, position, 0);
        let id = steered.filter(|&(_, p)| draw(1) < p).map(|(id, _)| id);
        let id = id.unwrap_or(all[(draw(0) * all.len() as f64) as usize]);
        // A copy that shares nothing takes it too.
        assert!(id == subject.end_id || matcher.apart().push_allowed(&[id, id]) >= 1);
        matcher.push(id).unwrap();
        if id == subject.end_id {
            return ids;
        }
        ids.push(id);
    }
    ids
}

/// The only content of an answer of these tokens, and whether there is reasoning.
fn content_of(subject: &Subject, reader: &AnswerReader, ids: &[u32]) -> (Option<String>, bool) {
    let mut reader = reader.clone();
    let mut sections: Vec<Section> = ids.iter().flat_map(|&id| reader.push_token(&subject.tokenizer, id)).collect();
    sections.extend(reader.finish());
    let texts = sections.iter().filter_map(|section| match section {
        Content(text) => Some(text.as_str()),
        _ => None,
    });
    let content: String = texts.collect();
    (Some(content).filter(|text| !text.is_empty()), sections.iter().any(|section| matches!(section, Reasoning(_))))
}

fn choice() -> Grammar {
    Grammar::Choice(vec!["<true".into(), " the 12".into(), "name".into()])
}

#[test]
fn a_grammar_binds_what_comes_behind_the_reasoning() {
    let special = || Subject::small_with(&["<think>", "</think>"]);
    for (subject, prompt, least_reasoned, least_plain) in [
        (Subject::small(), "<think>\n", 20, 0),
        (Subject::small(), "", 10, 10),
        (special(), "<think>\n", 20, 0),
        (special(), "", 10, 10),
        (Subject::small(), "<think></think>", 0, 60),
    ] {
        let reader = reader(&AnswerForm::of(THINKING, &subject.tokenizer), prompt);
        let (mut num_reasoned, mut num_plain) = (0, 0);
        for seed in 0..60 {
            let matcher = subject.compiler.compile(&choice()).unwrap();
            let mut matcher = subject.compiler.behind_reasoning(matcher, &reader);
            let ids = draw(&subject, &mut matcher, seed);
            let (content, has_reasoning) = content_of(&subject, &reader, &ids);
            let words = || format!("{prompt:?}, seed {seed}: {:?}", subject.tokenizer.decode(&ids, false));
            assert!(matcher.error().is_none(), "{}", words());
            match content.as_deref() {
                // White space that the reader leaves out is bound all the same.
                Some("<true" | " the 12" | "the 12" | "name") if has_reasoning => num_reasoned += 1,
                Some("<true" | " the 12" | "the 12" | "name") => num_plain += 1,
                _ => assert_eq!(ids.len(), 400, "{}", words()),
            }
        }
        assert!(num_reasoned >= least_reasoned && num_plain >= least_plain, "{prompt:?}: {num_reasoned}, {num_plain}");
    }
}

#[test]
fn a_grammar_binds_the_final_message() {
    let subject = Subject::small_with(&marks::OF_CHANNELS);
    let form = AnswerForm::of(CHANNELS, &subject.tokenizer);
    let ids = |text: &str| subject.tokenizer.encode(text, false).unwrap();
    let fresh = || subject.compiler.compile(&choice()).unwrap();
    let bound = |prompt: &str| subject.compiler.behind_reasoning(fresh(), &reader(&form, prompt));
    let begun = fresh().allowed().unwrap();
    let mut matcher = bound("<|start|>assistant");
    let channel = subject.tokenizer.token_to_id("<|channel|>").unwrap();
    assert_eq!(matcher.allowed().unwrap(), begun.clone().or(&TokenMask::from_ids([channel])));
    for text in
        ["<|channel|>analysis<|message|>name<|end|>", "<|start|>assistant<|channel|>final <|constrain|>json<|message|>"]
    {
        for id in ids(text) {
            let allowed = matcher.allowed().unwrap();
            assert!(allowed.allows(id), "{text}");
            matcher.push(id).unwrap();
        }
        let allowed = matcher.allowed().unwrap();
        let is_bound = text.contains("final");
        assert!(!allowed.allows(subject.end_id) && (allowed == begun) == is_bound, "{text}");
        assert!(is_bound || matcher.forced().is_empty(), "{text}");
    }
    for id in ids("name") {
        matcher.push(id).unwrap();
    }
    assert!(matcher.allowed().unwrap().allows(subject.end_id));
    // Where the prompt has begun it, and where nothing says that there are messages.
    assert_eq!(bound("<|start|>assistant<|channel|>final<|message|>").allowed().unwrap(), begun);
    let mut matcher = bound("<|start|>assistant");
    for id in ids("name") {
        matcher.push(id).unwrap();
    }
    assert!(matcher.allowed().unwrap().allows(subject.end_id));
}

/// The token that ends reasoning may have more in it, which would have to match: it is not allowed.
#[test]
fn reasoning_does_not_end_within_a_token_that_begins_the_answer() {
    let subject = Subject::of(small_tokenizer_of(&["k>x", "k>Ċ"], &[]));
    let id = |text: &str| subject.tokenizer.token_to_id(text).unwrap();
    let reader = reader(&AnswerForm::of(THINKING, &subject.tokenizer), "<think>");
    let mut matcher = subject.compiler.behind_reasoning(subject.compiler.compile(&choice()).unwrap(), &reader);
    assert!(matcher.allowed().unwrap().allows(id("k>x")));
    for letter in ["<", "/", "t", "h", "i", "n"] {
        matcher.push(id(letter)).unwrap();
    }
    let allowed = matcher.allowed().unwrap();
    assert!(allowed.allows(id("k")) && allowed.allows(id("k>Ċ")) && !allowed.allows(id("k>x")));
    matcher.push(id("k>Ċ")).unwrap();
    assert!(!matcher.allowed().unwrap().allows(id("k")) && matcher.allowed().unwrap().allows(id("name")));
}
