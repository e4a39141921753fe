//! Calls in answers: what is found however the text comes, and what is drawn by a grammar is a call.

#![allow(clippy::unwrap_used)]

use serde_json::{Map, Value, json};

use super::AnswerPart::{Call, Text};
use super::*;
use crate::sample::uniform;
use crate::text::testing::Subject;
use crate::text::{AnswerForm, ChatInput, Detokenizer, Section};

fn reader() -> CallReader {
    CallReader::new(tools().into())
}

/// The parts of an answer that comes in `pieces`, neighbouring texts joined.
fn read<'a>(pieces: impl IntoIterator<Item = &'a str>) -> Vec<AnswerPart> {
    let mut reader = reader();
    let mut parts: Vec<AnswerPart> = pieces.into_iter().flat_map(|piece| reader.push(piece)).collect();
    parts.extend(reader.finish());
    let mut joined: Vec<AnswerPart> = Vec::new();
    for part in parts {
        match (joined.last_mut(), part) {
            (Some(Text(before)), Text(text)) => before.push_str(&text),
            (_, part) => joined.push(part),
        }
    }
    joined
}

fn call(name: &str, arguments: &str) -> AnswerPart {
    Call(ToolCall { name: name.into(), arguments: arguments.into() })
}

fn text(text: &str) -> AnswerPart {
    Text(text.into())
}

/// Answers, and their parts.
fn answers() -> Vec<(&'static str, Vec<AnswerPart>)> {
    let f = || call("f", r#"{"x": 1}"#);
    vec![
        // The forms, with marks and without.
        ("<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call>", vec![f()]),
        (
            "<tool_call>{\"name\": \"f\", \"arguments\": {\"x\": 1}}</tool_call>\n<tool_call>\n{\"name\": \"get_time\", \
             \"arguments\": {}}\n</tool_call>\n",
            vec![f(), call("get_time", "{}")],
        ),
        ("Let me see.\n<tool_call>{\"name\": \"f\", \"arguments\": {\"x\": 1}}", vec![text("Let me see.\n"), f()]),
        (
            "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"x\": 1}}, {\"name\": \"f\", \"arguments\": {\"x\": 1}}]",
            vec![f(), f()],
        ),
        (" [{\"name\": \"f\", \"arguments\": {\"x\": 1}}]", vec![f()]),
        ("{\"name\": \"f\", \"parameters\": {\"x\": 1}}", vec![f()]),
        (
            "<|python_tag|>{\"name\": \"f\", \"parameters\": {\"x\": 1}}; {\"name\": \"get_time\", \"parameters\": {}}",
            vec![f(), call("get_time", "{}")],
        ),
        (
            "\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n",
            vec![f(), f()],
        ),
        // Named, one after another; marks can come as such.
        (
            "[TOOL_CALLS]f[ARGS]{\"x\": 1}[TOOL_CALLS]get_time[CALL_ID]a1B2c3D4e[ARGS]{}",
            vec![f(), call("get_time", "{}")],
        ),
        (" \u{fddb}get_time\u{fddc} {\"[ARGS]\": \"}\"}", vec![call("get_time", "{\"[ARGS]\": \"}\"}")]),
        ("a [TOOL_CALLS]f{\"x\": 1} b", vec![text("a "), f(), text("b")]),
        // Arguments one by one, typed by the schema.
        (
            "<tool_call>\n<function=f>\n<parameter=unit>\nc\n</parameter>\n<parameter=n>\n7\n</parameter>\n</function>\n</tool_call>",
            vec![call("f", "{\"unit\": \"c\", \"n\": 7}")],
        ),
        (
            "Well.\n<function=f><parameter=text>\n<a>\n</parameter> 5\n\n</parameter><parameter=flag>True</parameter><parameter=n>x\n\
             </parameter></function>\n</tool_call>\n<tool_call><function=get_time>\n</function></tool_call>",
            vec![
                text("Well.\n"),
                call("f", "{\"text\": \"<a>\\n</parameter> 5\\n\", \"flag\": true, \"n\": \"x\"}"),
                call("get_time", "{}"),
            ],
        ),
        (
            "<function=f><parameter=list>[1, {\"a\": null}]</parameter><parameter=map>{\"x\": \"</function>\"}</parameter>\
             <parameter=maybe>null</parameter><parameter=other>12</parameter></function>",
            vec![call(
                "f",
                "{\"list\": [1, {\"a\": null}], \"map\": {\"x\": \"</function>\"}, \"maybe\": null, \"other\": \"12\"}",
            )],
        ),
        ("<tool_call><function=get_time> {\"x\": [2]} </function>", vec![call("get_time", "{\"x\": [2]}")]),
        ("{\"arguments\": \"{\\\"x\\\": 1}\", \"type\": \"function\", \"name\": \"f\"}", vec![f()]),
        (
            "{\"name\": \"f\", \"arguments\": {\"é\": \"}]{\\\"\\\\\", \"y\": [{}, [\"<tool_call>\"]]}} Done; <",
            vec![call("f", "{\"é\": \"}]{\\\"\\\\\", \"y\": [{}, [\"<tool_call>\"]]}"), text("Done; <")],
        ),
        // Numbers are as the model has written them.
        (
            "{\"name\": \"f\", \"arguments\": {\"n\": 12345678901234567890123, \"x\": 1e400}}",
            vec![call("f", "{\"n\": 12345678901234567890123, \"x\": 1e400}")],
        ),
        // What is none.
        ("[TOOL_CALLS]g[ARGS]{}", vec![text("[TOOL_CALLS]g[ARGS]{}")]),
        ("[TOOL_CALLS]f [ARGS]{} [TOOL_CALLS]f[ARGS]1", vec![text("[TOOL_CALLS]f [ARGS]{} [TOOL_CALLS]f[ARGS]1")]),
        ("[TOOL_CALLS]f[ARGS]", vec![text("[TOOL_CALLS]f[ARGS]")]),
        ("<function=g></function>", vec![text("<function=g></function>")]),
        ("<tool_call><function=f><parameter=n>1", vec![text("<tool_call><function=f><parameter=n>1")]),
        ("<function=f>x</function> y", vec![text("<function=f>x</function> y")]),
        ("Use <function=name> as in C", vec![text("Use <function=name> as in C")]),
        ("", vec![]),
        (" \n", vec![text(" \n")]),
        ("é{\"x\": \"é", vec![text("é{\"x\": \"é")]),
        ("<tool_call>\u{fffd}", vec![text("<tool_call>\u{fffd}")]),
        ("Hello, [world] {x} <b>!", vec![text("Hello, [world] {x} <b>!")]),
        ("{\"name\": \"g\", \"arguments\": {}}", vec![text("{\"name\": \"g\", \"arguments\": {}}")]),
        ("{\"name\": \"f\"} {\"x\": 1}", vec![text("{\"name\": \"f\"} {\"x\": 1}")]),
        ("{\"name\": \"f\", \"arguments\": [1]}", vec![text("{\"name\": \"f\", \"arguments\": [1]}")]),
        (" {\"name\": \"f\", \"arguments\": {\"x\": 1", vec![text(" {\"name\": \"f\", \"arguments\": {\"x\": 1")]),
        ("{\"name\": \"f\", \"arguments\": {\"x\": 01}}", vec![text("{\"name\": \"f\", \"arguments\": {\"x\": 01}}")]),
        ("Say {\"name\": \"f\", \"arguments\": {}}", vec![text("Say {\"name\": \"f\", \"arguments\": {}}")]),
        ("<tool_call>\nno JSON</tool_call>", vec![text("<tool_call>\nno JSON</tool_call>")]),
        (" <tool_call>{\"<tool_call>{\"name\": \"f\", \"arguments\": {\"x\": 1}}", vec![text(" <tool_call>{\""), f()]),
        ("<tool_call", vec![text("<tool_call")]),
        ("[TOOL_CALLS]", vec![text("[TOOL_CALLS]")]),
        ("[]", vec![text("[]")]),
        (
            "[{\"name\": \"f\", \"arguments\": {}}, {\"name\": \"g\", \"arguments\": {}}]",
            vec![text("[{\"name\": \"f\", \"arguments\": {}}, {\"name\": \"g\", \"arguments\": {}}]")],
        ),
        (
            "{\"name\": \"f\", \"arguments\": {\"x\": 1}}</tool_call>{\"name\": \"g\"}</tool_c",
            vec![f(), text("{\"name\": \"g\"}</tool_c")],
        ),
    ]
}

#[test]
fn calls_are_found_and_all_else_is_text() {
    for (answer, parts) in answers() {
        assert_eq!(read([answer]), parts, "{answer:?}");
    }
}

/// The pieces of `answer`, cut before some of its characters.
fn pieces(answer: &str, is_cut: impl Fn(usize) -> bool) -> Vec<&str> {
    let mut cuts: Vec<usize> = answer.char_indices().map(|(at, _)| at).filter(|&at| is_cut(at)).collect();
    cuts.insert(0, 0);
    cuts.push(answer.len());
    cuts.windows(2).map(|ends| &answer[ends[0]..ends[1]]).collect()
}

#[test]
fn how_the_text_comes_changes_nothing() {
    // Whatever follows on whatever, too.
    let one_by_one = answers().into_iter().map(|(answer, _)| answer.to_owned());
    let pairs = answers().into_iter().flat_map(|(a, _)| answers().into_iter().map(move |(b, _)| format!("{a}{b}")));
    for answer in one_by_one.chain(pairs) {
        let whole = read([answer.as_str()]);
        assert_eq!(read(pieces(&answer, |_| true)), whole, "{answer:?}");
        for seed in 0..4 {
            let pieces = pieces(&answer, |at| uniform(seed, 0, at as u32, 0) < 0.2);
            assert_eq!(read(pieces.clone()), whole, "{pieces:?}");
        }
    }
}

#[test]
fn whatever_a_model_writes_is_read() {
    let words = [
        r#"{"name": "f", "arguments": {}}"#,
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "<|python_tag|>",
        "<function=f>",
        "<parameter=n>",
        "</parameter>",
        "</function>",
        "[TOOL_CALLS]f[ARGS]",
        "{\"name\": \"f\", ",
        "\"arguments\": ",
        "{}",
        "{",
        "}",
        "[",
        "]",
        "\"",
        "\\",
        "é",
        "\u{fffd}",
        " ",
        "\n",
        ";",
        ", ",
        "<",
        "f",
        "1",
    ];
    let mut num_calls = 0;
    for seed in 0..4000 {
        let draw = |position, num: usize| (uniform(seed, 0, position, 0) * num as f64) as usize;
        let answer: Vec<&str> =
            (1..2 + draw(0, 30) as u32).map(|position| words[draw(position, words.len())]).collect();
        let parts = read(answer.clone());
        assert_eq!(parts, read([answer.concat().as_str()]), "{answer:?}");
        assert_eq!(parts, read(pieces(&answer.concat(), |_| true)), "{answer:?}");
        num_calls += parts.iter().filter(|part| matches!(part, Call(_))).count();
        if parts.iter().all(|part| matches!(part, Text(_))) {
            assert_eq!(parts, [text(&answer.concat())], "{answer:?}");
        }
    }
    assert!(num_calls > 0);
}

/// Each would take hours if what has been looked at were looked at again for every mark in it.
#[test]
fn what_looks_like_many_calls_is_read_once() {
    for piece in [
        "<tool_call>{\"",
        "<tool_call>",
        "[TOOL_CALLS] [{\"a\": ",
        "<tool_call>{\"a\": {\"<tool_call>\": 1}}",
        "<|python_tag|> ",
        "<function=f>",
        "<function=f><parameter=n>1</parameter>\n",
        "<function=f><parameter=n></function> ",
        "[TOOL_CALLS]f[ARGS]{\"",
        "[TOOL_CALLS]f",
    ] {
        let answer = piece.repeat((2 << 20) / piece.len());
        assert_eq!(read([answer.as_str()]), [text(&answer)], "{piece}");
    }
    let nested = "<tool_call>{\"a\": ".repeat(100_000) + &"}".repeat(100_000);
    assert_eq!(read([nested.as_str()]), [text(&nested)]);
}

/// Each would take minutes if white space were looked at again with every piece that comes.
#[test]
fn endless_white_space_is_read_once() {
    const CALL: &str = "{\"name\": \"f\", \"arguments\": {}}";
    let blanks = " \n".repeat(200_000);
    for begin in ["", "<tool_call>", "{", "[TOOL_CALLS]f[ARGS]", "[TOOL_CALLS] [", "a"] {
        let answer = format!("{begin}{blanks}{CALL}");
        assert_eq!(read([answer.as_str()]), [text(&answer)], "{begin}");
        assert_eq!(read(pieces(&answer, |_| true)), [text(&answer)], "{begin}");
    }
    for blank in [" ", ";", "\u{3000}", "</tool_call>"] {
        let answer = format!("{CALL}{}b", blank.repeat(200_000));
        let parts = read([answer.as_str()]);
        assert_eq!(read(pieces(&answer, |_| true)), parts, "{blank}");
        assert_eq!((parts.len(), &parts[0]), (2, &call("f", "{}")));
    }
    // Some of it is around calls.
    let some = " ".repeat(1000);
    assert_eq!(read([format!("{some}<tool_call>{some}{CALL}{some}{CALL}").as_str()]), [call("f", "{}"), call("f", "{}")]);
}

#[test]
fn text_is_told_as_soon_as_it_cannot_become_a_call() {
    let mut reader = reader();
    assert_eq!(reader.push(" <"), []);
    assert_eq!(reader.push("b> a"), [text(" <b> a")]);
    assert_eq!(reader.push("b <tool_"), [text("b ")]);
    assert_eq!(reader.push("call>{\"name\": \"f\", \"arguments\": {"), []);
    assert_eq!(reader.push("}"), []);
    assert_eq!(reader.push("}\n</tool_call>"), [call("f", "{}")]);
    assert_eq!(reader.push(" c"), [text("c")]);
    assert_eq!(reader.finish(), []);
}

fn tools() -> Vec<Value> {
    let parameters = json!({"type": "object", "properties": {"unit": {"$ref": "#/$defs/unit"}, "n": {"type": "integer", "maximum": 99,
        "minimum": 0}, "text": {"type": "string", "minLength": 2, "maxLength": 5}, "flag": {"type": ["boolean", "null"]},
        "list": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}, "map": {"type": "object", "properties": {}, "additionalProperties": false},
        "maybe": {"anyOf": [{"const": 5}, {"type": "null"}]}, "other": {"type": "string", "enum": ["d", "e"]},
        "note": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}], "default": null}},
        "required": ["unit", "n"], "additionalProperties": false, "$defs": {"unit": {"enum": ["c", "f<s>"]}}});
    vec![
        json!({"type": "function", "function": {"name": "f", "parameters": parameters}}),
        json!({"type": "function", "function": {"name": "get_time", "description": "The time."}}),
    ]
}

/// Arguments of `f` are as its schema has them.
fn check_arguments(arguments: &Value) {
    let members = arguments.as_object().unwrap();
    let has = |key: &str, holds: &dyn Fn(&Value) -> bool| assert!(members.get(key).is_none_or(holds), "{arguments}");
    assert!(members.contains_key("unit") && members.contains_key("n"), "{arguments}");
    has("unit", &|v| v == "c" || v == "f<s>");
    has("n", &|v| v.as_f64().is_some_and(|n| (0.0..=99.0).contains(&n) && n.fract() == 0.0));
    has("text", &|v| v.as_str().is_some_and(|text| (2..=5).contains(&text.chars().count())));
    has("flag", &|v| v.is_boolean() || v.is_null());
    has("list", &|v| v.as_array().is_some_and(|list| list.len() <= 2));
    has("map", &|v| v.as_object().is_some_and(Map::is_empty));
    has("maybe", &|v| v == 5 || v.is_null());
    has("other", &|v| v == "d" || v == "e");
    has("note", &|v| v.is_null() || v.as_str().is_some_and(|text| text.chars().count() <= 3));
    assert!(
        members.keys().all(|key| {
            ["unit", "n", "text", "flag", "list", "map", "maybe", "other", "note"].contains(&key.as_str())
        })
    );
}

/// The text of an answer, with the marks that calls of a form have.
fn text_of(subject: &Subject, form: CallForm, ids: &[u32], skips_special: bool) -> String {
    let tokenizer = &subject.tokenizer;
    let mut detokenizer = Detokenizer::new(&[], skips_special, true).with_marks(form.marks(tokenizer));
    let text: String = ids.iter().map(|&id| detokenizer.push(tokenizer, id)).collect();
    text + &detokenizer.finish(tokenizer)
}

fn check_drawn(subject: &Subject, form: CallForm, count: CallCount, skips_special: bool) -> usize {
    let tools = tools();
    let grammar = form.grammar(&tools, count, &subject.tokenizer).unwrap();
    let mut num_calls = 0;
    for seed in 0..8 {
        let answer = subject.draw_ids(&grammar, seed);
        let answer = text_of(subject, form, &answer, skips_special);
        let calls = read([answer.as_str()]);
        assert!(!calls.is_empty() && (count == CallCount::Many || calls.len() == 1), "{answer:?}");
        num_calls += calls.len();
        for part in calls {
            let Call(ToolCall { name, arguments }) = part else { panic!("{answer:?}: {part:?}") };
            let arguments: Value = serde_json::from_str(&arguments).unwrap();
            match name.as_str() {
                "get_time" => assert_eq!(arguments, json!({})),
                _ => check_arguments(&arguments),
            }
        }
    }
    num_calls
}

#[test]
fn what_is_drawn_by_a_grammar_is_a_call() {
    let plain = Subject::small();
    let marked = Subject::small_with(&["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"]);
    for form in [CallForm::Tagged, CallForm::Xml, CallForm::List, CallForm::Named, CallForm::Object] {
        for (subject, skips_special) in [(&plain, true), (&marked, true), (&marked, false)] {
            let one = check_drawn(subject, form, CallCount::One, skips_special);
            let many = check_drawn(subject, form, CallCount::Many, skips_special);
            assert_eq!(many > one, form != CallForm::Object, "{form:?}: {many} calls");
        }
    }
    // A mark that is a token is that token.
    let grammar = CallForm::List.grammar(&tools(), CallCount::One, &marked.tokenizer).unwrap();
    let ids = marked.draw_ids(&grammar, 0);
    assert_eq!(Some(ids[0]), marked.tokenizer.token_to_id("[TOOL_CALLS]"));
}

#[test]
fn as_many_tools_as_are_taken_can_be_required() {
    let subject = Subject::small();
    let tool = |i: usize| {
        let members =
            (0..8).map(|j| (format!("member_{j}"), json!({"enum": [i, "ö & ~ \\\" # // /x/ <b>", {"a": [j]}]})));
        let members: Map<String, Value> = members.collect();
        let parameters = json!({"properties": members, "required": ["member_0"], "additionalProperties": false});
        json!({"type": "function", "function": {"name": format!("f.{i}"), "parameters": parameters}})
    };
    let tools: Vec<Value> = (0..128).map(tool).collect();
    let grammar = CallForm::Tagged.grammar(&tools, CallCount::One, &subject.tokenizer).unwrap();
    let answer = subject.draw(&grammar, 1);
    assert!(matches!(CallReader::new(tools.into()).push(&answer)[..], [Call(_)]), "{answer}");
}

#[test]
fn a_message_to_a_function_is_a_call() {
    let channels = ["<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>", "<|call|>", "<|return|>"];
    let subject = Subject::small_with(&channels);
    let form = AnswerForm::of("<|channel|>", &subject.tokenizer);
    let grammar = CallForm::Channels.grammar(&tools(), CallCount::Many, &subject.tokenizer).unwrap();
    let mut num_thoughts = 0;
    for seed in 0..24 {
        let mut reader = form.reader(&ChatInput::default(), "<|start|>assistant");
        let ids = subject.draw_ids(&grammar, seed);
        let mut sections: Vec<Section> = ids.iter().flat_map(|&id| reader.push_token(&subject.tokenizer, id)).collect();
        sections.extend(reader.finish());
        let Some(Section::Call(call)) = sections.pop() else { panic!("{sections:?}") };
        assert!(call.is_of(&tools()), "{call:?}");
        if call.name == "f" {
            check_arguments(&serde_json::from_str(&call.arguments).unwrap());
        }
        assert!(sections.iter().all(|section| matches!(section, Section::Reasoning(_))), "{sections:?}");
        num_thoughts += usize::from(!sections.is_empty());
    }
    assert!(num_thoughts > 0);
    let call = |name: &str, arguments: &str| ToolCall { name: name.into(), arguments: arguments.into() };
    assert!(call("get_time", " {}").is_of(&tools()));
    for (name, arguments) in [("g", "{}"), ("f", "1"), ("f", "{"), ("f", "")] {
        assert!(!call(name, arguments).is_of(&tools()), "{name} {arguments}");
    }
}

/// What is text by its schema and could be read as something else, or has to match more than a length, cannot be asked for.
#[test]
fn arguments_that_cannot_be_told_apart_are_refused() {
    let tokenizer = Subject::small().tokenizer;
    let grammar = |parameters: Value| {
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": parameters}});
        CallForm::Xml.grammar(&[tool], CallCount::One, &tokenizer)
    };
    for own in [
        json!({"type": ["string", "integer"]}),
        json!({"type": "string", "pattern": "a"}),
        json!({"enum": ["a</parameter>"]}),
        json!({"enum": ["a", 1]}),
        json!({"anyOf": [{"type": "string"}, {"type": "object"}]}),
    ] {
        let error = grammar(json!({"properties": {"x": own}})).unwrap_err();
        assert!(error.param() == Some("tools") && error.to_string().contains("f: the schema of \"x\""), "{error}");
    }
    for parameters in [
        json!({"properties": {"x": {}}, "anyOf": [{"required": ["x"]}]}),
        json!({"required": ["x"]}),
        json!({"properties": {"a>b": {}}}),
    ] {
        assert_eq!(grammar(parameters).unwrap_err().param(), Some("tools"));
    }
    assert!(
        grammar(json!({"properties": {"x": {"const": "a"}, "y": {}, "z": {"type": "string", "description": "d"}}}))
            .is_ok()
    );
}

/// Schemas that refer to themselves and to each other are looked at once, however many ways lead there.
#[test]
fn schemas_that_go_round_in_circles_have_an_end() {
    let circle = |num: usize, further: Value| {
        let mut alternatives = further.as_array().unwrap().clone();
        alternatives.resize(alternatives.len() + num, json!({"$ref": "#/$defs/a"}));
        let parameters = json!({"properties": {"x": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"anyOf": alternatives}}});
        json!({"type": "function", "function": {"name": "f", "parameters": parameters}})
    };
    let tokenizer = Subject::small().tokenizer;
    for tool in [circle(1, json!([])), circle(1000, json!([])), circle(1, json!([{"type": "null"}, {"type": "string"}]))] {
        let error = CallForm::Xml.grammar(&[tool], CallCount::One, &tokenizer).unwrap_err();
        assert!(error.to_string().contains("f: the schema of \"x\""), "{error}");
    }
    let tool = circle(1000, json!([{"type": "null"}]));
    let mut reader = CallReader::new([tool].into());
    let parts = reader.push("<function=f><parameter=x>None</parameter></function>");
    assert_eq!(parts, [call("f", "{\"x\": null}")]);
}

#[test]
fn a_template_says_which_form() {
    for (source, form) in [
        ("{{ '<tool_call>\\n' }}", CallForm::Tagged),
        ("{{ '[TOOL_CALLS] [' }}", CallForm::List),
        ("{{ '[TOOL_CALLS]' + name + '[ARGS]' }}", CallForm::Named),
        ("{{ '<tool_call>\\n<function=' }}", CallForm::Xml),
        ("{{ '<|start|>assistant<|channel|>' }}", CallForm::Channels),
        ("{{ '{\"name\": \"' }}", CallForm::Object),
    ] {
        assert_eq!(CallForm::of(source).unwrap(), form, "{source}");
    }
    for source in ["<tool_call>name<arg_key>", "<|tool_call_start|>"] {
        let error = CallForm::of(source).unwrap_err();
        assert_eq!(error.param(), Some("tools"), "{error}");
    }
}
